// The plan room of CUDA: which algorithm computes a problem there, with which tiles and splits.
//
// The limits in this file are estimates from the devices' ceilings: none has been measured on a GPU yet.
#include "plan.h"

#include <string.h>

#include "wgmma/plan.h"

namespace conv_ext {
namespace {

constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
constexpr int64_t kMostPhases = 4096;                           // of one axis
constexpr int64_t kFewChannels = 8;                             // a group of fewer fills too little of a tile
constexpr int64_t kEnoughBlocks = 256;                          // weight_grad: for some 130 multiprocessors
constexpr int64_t kPartialBytes = int64_t(64) << 20;            // weight_grad: what parts of sums may take
constexpr int64_t kChain = 128;                                 // numbers: that of the tensor cores' Math
constexpr int64_t kEnoughLarge = kCudaMultiprocessors * 3 / 4;  // blocks of 128 x 128

// Whether products may be those of the tensor cores that round to TF32 or shorter.
bool rounds_to_tensor_cores(const ConvProblem& z) {
  return z.dtype == DType::BFloat16 || z.dtype == DType::Float16 ||
         (z.dtype == DType::Float32 && z.precision != Precision::Ieee);
}

const char* blocks_decline(const ConvProblem& z, Pass pass, CudaAlgorithm algorithm) {
  if (const char* reason = cuda_extents_decline(z)) return reason;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::InputGrad && max_of(vertical.stride, horizontal.stride) > kMostPhases)
    return "a stride above 4096 would make that many phases of input_grad";
  const CudaPlan plan = make_cuda_plan(z, pass, cuda_candidate(algorithm));
  const CudaShape shape = cuda_shape(z, pass, max_of(1, plan.product.vector));
  if (shape.gemm_k >= kCudaExtent && pass != Pass::WeightGrad) return "a sum has 2^30 products or more";
  const bool counts_steps = !is_window(algorithm) && algorithm != CudaAlgorithm::Direct;  // the others in 64 bits
  if (counts_steps && plan.steps > kMostBlocks) return "a part of a sum has 2^31 steps or more";
  if (product(z.groups, max_of(plan.product.source.channels, plan.product.grad.channels)) >= kCudaExtent)
    return "with every group's channels filled up to whole vectors there are 2^30 channels or more";
  if (plan.blocks > kMostBlocks) return "it would take more than 2^31 - 1 blocks";
  return cuda_bytes_decline(z, pass, algorithm);
}

const char* never_yields(const ConvProblem&, Pass, const CudaTraits&) { return nullptr; }

constexpr int64_t kSmallGroup = 16;  // channels on either side
constexpr int64_t kFirstChannels = 4;

const char* depthwise_declines(const ConvProblem& z, Pass pass, const CudaTraits&) {
  if (z.groups == 1 || z.group_c() != 1) return "it is for groups of one input channel";
  if (const char* reason = cuda_extents_decline(z)) return reason;
  if (const char* reason = window_declines(z, pass)) return reason;
  return blocks_decline(z, pass, CudaAlgorithm::Depthwise);
}
const char* grouped_declines(const ConvProblem& z, Pass pass, const CudaTraits&) {
  if (z.groups == 1 || z.group_c() == 1 || max_of(z.group_c(), z.group_k()) > kSmallGroup)
    return "it is for groups of 2 to 16 channels";
  if (const char* reason = cuda_extents_decline(z)) return reason;
  if (const char* reason = window_declines(z, pass)) return reason;
  return blocks_decline(z, pass, CudaAlgorithm::Grouped);
}
const char* grouped_yields(const ConvProblem& z, Pass, const CudaTraits& traits) {
  if (max_of(z.group_c(), z.group_k()) > kFewChannels && rounds_to_tensor_cores(z) && traits.capability >= 80)
    return "groups of more than 8 channels are for the tensor cores";
  return nullptr;
}
const char* first_layer_cores_decline(const ConvProblem& z, Pass pass, const CudaTraits& traits) {
  if (z.groups != 1 || z.c > kFirstChannels || pass != Pass::Forward)
    return "it is for forward of up to 4 input channels in one group";
  if (traits.capability < 80) return "it is for compute capability 8.0 and later";
  if (z.dtype == DType::Float32 && z.precision == Precision::Ieee)
    return "it rounds float32 to TF32, which the precision setting does not allow";
  if (!rounds_to_tensor_cores(z)) return "it is for float32, bfloat16 and float16";
  if (const char* reason = cuda_extents_decline(z)) return reason;
  if (const char* reason = first_layer_cores_decline(z)) return reason;
  return blocks_decline(z, pass, CudaAlgorithm::FirstLayerCores);
}
const char* share_nothing(const ConvProblem& z) {
  if (z.stride_h >= z.r && z.stride_w >= z.s) return "outputs that share no input gain nothing from a box of it";
  return nullptr;
}
const char* first_layer_cores_yield(const ConvProblem& z, Pass, const CudaTraits&) { return share_nothing(z); }
const char* first_layer_declines(const ConvProblem& z, Pass pass, const CudaTraits&) {
  if (z.groups != 1 || z.c > kFirstChannels) return "it is for up to 4 input channels in one group";
  if (const char* reason = cuda_extents_decline(z)) return reason;
  if (const char* reason = window_declines(z, pass)) return reason;
  return blocks_decline(z, pass, CudaAlgorithm::FirstLayer);
}
const char* first_layer_yields(const ConvProblem& z, Pass, const CudaTraits& traits) {
  if (rounds_to_tensor_cores(z) && traits.capability >= 80) return "the tensor cores multiply faster";
  return share_nothing(z);
}

const char* direct_declines(const ConvProblem& z, Pass pass, const CudaTraits&) {
  return blocks_decline(z, pass, CudaAlgorithm::Direct);
}
const char* direct_yields(const ConvProblem& z, Pass, const CudaTraits&) {
  if (z.groups == 1) return "it is for small groups: a tile is faster";
  if (z.group_c() > kFewChannels && z.group_k() > kFewChannels) return "groups of more than 8 channels fill a tile";
  return nullptr;
}

const char* tensor_cores_decline(const ConvProblem& z, Pass pass, const CudaTraits& traits) {
  if (traits.capability < 80) return "it is for compute capability 8.0 and later";
  if ((z.dtype == DType::Float32 && z.precision == Precision::Ieee) || z.dtype == DType::Complex64)
    return "it rounds float32 to TF32, which the precision setting does not allow";
  return blocks_decline(z, pass, CudaAlgorithm::TensorCores);
}
const char* three_tf32_declines(const ConvProblem& z, Pass pass, const CudaTraits& traits) {
  if (traits.capability < 80) return "it is for compute capability 8.0 and later";
  if (z.dtype != DType::Float32) return "it is for float32";
  if (const char* reason = parts_decline(z, pass)) return reason;
  return blocks_decline(z, pass, CudaAlgorithm::ThreeTF32);
}
const char* three_tf32_yields(const ConvProblem& z, Pass pass, const CudaTraits& traits) {
  const int64_t c = traits.capability;
  if (c != 80 && c != 90 && c != 100 && c != 103)
    return "three products of TF32 are faster than one of float32 only where TF32 is eight times as fast: 8.0, 9.0, "
           "10.0, 10.3";
  if (cuda_shape(z, pass).channels == 1) return "a group of one channel is filled up with zeros to four";
  return nullptr;
}
const char* multiply_add_declines(const ConvProblem& z, Pass pass, const CudaTraits&) {
  return blocks_decline(z, pass, CudaAlgorithm::MultiplyAdd);
}

// float64's large one would not fit into shared memory; multiply-adds of 16-bit numbers are for old devices alone.
bool has_tiles(CudaAlgorithm algorithm, int64_t real_bytes) {
  return real_bytes == 4 || (real_bytes == 2 && algorithm == CudaAlgorithm::TensorCores);
}

// Whether the operands are read in vectors along channels, however they lie: the tensor cores of up to 32 bits. What
// reads number by number finds neighbours in NCHW too.
bool reads_along_channels(CudaAlgorithm algorithm, int64_t real_bytes) {
  return real_bytes <= 4 && (algorithm == CudaAlgorithm::TensorCores || algorithm == CudaAlgorithm::ThreeTF32);
}

// How many products the device multiplies while it writes and reads again one part of a sum: 8 bytes (16 of float64) at
// 3 TB/s against what the kernels are expected to reach.
int64_t cost_of_part(const ConvProblem& z, CudaAlgorithm algorithm) {
  const bool wide = accumulator_bytes(z.dtype) / parts_of(z.dtype) == 8;
  if (algorithm == CudaAlgorithm::ThreeTF32) return 110;               // 80 TFLOP/s
  if (algorithm != CudaAlgorithm::TensorCores) return wide ? 80 : 70;  // 30, 50
  return wide ? 130 : element_bytes(z.dtype) == 2 ? 480 : 300;         // 50, 360, 220
}

// Into how many parts a sum of forward or input_grad is cut: from the shape without N, for its bits follow from it. As
// many as the smallest tiles of one image need to fill a device. Where a block cannot form all parts of a sum, N images
// pay N times for adding them: then so few that it costs at most a quarter of the main loop.
int64_t part_count(const ConvProblem& z, const CudaShape& shape, CudaAlgorithm algorithm, bool free) {
  const int64_t positions = shape.gemm_n / max_of(1, z.n);
  const int64_t blocks =
      max_of(1, product(ceil_div(shape.gemm_m, 64), ceil_div(positions, 64), z.groups, shape.phases()));
  const int64_t most = min_of(kCudaMostParts, kCudaMultiprocessors / blocks);
  const int64_t shortest = free ? kCudaShortestPart : max_of(kCudaShortestPart, 4 * cost_of_part(z, algorithm));
  return max_of(1, min_of(most, shape.gemm_k / shortest));
}
int64_t part_count_of_weights(const ConvProblem& z, const CudaShape& shape, const CudaPlan& plan,
                              int64_t result_bytes) {
  const int64_t blocks =
      product(ceil_div(shape.gemm_m, plan.product.tile_m), ceil_div(shape.gemm_n, plan.product.tile_n), z.groups);
  const int64_t most = max_of(1, kPartialBytes / max_of(1, result_bytes));
  return min_of(min_of(ceil_div(kEnoughBlocks, max_of(1, blocks)), most), shape.gemm_k / kCudaShortestPart);
}

// How many products one chain may have in the bounds of accuracy, where a part is one chain and there are two at least:
// then a block that forms all parts of a sum needs no more registers. 0: chains have to be shorter.
int64_t longest_chain(const ConvProblem& z, CudaAlgorithm algorithm) {
  if (algorithm != CudaAlgorithm::TensorCores) return 0;
  return z.dtype == DType::BFloat16 ? kCudaLongestChain : z.dtype == DType::Float32 ? kCudaExtent : 0;
}

bool forms_all_parts(const ConvProblem& z, const CudaPlan& plan) {
  return plan.parts == 1 || plan.product.part_steps * cuda_block_k(z.dtype) <= longest_chain(z, plan.algorithm);
}

// Tiles: 128 x 128 where there are enough of them and gemm_m fills them nearly as well
// as 64 x 64; 32 x 128 for few channels of the result. No bit depends on it, so N may count.
void choose_tile(Pass pass, const CudaShape& shape, int64_t groups, int64_t parts, bool choice,
                 const CudaChoices& wanted, CudaPlan* plan) {
  const int64_t m = shape.gemm_m;
  const int64_t larges = product(ceil_div(shape.gemm_n, 128), ceil_div(m, 128), groups, shape.phases(), parts);
  const bool enough =
      pass == Pass::WeightGrad ? product(shape.gemm_n, ceil_div(m, 128)) >= 256 : larges >= kEnoughLarge;
  const bool large = choice && m > 64 && enough && 4 * round_up(m, 128) <= 5 * round_up(m, 64);
  const bool narrow = choice && m <= 32 && shape.gemm_n > 64;
  plan->product.tile_m = wanted.tile_m ? wanted.tile_m : large ? 128 : narrow ? 32 : 64;
  plan->product.tile_n = wanted.tile_n ? wanted.tile_n : large || narrow ? 128 : 64;
}

void prepare_direct(const CudaPlanInput& input, CudaPlan* plan) {
  const ConvProblem& z = input.problem;
  const Pass pass = input.pass;
  plan->splits = plan->parts = 1;
  const int64_t positions = product(z.n, z.p, z.q);
  if (pass == Pass::WeightGrad) {
    // Neighbouring threads: pairs of channels in channels_last, else positions.
    const int64_t pairs = product(z.k, z.group_c()), tap_blocks = ceil_div(product(z.r, z.s), kCudaDirectTaps);
    const int64_t blocks = product(ceil_div(pairs, cuda_direct_pairs(z)), tap_blocks);
    plan->splits = max_of(1, min_of(min_of(ceil_div(4 * kEnoughBlocks, max_of(1, blocks)), positions / 1024), 256));
    plan->parts = plan->splits;
    plan->steps = ceil_div(positions, plan->splits);
    plan->blocks = product(blocks, plan->splits);
    const int64_t parts = plan->splits > 1 ? plan->splits : 0;
    plan->workspace_bytes = product(parts, z.weight_elements(), accumulator_bytes(z.dtype));
    return;
  }
  const int64_t rows = pass == Pass::Forward ? z.group_k() : z.group_c();
  plan->direct_channels = rows % 4 == 0 ? 4 : rows % 2 == 0 ? 2 : 1;
  const int64_t results = pass == Pass::Forward ? z.output_elements() : z.input_elements();
  plan->blocks = ceil_div(results / plan->direct_channels, kCudaDirectThreads);
}

void describe_direct(Pass pass, const CudaPlan& plan, Facts* facts) {
  if (pass != Pass::WeightGrad) add_facts(facts, {{"channels", plan.direct_channels}});
}

// ---- tensor_cores, three_tf32, multiply_add

// Weights that lie as [group][gemm_m][taps][channels] already are read in place: channels_last, and 1x1 kernels.
bool weights_lie_packed(const CudaPlanInput& input, const CudaShape& shape, int64_t vector) {
  const ConvProblem& z = input.problem;
  const TensorRef& w = input.operands.weight;
  const bool forward = input.pass == Pass::Forward;
  const int64_t rows = forward ? z.group_k() : z.group_c(), channels = forward ? z.group_c() : z.group_k();
  const int64_t stride_m = w.stride[forward ? 0 : 1], stride_c = w.stride[forward ? 1 : 0];
  const int64_t taps = z.r * z.s, in_16_bytes = 16 / element_bytes(z.dtype);
  if (is_complex(z.dtype) || channels % vector != 0) return false;  // parts are apart; padded with zeros
  return (forward || taps == 1) && shape.phases() == 1 && stride_c == 1 && (z.s == 1 || w.stride[3] == channels) &&
         (z.r == 1 || w.stride[2] == channels * z.s) && channels * taps % in_16_bytes == 0 &&
         stride_m % in_16_bytes == 0 && (z.groups == 1 || z.group_k() * w.stride[0] == rows * stride_m) &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

// Places copies of the operands that cannot be read in vectors in the workspace, from plan->partial_offset on, and
// parts of sums behind them.
void plan_copies(const CudaPlanInput& in, int64_t real_bytes, CudaPlan* plan) {
  const ConvProblem& z = in.problem;
  const auto plan_copy = [&](bool input, CudaOperand* operand) {
    const int64_t channels = input ? z.group_c() : z.group_k(), h = input ? z.h : z.p, w = input ? z.w : z.q;
    operand->channels = round_up(channels, plan->product.vector);
    const bool readable =
        reads_vectors(input ? in.operands.input : in.operands.output, z.n, h, w, channels, real_bytes);
    operand->offset = plan->partial_offset;
    operand->bytes = readable ? 0 : round_up(product(z.n, h, w, z.groups, operand->channels, real_bytes), 256);
    plan->partial_offset += operand->bytes;
  };
  plan_copy(in.pass != Pass::InputGrad, &plan->product.source);
  if (in.pass == Pass::WeightGrad) plan_copy(false, &plan->product.grad);
}

// Vectors where channels lie so, or are copied so. Else forward and input_grad read positions, which are neighbours in
// NCHW, and weight_grad channels where both operands have them side by side.
CudaLoad choose_load(const CudaPlanInput& input, int64_t real_bytes, const CudaPlan& plan) {
  const ConvProblem& z = input.problem;
  if (plan.product.vector > 1) return CudaLoad::Vectors;
  if (is_complex(z.dtype)) return CudaLoad::Positions;  // the parts of numbers are no neighbours
  const TensorRef &x = input.operands.input, &y = input.operands.output;
  const bool of_x = reads_vectors(x, z.n, z.h, z.w, z.group_c(), real_bytes),
             of_y = reads_vectors(y, z.n, z.p, z.q, z.group_k(), real_bytes);
  if (input.pass != Pass::WeightGrad)
    return (input.pass == Pass::Forward ? of_x : of_y) ? CudaLoad::Vectors : CudaLoad::Positions;
  if (plan.algorithm == CudaAlgorithm::TensorCores && of_x && of_y) return CudaLoad::Vectors;
  return x.stride[1] == 1 && y.stride[1] == 1 ? CudaLoad::Channels : CudaLoad::Positions;
}

// Neighbours in the result are channels, or positions of an image: of several phases they are not.
void choose_stores(const CudaPlanInput& input, bool one_phase, int64_t real_bytes, CudaPlan* plan) {
  const ConvProblem& z = input.problem;
  const TensorRef& to = input.result();
  if (is_complex(z.dtype)) return;  // the parts of numbers are no neighbours
  if (input.pass == Pass::WeightGrad) {
    plan->product.stores_vectors = plan->splits == 1 && reads_vectors(to, z.k, z.r, z.s, z.group_c(), real_bytes);
    return;
  }
  const bool forward = input.pass == Pass::Forward;
  const int64_t h = forward ? z.p : z.h, w = forward ? z.q : z.w, vector = 16 / real_bytes;
  const bool rows_together = h == 1 || to.stride[2] == w;
  const bool by_positions =
      one_phase && to.stride[3] == 1 && reinterpret_cast<uintptr_t>(to.data) % 16 == 0 && to.stride[1] % vector == 0 &&
      (z.n == 1 || to.stride[0] % vector == 0) &&
      (rows_together ? product(h, w) % vector == 0 : w % vector == 0 && to.stride[2] % vector == 0);
  plan->product.stores_along_m = to.stride[1] == 1 && (forward ? z.k : z.c) > 1;
  plan->product.stores_vectors =
      plan->splits == 1 &&
      (by_positions || reads_vectors(to, z.n, h, w, forward ? z.group_k() : z.group_c(), real_bytes));
}

void prepare_product(const CudaPlanInput& input, CudaPlan* to) {
  const ConvProblem& z = input.problem;
  const Pass pass = input.pass;
  CudaPlan& plan = *to;
  const int64_t block_k = cuda_block_k(z.dtype), real_bytes = element_bytes(z.dtype) / parts_of(z.dtype);
  plan.product.vector = reads_along_channels(plan.algorithm, real_bytes) ? 16 / real_bytes : 1;
  const CudaShape shape = cuda_shape(z, pass, plan.product.vector);
  const int64_t steps = max_of(1, ceil_div(shape.gemm_k, block_k));
  const int64_t results = pass == Pass::WeightGrad ? z.weight_elements()
                          : pass == Pass::Forward  ? z.output_elements()
                                                   : z.input_elements();
  const int64_t result_bytes = product(results, accumulator_bytes(z.dtype));
  const bool choice = has_tiles(plan.algorithm, real_bytes);
  const CudaChoices& wanted = input.wanted;
  const auto cut = [&](int64_t parts) {
    plan.product.part_steps = ceil_div(steps, min_of(max_of(1, parts), steps));
    plan.parts = ceil_div(steps, plan.product.part_steps);
  };
  // weight_grad's parts follow from its tiles, tiles of the others from their parts.
  bool one_block = wanted.splits == 1;
  if (wanted.splits || wanted.parts || pass == Pass::WeightGrad) {
    cut(wanted.parts ? wanted.parts : wanted.splits);
  } else {
    cut(part_count(z, shape, plan.algorithm, true));
    if (plan.parts > 1 && !forms_all_parts(z, plan))
      cut(min_of(kCudaMostParts, ceil_div(shape.gemm_k, kCudaLongestChain)));  // shorter ones may be chains
    if (!forms_all_parts(z, plan)) {
      cut(part_count(z, shape, plan.algorithm, false));
    } else {  // blocks share sums where they would not fill half of the device otherwise
      const int64_t blocks = product(ceil_div(shape.gemm_m, 64), ceil_div(shape.gemm_n, 64), z.groups, shape.phases());
      one_block = 2 * blocks > kCudaMultiprocessors;
    }
  }
  plan.splits = one_block ? 1 : plan.parts;
  choose_tile(pass, shape, z.groups, plan.splits, choice, wanted, &plan);
  if (pass == Pass::WeightGrad && !wanted.splits) {
    cut(part_count_of_weights(z, shape, plan, result_bytes));
    plan.splits = plan.parts;
  }
  plan.steps = plan.splits > 1 ? plan.product.part_steps : steps;
  if (plan.algorithm == CudaAlgorithm::TensorCores && real_bytes < 8)
    plan.product.chain_steps = pass != Pass::WeightGrad && plan.parts > 1 && forms_all_parts(z, plan)
                                   ? plan.product.part_steps
                                   : kChain / block_k;
  if (pass != Pass::WeightGrad) {
    plan.product.pitch = steps * block_k;
    if (!weights_lie_packed(input, shape, plan.product.vector))
      plan.product.packed_bytes =
          round_up(product(shape.phases(), z.groups, shape.gemm_m, plan.product.pitch, real_bytes), 256);
  }
  plan.blocks = product(ceil_div(shape.gemm_m, plan.product.tile_m), ceil_div(shape.gemm_n, plan.product.tile_n),
                        z.groups, shape.phases(), plan.splits);
  plan.partial_offset = plan.product.packed_bytes;
  if (plan.product.vector > 1) plan_copies(input, real_bytes, &plan);
  plan.workspace_bytes = plan.partial_offset + (plan.splits > 1 ? product(plan.splits, result_bytes) : 0);
  plan.product.load = choose_load(input, real_bytes, plan);
  choose_stores(input, shape.phases() == 1, real_bytes, &plan);
}

void describe_product(Pass pass, const CudaPlan& plan, Facts* facts) {
  constexpr const char* kLoads[] = {"vectors of channels", "channels", "positions"};
  const CudaProduct& own = plan.product;
  add_facts(facts, {{"sums", std::to_string(own.tile_m) + "x" + std::to_string(own.tile_n)}});
  if (own.chain_steps > 0) add_facts(facts, {{"chain", own.chain_steps}});
  add_facts(facts, {{"loads", kLoads[int(own.load)]}});
  describe_operands(pass, own, facts);
  add_facts(facts, {{"stores", describe_stores(own.stores_vectors)}});
}

}  // namespace

void describe_operands(Pass pass, const CudaProduct& product, Facts* facts) {
  add_facts(facts, {{"source", product.source.bytes > 0 ? "copied" : "in place"}});
  if (pass == Pass::WeightGrad) {
    add_facts(facts, {{"gradient", product.grad.bytes > 0 ? "copied" : "in place"}});
  } else {
    add_facts(facts, {{"weights", product.packed_bytes > 0 ? "packed" : "in place"}});
  }
}

CudaPlan make_cuda_plan(const ConvProblem& z, Pass pass, const CudaCandidate& candidate, const Buffers* operands) {
  const Buffers seen = operands ? *operands : usual_operands(z);
  CudaPlan plan{};
  plan.algorithm = candidate.algorithm;
  candidate.prepare({z, pass, seen, candidate.wanted}, &plan);
  return plan;
}

Facts describe_cuda_plan(Pass pass, const CudaPlan& plan) {
  Facts facts;
  cuda_candidate(plan.algorithm).describe(pass, plan, &facts);
  add_facts(&facts, {{"parts", plan.parts}});
  add_facts(&facts, {{"splits", plan.splits}});
  return facts;
}

const char* cuda_choices_decline(const ConvProblem& z, Pass pass, const CudaCandidate& candidate) {
  const CudaChoices& wanted = candidate.wanted;
  const CudaAlgorithm algorithm = candidate.algorithm;
  if (wanted.tile_m < 0 || wanted.tile_n < 0 || wanted.splits < 0 || wanted.parts < 0)
    return "a tile or a number of parts is negative";
  if (!wanted.tile_m && !wanted.tile_n && !wanted.splits && !wanted.parts) return nullptr;
  if (is_window(algorithm) || algorithm == CudaAlgorithm::FirstLayerCores || algorithm == CudaAlgorithm::Direct)
    return "its tiles and parts follow from the shape";
  if (algorithm == CudaAlgorithm::Wgmma) return wgmma_choices_decline(z, pass, wanted);
  if (wanted.parts && wanted.splits != wanted.parts && wanted.splits != 1)
    return "a sum's parts are formed by splits = 1 block, or by as many as there are parts";
  if (wanted.parts > wanted.splits &&
      (pass == Pass::WeightGrad || !forms_all_parts(z, make_cuda_plan(z, pass, candidate))))
    return "its blocks cannot form several parts of a sum";
  if (!wanted.tile_m && !wanted.tile_n) return nullptr;
  const auto is = [&](int64_t m, int64_t n) { return wanted.tile_m == m && wanted.tile_n == n; };
  if (is(64, 64)) return nullptr;
  const bool choice = has_tiles(algorithm, element_bytes(z.dtype) / parts_of(z.dtype));
  if (choice && (is(128, 128) || is(32, 128))) return nullptr;
  return choice ? "it has tiles of 64 x 64, 128 x 128 and 32 x 128" : "it has tiles of 64 x 64";
}

const char* cuda_extents_decline(const ConvProblem& z) {
  const int64_t extent = max_of(z.h + z.pad_top + z.pad_bottom, z.w + z.pad_left + z.pad_right);
  const int64_t reach = max_of(product(z.r, z.dilation_h), product(z.s, z.dilation_w));
  const int64_t largest = max_of(max_of(extent, reach), max_of(z.n, max_of(z.c, z.k)));
  if (largest >= kCudaExtent || max_of(z.stride_h, z.stride_w) >= kCudaExtent)
    return "a size, a stride or a padded extent is 2^30 or more";
  return nullptr;
}

const char* cuda_bytes_decline(const ConvProblem& z, Pass pass, CudaAlgorithm algorithm) {
  const Buffers apart{};  // no operand whose channels are neighbours: all that can be copied is
  constexpr int64_t kMostWorkspace = int64_t(1) << 42;
  if (make_cuda_plan(z, pass, cuda_candidate(algorithm), &apart).workspace_bytes > kMostWorkspace)
    return "it would take more than 4 TiB of workspace";
  return nullptr;
}

// The choice of algorithm on one page: the first that neither declines nor yields runs.
const CudaCandidate kCudaCandidates[kCudaCandidateCount] = {
    {CudaAlgorithm::Depthwise, "depthwise", depthwise_declines, never_yields, prepare_window, describe_window},
    {CudaAlgorithm::Grouped, "grouped", grouped_declines, grouped_yields, prepare_window, describe_window},
    {CudaAlgorithm::FirstLayerCores, "first_layer_cores", first_layer_cores_decline, first_layer_cores_yield,
     prepare_first_layer_cores, describe_first_layer_cores},
    {CudaAlgorithm::FirstLayer, "first_layer", first_layer_declines, first_layer_yields, prepare_window,
     describe_window},
    {CudaAlgorithm::Direct, "direct", direct_declines, direct_yields, prepare_direct, describe_direct},
    {CudaAlgorithm::Wgmma, "wgmma", wgmma_declines, wgmma_yields, prepare_wgmma, describe_wgmma},
    {CudaAlgorithm::TensorCores, "tensor_cores", tensor_cores_decline, never_yields, prepare_product, describe_product},
    {CudaAlgorithm::ThreeTF32, "three_tf32", three_tf32_declines, three_tf32_yields, prepare_product, describe_product},
    {CudaAlgorithm::MultiplyAdd, "multiply_add", multiply_add_declines, never_yields, prepare_product,
     describe_product},
};

const CudaCandidate* choose_cuda(const ConvProblem& problem, Pass pass, const CudaTraits& traits, const char* forced,
                                 const char** reason) {
  const bool any = strcmp(forced, "auto") == 0;
  *reason = "no algorithm has this name";
  for (const CudaCandidate& candidate : kCudaCandidates) {
    if (!any && strcmp(forced, candidate.name) != 0) continue;
    *reason = candidate.declines(problem, pass, traits);
    if (any && *reason == nullptr) *reason = candidate.yields(problem, pass, traits);
    if (*reason == nullptr) return &candidate;
  }
  return nullptr;
}

}  // namespace conv_ext
