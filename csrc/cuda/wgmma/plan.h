// What the plan and the kernels of the algorithm `wgmma` share: how TMA walks along an axis, and the sizes that follow.
#pragma once

#include "../plan.h"
#include "../../common/plan_steps.h"

namespace conv_ext {

// One axis of a phase of forward or input_grad. Output i reads the source at  lower + i step + first_offset + tap
// delta, with taps counted within the phase: TMA walks from `lower` to the source's last position + `upper`, and adds
// an offset that is never negative.
struct BoxAxis {
  int64_t taps, first_tap, tap_step;  // of the kernel
  int64_t lower, upper, first_offset, delta;
  int64_t count, first_output;
};
inline BoxAxis box_axis(const Axis& axis, int64_t phase) {
  BoxAxis box{0, 0, 1, 0, 0, 0, 0, axis.inverse ? axis.count(phase) : axis.output, phase};
  // Taps of a phase are `period` apart: one of the first so many is in it, or none.
  const int64_t period = axis.inverse ? axis.stride / greatest_common_divisor(axis.stride, axis.dilation) : 1;
  const int64_t most = min_of(period, axis.taps);
  int64_t tap = 0;
  while (tap < most && axis.inverse && axis.phase_of(tap) != phase) {
    CONV_EXT_PLAN_STEP();
    ++tap;
  }
  int64_t lowest = 0, first = 0;
  if (tap < most) {
    box.taps = (axis.taps - 1 - tap) / period + 1;
    box.first_tap = tap;
    first = axis.offset(tap);
    lowest = min_of(first, axis.offset(tap + (box.taps - 1) * period));
  }
  if (box.taps > 1) {
    box.tap_step = period;
    box.delta = axis.offset(tap + period) - first;
  }
  box.lower = lowest;
  box.upper = lowest + (box.count - 1) * axis.step() - (axis.source - 1);
  box.first_offset = first - lowest;
  return box;
}

constexpr int64_t kMostBoxPhases = 16;

// float32 that must not be rounded is the sum of three parts of bfloat16 (parts.h).
inline int64_t wgmma_parts(const ConvProblem& z) {
  return z.dtype == DType::Float32 && z.precision == Precision::Ieee ? 3 : 1;
}
// Of what is multiplied: a number's bytes, numbers of a step along gemm_k, whose rows are 128 bytes long, and numbers
// to which packed channels are filled up.
inline int64_t wgmma_bytes(const ConvProblem& z) { return wgmma_parts(z) > 1 ? 2 : element_bytes(z.dtype); }
inline int64_t wgmma_chunk(const ConvProblem& z) { return 128 / wgmma_bytes(z); }
inline int64_t wgmma_padded(const ConvProblem& z, int64_t channels) { return round_up(channels, 32 / wgmma_bytes(z)); }
constexpr int64_t kWgmmaPositions = 128;  // of a tile; in weight_grad channels of the gradient
constexpr int64_t kWgmmaBox = 64;         // weight_grad: positions of a step
// The widest tiles of forward and input_grad whose sums are made of chains, and of several parts in one block.
constexpr int64_t kWgmmaMostChained = 128;
constexpr int64_t wgmma_most_in_parts(int64_t bytes) { return bytes == 2 ? 128 : 64; }

// Whether TMA can read a tensor of n, groups x channels, h, w as it lies: channels together, 16-byte steps, dimensions
// in descending order. Groups must begin at whole pieces of `padded` channels, those of a copy. The stride of a
// dimension of size 1 may be any number.
inline bool tma_reads(const TensorRef& t, int64_t groups, int64_t channels, int64_t padded, int64_t h, int64_t w,
                      int64_t bytes) {
  const int64_t vector = 16 / bytes;
  return t.stride[1] == 1 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride[3] >= groups * channels &&
         t.stride[2] >= product(w, t.stride[3]) && t.stride[0] >= product(h, t.stride[2]) &&
         t.stride[3] % vector == 0 && t.stride[2] % vector == 0 && t.stride[0] % vector == 0 &&
         t.stride[0] < (int64_t(1) << 40) / bytes && (groups == 1 || channels == padded);
}

const char* wgmma_declines(const ConvProblem& problem, Pass pass, const CudaTraits& traits);
const char* wgmma_yields(const ConvProblem& problem, Pass pass, const CudaTraits& traits);
void prepare_wgmma(const CudaPlanInput& input, CudaPlan* plan);
void describe_wgmma(Pass pass, const CudaPlan& plan, Facts* facts);
// As cuda_choices_decline.
const char* wgmma_choices_decline(const ConvProblem& problem, Pass pass, const CudaChoices& wanted);

}  // namespace conv_ext
