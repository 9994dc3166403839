// The plan of the algorithm `wgmma`: what TMA can express, tiles, splits, memory.
#include "plan.h"

namespace conv_ext {
namespace {

// Whether somebody has run it on a device of compute capability 9.0. Until then it has to be asked for.
constexpr bool kWgmmaVerified = false;

// Below these a tile is not filled, or the pipeline does not come up to speed. Estimates, none is measured.
constexpr int64_t kFewestChannels = 64, kShortestSum = 256, kFewestPositions = 49;
constexpr int64_t kEnoughTiles = 256, kPartialBytes = int64_t(64) << 20;            // weight_grad
constexpr int64_t kBlocksOfImage = 16, kLongReduction = 2048, kShortestPart = 512;  // as in cuda/plan.cpp

constexpr int64_t kLongestStride = int64_t(1) << 40;  // bytes

const char* axis_declines(const Axis& axis) {
  if (axis.step() > 8) return "TMA takes steps of 8 positions at most";
  if (axis.taps > 256 * kMostBoxPhases) return "the kernel is wider than TMA's offsets";
  for (int64_t phase = 0; phase < axis.phases(); ++phase) {
    CONV_EXT_PLAN_STEP();
    const BoxAxis box = box_axis(axis, phase);
    if (box.taps == 0) continue;  // nothing is read
    if (box.lower < -128 || box.lower > 127 || box.upper < -128 || box.upper > 127)
      return "the padding or the kernel reaches further than TMA's box";
    if (box.first_offset > 255 || box.first_offset + (box.taps - 1) * box.delta > 255)
      return "the kernel is wider than TMA's offsets";
  }
  return nullptr;
}

}  // namespace

const char* wgmma_declines(const ConvProblem& z, Pass pass, const CudaTraits& traits) {
  if (traits.capability != 90) return "it is for compute capability 9.0 alone";
  if (z.dtype == DType::Float64 || is_complex(z.dtype)) return "it is for real numbers of 16 and 32 bits";
  if (pass == Pass::WeightGrad && wgmma_bytes(z) == 4)
    return "the tensor cores want TF32 side by side along the sum, which weight_grad has not";
  if (wgmma_parts(z) > 1)
    if (const char* reason = parts_decline(z, pass)) return reason;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (const char* reason = cuda_extents_decline(z)) return reason;
  if (vertical.phases() * horizontal.phases() > kMostBoxPhases) return "its stride makes more than 16 phases";
  if (const char* reason = axis_declines(vertical)) return reason;
  if (const char* reason = axis_declines(horizontal)) return reason;
  const CudaShape shape = cuda_shape(z, pass);
  const int64_t widest = z.groups * wgmma_padded(z, max_of(z.group_c(), z.group_k()));
  if (widest >= kCudaExtent) return "its groups' channels, filled up, are 2^30 or more";
  const int64_t positions = max_of(z.h * z.w, z.p * z.q);
  if (positions >= kLongestStride || widest >= ceil_div(kLongestStride, 4 * max_of(1, positions)))
    return "an image has 2^40 bytes or more";
  if (product(wgmma_parts(z), z.n) >= kCudaExtent) return "the parts of all images are 2^30 images or more";
  const CudaPlan plan = make_wgmma_plan(z, pass);
  if (plan.steps >= kCudaExtent) return "a sum has too many products";
  if (plan.pitch >= kCudaExtent || product(wgmma_parts(z), shape.phases(), z.groups, shape.gemm_m) >= kCudaExtent)
    return "the packed weights have 2^30 rows or columns, or more";
  if (plan.blocks >= kCudaExtent) return "it would take 2^30 tiles or more";
  return cuda_bytes_decline(z, pass, {CudaAlgorithm::Wgmma, "", nullptr, nullptr});
}

const char* wgmma_yields(const ConvProblem& z, Pass pass, const CudaTraits&) {
  if (!kWgmmaVerified) return "it has not run on a device yet";
  const CudaShape shape = cuda_shape(z, pass);
  if (shape.gemm_m < kFewestChannels) return "it wants 64 channels of the result in a group";
  if (shape.gemm_k < kShortestSum) return "it wants sums of 256 products";
  if (pass != Pass::WeightGrad && shape.gemm_n / max_of(1, z.n) < kFewestPositions)
    return "it wants 49 positions of an image";
  return nullptr;
}

namespace {

// Places an operand behind what the workspace holds already, unless it is read in place: then it takes nothing. What
// has to be rounded or split is always copied.
void plan_operand(const ConvProblem& z, bool input, const Buffers* operands, CudaOperand* operand, CudaPlan* plan) {
  const int64_t channels = input ? z.group_c() : z.group_k(), h = input ? z.h : z.p, w = input ? z.w : z.q;
  const int64_t bytes = wgmma_bytes(z), padded = wgmma_padded(z, channels);
  const bool readable =
      element_bytes(z.dtype) == 2 &&
      (operands ? tma_reads(input ? operands->input : operands->output, z.groups, channels, padded, h, w, bytes)
                : z.channels_last && channels % 8 == 0 && (z.groups == 1 || channels == padded));
  operand->channels = readable ? channels : padded;
  operand->offset = plan->partial_offset;
  operand->bytes = readable ? 0 : round_up(product(wgmma_parts(z), z.n, h, w, z.groups, padded, bytes), 256);
  plan->partial_offset += operand->bytes;
}

void plan_weight_grad(const ConvProblem& z, const Buffers* operands, const CudaChoices& wanted, CudaPlan* plan) {
  plan->tile_m = kWgmmaPositions;
  plan->tile_n = wanted.tile_n ? wanted.tile_n : z.group_c() > 64 ? 128 : 64;
  const int64_t steps = max_of(1, ceil_div(product(z.n, z.p, z.q), kWgmmaBox));
  const int64_t tiles =
      product(ceil_div(z.group_k(), plan->tile_m), ceil_div(z.group_c(), plan->tile_n), z.r, z.s, z.groups);
  const int64_t result_bytes = product(z.weight_elements(), accumulator_bytes(z.dtype));
  plan->splits = min_of(ceil_div(kEnoughTiles, max_of(1, tiles)), max_of(1, kPartialBytes / max_of(1, result_bytes)));
  plan->splits =
      wanted.splits ? min_of(wanted.splits, steps) : max_of(1, min_of(plan->splits, steps * kWgmmaBox / kShortestPart));
  plan->steps = ceil_div(steps, plan->splits);
  plan->splits = ceil_div(steps, plan->steps);
  plan_operand(z, false, operands, &plan->grad, plan);
  plan_operand(z, true, operands, &plan->source, plan);
  plan->blocks = product(tiles, plan->splits);
  plan->workspace_bytes = plan->partial_offset + (plan->splits > 1 ? product(plan->splits, result_bytes) : 0);
}

}  // namespace

const char* wgmma_tile_declines(Pass pass, const CudaChoices& wanted) {
  const int64_t fixed = pass == Pass::WeightGrad ? wanted.tile_m : wanted.tile_n;
  const int64_t chosen = pass == Pass::WeightGrad ? wanted.tile_n : wanted.tile_m;
  if (fixed == kWgmmaPositions && (chosen == 64 || chosen == 128)) return nullptr;
  return pass == Pass::WeightGrad ? "it has tiles of 128 x 64 and 128 x 128" : "it has tiles of 64 x 128 and 128 x 128";
}

CudaPlan make_wgmma_plan(const ConvProblem& z, Pass pass, const Buffers* operands, const CudaChoices& wanted) {
  CudaPlan plan{};
  plan.algorithm = CudaAlgorithm::Wgmma;
  if (pass == Pass::WeightGrad) {
    plan_weight_grad(z, operands, wanted, &plan);
    return plan;
  }
  const CudaShape shape = cuda_shape(z, pass);
  const int64_t chunk = wgmma_chunk(z);
  plan.tile_m = wanted.tile_m ? wanted.tile_m : shape.gemm_m > 64 ? 128 : 64;
  plan.tile_n = kWgmmaPositions;
  const int64_t taps = shape.channels > 0 ? shape.gemm_k / shape.channels : 0;
  const int64_t steps = max_of(1, product(taps, ceil_div(shape.channels, chunk)));
  const int64_t tiles_m = product(ceil_div(shape.gemm_m, plan.tile_m), z.groups, shape.phases());
  plan.splits = 1;
  if (shape.gemm_k >= kLongReduction) {  // without N: one image's tiles
    const int64_t tiles = max_of(1, product(tiles_m, shape.gemm_n / max_of(1, z.n)) / kWgmmaPositions);
    if (tiles < kBlocksOfImage) plan.splits = min_of(4, kBlocksOfImage / tiles);
    plan.splits = max_of(1, min_of(plan.splits, steps * chunk / kShortestPart));
  }
  if (wanted.splits) plan.splits = min_of(wanted.splits, steps);
  plan.steps = ceil_div(steps, plan.splits);
  plan.splits = ceil_div(steps, plan.steps);
  plan.pitch = steps * chunk;
  const int64_t rows = product(wgmma_parts(z), shape.phases(), z.groups, shape.gemm_m);
  plan.packed_bytes = round_up(product(rows, plan.pitch, wgmma_bytes(z)), 256);
  plan.partial_offset = plan.packed_bytes;
  plan_operand(z, pass == Pass::Forward, operands, &plan.source, &plan);
  plan.blocks = product(tiles_m, ceil_div(shape.gemm_n, kWgmmaPositions), plan.splits);
  const int64_t results = pass == Pass::Forward ? z.output_elements() : z.input_elements();
  plan.workspace_bytes =
      plan.partial_offset + (plan.splits > 1 ? product(plan.splits, results, accumulator_bytes(z.dtype)) : 0);
  return plan;
}

}  // namespace conv_ext
