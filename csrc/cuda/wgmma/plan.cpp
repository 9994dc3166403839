// The plan of the algorithm `wgmma`: what TMA can express, tiles, splits, memory.
#include "plan.h"

#include <initializer_list>

namespace conv_ext {
namespace {

// Whether somebody has run it on a device of compute capability 9.0. Until then it has to be asked for.
constexpr bool kWgmmaVerified = false;

// Below these a tile is not filled, or the pipeline does not come up to speed. Estimates, none is measured.
constexpr int64_t kFewestChannels = 64, kShortestSum = 256, kFewestPositions = 49;
constexpr int64_t kEnoughTiles = 256, kPartialBytes = int64_t(64) << 20;  // weight_grad
constexpr int64_t kCudaShortestPart = 512;                                // products

constexpr int64_t kLongestStride = int64_t(1) << 40;  // bytes

constexpr int64_t kChain = 128, kShortChain = 64;  // products; of float32 in parts
// What adding a part in the workspace costs, in products of the main loop that the tensor cores multiply meanwhile.
constexpr int64_t kPartOfTF32 = 512, kPartOfSplitNumbers = 192;

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
  const CudaPlan plan = make_cuda_plan(z, pass, cuda_candidate(CudaAlgorithm::Wgmma));
  if (plan.steps >= kCudaExtent) return "a sum has too many products";
  if (plan.product.pitch >= kCudaExtent ||
      product(wgmma_parts(z), shape.phases(), z.groups, shape.gemm_m) >= kCudaExtent)
    return "the packed weights have 2^30 rows or columns, or more";
  if (plan.blocks >= kCudaExtent) return "it would take 2^30 tiles or more";
  return cuda_bytes_decline(z, pass, CudaAlgorithm::Wgmma);
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
void plan_operand(const CudaPlanInput& in, bool input, CudaOperand* operand, CudaPlan* plan) {
  const ConvProblem& z = in.problem;
  const int64_t channels = input ? z.group_c() : z.group_k(), h = input ? z.h : z.p, w = input ? z.w : z.q;
  const int64_t bytes = wgmma_bytes(z), padded = wgmma_padded(z, channels);
  const bool readable = element_bytes(z.dtype) == 2 && tma_reads(input ? in.operands.input : in.operands.output,
                                                                 z.groups, channels, padded, h, w, bytes);
  operand->channels = readable ? channels : padded;
  operand->offset = plan->partial_offset;
  operand->bytes = readable ? 0 : round_up(product(wgmma_parts(z), z.n, h, w, z.groups, padded, bytes), 256);
  plan->partial_offset += operand->bytes;
}

// Weights of 16 bits that lie as K R S C are read where they lie, by forward along the sum, by input_grad across it:
// channels_last, and 1x1 kernels. A step of input_grad reads rows of the next group, which are not multiplied, unless
// the group's own end within a product.
bool reads_weights(const ConvProblem& z, Pass pass, const TensorRef& w) {
  const int64_t vector = 8, channels = z.group_c(), tap = w.stride[z.s > 1 ? 3 : 2];
  return element_bytes(z.dtype) == 2 && (channels == 1 || w.stride[1] == 1) &&
         (pass == Pass::Forward || z.groups == 1 || wgmma_padded(z, z.group_k()) == z.group_k()) &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && w.stride[0] > 0 && w.stride[0] % vector == 0 &&
         w.stride[0] < int64_t(1) << 38 &&
         (z.r * z.s == 1 || (tap >= channels && tap % vector == 0 && w.stride[0] % tap == 0)) &&
         (z.r == 1 || z.s == 1 || w.stride[2] == z.s * tap);
}

// ---- weight_grad

void prepare_weight_grad(const CudaPlanInput& input, CudaPlan* plan) {
  const ConvProblem& z = input.problem;
  const CudaChoices& wanted = input.wanted;
  plan->product.tile_m = kWgmmaPositions;
  plan->product.tile_n = wanted.tile_n ? wanted.tile_n : z.group_c() > 64 ? 128 : 64;
  const int64_t steps = max_of(1, ceil_div(product(z.n, z.p, z.q), kWgmmaBox));
  const int64_t tiles = product(ceil_div(z.group_k(), plan->product.tile_m),
                                ceil_div(z.group_c(), plan->product.tile_n), z.r, z.s, z.groups);
  const int64_t result_bytes = product(z.weight_elements(), accumulator_bytes(z.dtype));
  plan->splits = min_of(ceil_div(kEnoughTiles, max_of(1, tiles)), max_of(1, kPartialBytes / max_of(1, result_bytes)));
  plan->splits = wanted.splits ? min_of(wanted.splits, steps)
                               : max_of(1, min_of(plan->splits, steps * kWgmmaBox / kCudaShortestPart));
  plan->steps = ceil_div(steps, plan->splits);
  plan->splits = plan->parts = ceil_div(steps, plan->steps);
  plan_operand(input, false, &plan->product.grad, plan);
  plan_operand(input, true, &plan->product.source, plan);
  plan->blocks = product(tiles, plan->splits);
  plan->workspace_bytes = plan->partial_offset + (plan->splits > 1 ? product(plan->splits, result_bytes) : 0);
}

// ---- forward and input_grad

// A sum's bits follow from this: parts of `part_steps`, each in chains of `chain_steps`; parts are added in their
// order, by the block that forms all of them or by another kernel.
struct SumOrder {
  int64_t steps, parts, part_steps, chain_steps;
};

// How many products one chain may have in the bounds of accuracy: of 16-bit numbers, which a wide tile cannot do
// without.
int64_t longest_chain(const ConvProblem& z) {
  return z.dtype == DType::BFloat16 ? 2048 : z.dtype == DType::Float16 ? 256 : 0;
}
bool is_one_chain(const ConvProblem& z, const CudaShape& shape, const SumOrder& order) {
  return min_of(shape.gemm_k, order.part_steps * wgmma_chunk(z)) <= longest_chain(z);
}
// Whether tiles of 256 channels are filled nearly as well as those of 128.
bool fills_wide_tiles(const CudaShape& shape) {
  return 4 * round_up(shape.gemm_m, 256) <= 5 * round_up(shape.gemm_m, 128);
}

SumOrder sum_of_parts(const ConvProblem& z, const CudaShape& shape, const CudaChoices& wanted, int64_t parts) {
  const int64_t chunk = wgmma_chunk(z), taps = shape.channels > 0 ? shape.gemm_k / shape.channels : 0;
  SumOrder order{};
  order.steps = max_of(1, product(taps, ceil_div(shape.channels, chunk)));
  order.part_steps = ceil_div(order.steps, min_of(max_of(1, parts), order.steps));
  order.parts = ceil_div(order.steps, order.part_steps);
  const bool wide = wanted.tile_m > kWgmmaMostChained || (order.parts == 1 && fills_wide_tiles(shape));
  const int64_t chain_steps = (wgmma_parts(z) > 1 ? kShortChain : kChain) / chunk;
  order.chain_steps = wide && is_one_chain(z, shape, order) ? order.part_steps : chain_steps;
  return order;
}

// Whether one block forms all parts of its sums.
bool forms_all_parts(const ConvProblem& z, const SumOrder& order, int64_t tile) {
  return order.parts == 1 || tile <= wgmma_most_in_parts(element_bytes(z.dtype));
}

// Estimated cycles of a pass whose tiles have `tile` channels, and whose sums `splits` blocks share. A step takes as
// long as its products, or as shared memory takes to be read by them and written by TMA, 128 bytes a cycle.
double estimated_cycles(const ConvProblem& z, Pass pass, const CudaShape& shape, const SumOrder& order, int64_t tile,
                        int64_t splits) {
  constexpr double kOfBlock = 1500, kOfColumn = 8;          // to begin; to write a channel of a tile
  constexpr double kOfKernel = 4000, kBytesOfCycle = 1700;  // parts: of another kernel; of memory
  const double parts = double(wgmma_parts(z)), products = parts > 1 ? 6 : 1, n = double(tile);
  const double multiplied = products * 4 * n, moved = products * (128 + 2 * n) + parts * (128 + n);
  const double step = multiplied > moved ? multiplied : moved;
  const int64_t tiles =
      product(ceil_div(shape.gemm_m, tile), ceil_div(shape.gemm_n, kWgmmaPositions), z.groups, shape.phases(), splits);
  const double of_tile = double(splits > 1 ? order.part_steps : order.steps) * step + n * kOfColumn;
  const double sums = double(pass == Pass::Forward ? z.output_elements() : z.input_elements());
  return kOfBlock + double(ceil_div(tiles, kCudaMultiprocessors)) * of_tile +
         (splits > 1 ? kOfKernel + double(splits) * sums * 8 / kBytesOfCycle : 0);
}

// From the shape without N: as many parts as the smallest tiles of one image need to fill a device, if it is faster
// then.
SumOrder sum_order(const ConvProblem& z, Pass pass, const CudaShape& shape, const CudaChoices& wanted) {
  if (wanted.parts || wanted.splits) return sum_of_parts(z, shape, wanted, wanted.parts ? wanted.parts : wanted.splits);
  ConvProblem image = z;
  image.n = 1;
  const CudaShape of_image = cuda_shape(image, pass);
  const int64_t tiles =
      product(ceil_div(of_image.gemm_m, 64), ceil_div(of_image.gemm_n, kWgmmaPositions), z.groups, of_image.phases());
  int64_t parts =
      min_of(min_of(kCudaMostParts, kCudaMultiprocessors / max_of(1, tiles)), shape.gemm_k / kCudaShortestPart);
  // A tile of 128 channels has no registers for several parts of float32: to add them may cost a quarter of the main
  // loop.
  if (element_bytes(z.dtype) == 4)
    parts = min_of(parts, shape.gemm_k / (4 * (wgmma_parts(z) > 1 ? kPartOfSplitNumbers : kPartOfTF32)));
  const SumOrder whole = sum_of_parts(z, shape, wanted, 1), cut = sum_of_parts(z, shape, wanted, parts);
  const bool faster = estimated_cycles(image, pass, of_image, cut, 64, cut.parts) <
                      estimated_cycles(image, pass, of_image, whole, 64, 1);
  return faster ? cut : whole;
}

// Tiles, and whether blocks share a sum: no bit depends on it, so N may count.
void choose_blocks(const ConvProblem& z, Pass pass, const CudaShape& shape, const SumOrder& order,
                   const CudaChoices& wanted, CudaPlan* plan) {
  double best = 0;
  for (const int64_t tile : {128, 64, 256}) {
    if (wanted.tile_m ? wanted.tile_m != tile : tile > kWgmmaMostChained && order.chain_steps < order.part_steps)
      continue;
    if (tile > kWgmmaMostChained && longest_chain(z) == 0) continue;
    for (const int64_t splits : {int64_t(1), order.parts}) {
      if (splits == 1 && (wanted.splits > 1 || !forms_all_parts(z, order, tile)) && order.parts > 1) continue;
      if (splits > 1 && wanted.splits == 1) continue;
      const double cycles = estimated_cycles(z, pass, shape, order, tile, splits);
      if (plan->product.tile_m > 0 && cycles >= best) continue;
      best = cycles;
      plan->product.tile_m = tile;
      plan->splits = splits;
    }
  }
}

}  // namespace

const char* wgmma_choices_decline(const ConvProblem& z, Pass pass, const CudaChoices& wanted) {
  const bool weight_grad = pass == Pass::WeightGrad;
  const int64_t chosen = weight_grad ? wanted.tile_n : wanted.tile_m,
                fixed = weight_grad ? wanted.tile_m : wanted.tile_n;
  const bool any = chosen == 0 && fixed == 0, wide = !weight_grad && longest_chain(z) > 0;
  if (!any && (fixed != kWgmmaPositions || !(chosen == 64 || chosen == 128 || (wide && chosen == 256))))
    return weight_grad ? "it has tiles of 128 x 64 and 128 x 128"
           : wide      ? "it has tiles of 64 x 128, 128 x 128 and 256 x 128"
                       : "it has tiles of 64 x 128 and 128 x 128";
  if (wanted.parts && wanted.splits != 1 && wanted.splits != wanted.parts)
    return "a sum's parts are formed by splits = 1 block, or by as many as there are parts";
  if (weight_grad) {
    if (wanted.parts && wanted.splits != wanted.parts)
      return "each part of weight_grad is another block's: parts are splits";
    return nullptr;
  }
  const SumOrder order = sum_order(z, pass, cuda_shape(z, pass), wanted);
  if (chosen > kWgmmaMostChained && order.chain_steps < order.part_steps)
    return z.dtype == DType::BFloat16
               ? "a tile of 256 x 128 is for sums of up to 2048 products, or parts of that length"
               : "a tile of 256 x 128 is for sums of up to 256 products, or parts of that length";
  if (wanted.splits == 1 && !forms_all_parts(z, order, max_of(chosen, 64)))
    return "a block of this tile has no registers for several parts of its sums";
  return nullptr;
}

void prepare_wgmma(const CudaPlanInput& input, CudaPlan* to) {
  if (input.pass == Pass::WeightGrad) return prepare_weight_grad(input, to);
  const ConvProblem& z = input.problem;
  const Pass pass = input.pass;
  CudaPlan& plan = *to;
  const CudaShape shape = cuda_shape(z, pass);
  const SumOrder order = sum_order(z, pass, shape, input.wanted);
  choose_blocks(z, pass, shape, order, input.wanted, &plan);
  plan.product.tile_n = kWgmmaPositions;
  plan.steps = plan.splits > 1 ? order.part_steps : order.steps;
  plan.parts = order.parts;
  plan.product.part_steps = order.part_steps;
  plan.product.chain_steps = order.chain_steps;
  plan.product.pitch = order.steps * wgmma_chunk(z);
  const int64_t rows = product(wgmma_parts(z), shape.phases(), z.groups, shape.gemm_m);
  if (!reads_weights(z, pass, input.operands.weight))
    plan.product.packed_bytes = round_up(product(rows, plan.product.pitch, wgmma_bytes(z)), 256);
  plan.partial_offset = plan.product.packed_bytes;
  plan_operand(input, pass == Pass::Forward, &plan.product.source, &plan);
  plan.blocks = product(ceil_div(shape.gemm_m, plan.product.tile_m), ceil_div(shape.gemm_n, kWgmmaPositions), z.groups,
                        shape.phases(), plan.splits);
  const bool forward = pass == Pass::Forward;
  const int64_t results = forward ? z.output_elements() : z.input_elements();
  plan.workspace_bytes =
      plan.partial_offset + (plan.splits > 1 ? product(plan.splits, results, accumulator_bytes(z.dtype)) : 0);
  plan.product.stores_vectors =
      plan.splits == 1 && reads_vectors(input.result(), z.n, forward ? z.p : z.h, forward ? z.q : z.w, shape.gemm_m,
                                        element_bytes(z.dtype));
}

void describe_wgmma(Pass pass, const CudaPlan& plan, Facts* facts) {
  const CudaProduct& own = plan.product;
  add_facts(facts, {{"sums", std::to_string(own.tile_m) + "x" + std::to_string(own.tile_n)}});
  if (own.chain_steps > 0) add_facts(facts, {{"chain", own.chain_steps}});
  describe_operands(pass, own, facts);
  add_facts(facts, {{"stores", describe_stores(own.stores_vectors)}});
}

}  // namespace conv_ext
