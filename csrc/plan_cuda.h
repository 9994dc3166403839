// How CUDA computes a problem: the ordered list of its algorithms with their reasons for "no", tiles and splits.
//
// Start reading at kCudaCandidates in plan_cuda.cpp. As on the CPU, forward and input_grad choose without N, so that an
// image gives the same bits in any batch; weight_grad chooses from the whole shape. Nothing depends on how many
// processors the device has.
#pragma once

#include "indexing.h"

namespace conv_ext {

enum class CudaAlgorithm : int32_t { Direct, TensorCores, ThreeTF32, MultiplyAdd };

// What the plan may know of a device.
struct CudaTraits {
  int64_t capability;  // 90: compute capability 9.0
};

struct CudaPlan {
  CudaAlgorithm algorithm;
  bool large_tile;        // 128 x 128 sums in a block, or 64 x 64
  int64_t splits, steps;  // the reduction is cut into parts of so many steps, which are added in their order
  int64_t channels;       // direct: channels of the result that a thread computes
  int64_t pitch;          // numbers of a row of packed weights
  int64_t packed_bytes;   // packed weights stand first in the workspace, parts of sums behind them
  int64_t blocks;
  int64_t workspace_bytes;
};

struct CudaCandidate {
  CudaAlgorithm algorithm;
  const char* name;
  const char* (*declines)(const ConvProblem&, Pass, const CudaTraits&);  // as in plan.h
  const char* (*yields)(const ConvProblem&, Pass, const CudaTraits&);
};

constexpr int kCudaCandidateCount = 4;
extern const CudaCandidate kCudaCandidates[kCudaCandidateCount];

// As choose() in plan.h.
const CudaCandidate* choose_cuda(const ConvProblem& problem, Pass pass, const CudaTraits& traits, const char* forced,
                                 const char** reason);
CudaPlan make_cuda_plan(const ConvProblem& problem, Pass pass, const CudaCandidate& candidate);

// Sizes that plan and kernels share.
inline int64_t cuda_block_k(DType dtype) { return element_bytes(dtype) == 2 ? 32 : 16; }  // numbers of one step
inline int64_t cuda_tile(bool large) { return large ? 128 : 64; }
constexpr int64_t kCudaDirectThreads = 128, kCudaDirectTaps = 9;

// The three products that a pass is made of; the phases of a strided input_grad count once, by the largest.
struct CudaShape {
  int64_t gemm_m, gemm_n, gemm_k;  // of a group
  int64_t phases_h, phases_w;
  int64_t channels;  // of a group of the source
  int64_t phases() const { return phases_h * phases_w; }
};
inline CudaShape cuda_shape(const ConvProblem& z, Pass pass) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  CudaShape shape{};
  shape.phases_h = max_of(1, vertical.phases());
  shape.phases_w = max_of(1, horizontal.phases());
  if (pass == Pass::WeightGrad) {
    shape.channels = z.group_c();
    shape.gemm_m = z.group_k();
    shape.gemm_n = z.group_c() * z.r * z.s;
    shape.gemm_k = z.n * z.p * z.q;
    return shape;
  }
  // Taps of a phase come round after stride / gcd(stride, dilation).
  const auto taps = [](const Axis& a) {
    return a.inverse ? ceil_div(a.taps, a.stride / greatest_common_divisor(a.stride, a.dilation)) : a.taps;
  };
  const bool forward = pass == Pass::Forward;
  shape.channels = forward ? z.group_c() : z.group_k();
  shape.gemm_m = forward ? z.group_k() : z.group_c();
  shape.gemm_n = z.n * vertical.longest_count() * horizontal.longest_count();
  shape.gemm_k = taps(vertical) * taps(horizontal) * shape.channels;
  return shape;
}

}  // namespace conv_ext
