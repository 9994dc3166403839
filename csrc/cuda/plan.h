// How CUDA computes a problem: the ordered list of its algorithms with their reasons for "no", tiles and splits.
//
// Start reading at kCudaCandidates in cuda/plan.cpp. As on the CPU, forward and input_grad choose without N, so that an
// image gives the same bits in any batch; weight_grad chooses from the whole shape. Nothing depends on how many
// processors the device has.
#pragma once

#include "../common/indexing.h"
#include "../common/buffers.h"
#include "../common/facts.h"
#include "window/plan.h"

namespace conv_ext {

enum class CudaAlgorithm : int32_t {
  Depthwise,
  Grouped,
  FirstLayerCores,
  FirstLayer,
  Direct,
  Wgmma,
  TensorCores,
  ThreeTF32,
  MultiplyAdd
};

// What the plan may know of a device.
struct CudaTraits {
  int64_t capability;  // 90: compute capability 9.0
};

// An operand that is read in vectors along channels: in place, or from a copy in the workspace (cuda/pack.cuh).
struct CudaOperand {
  int64_t channels;  // of a group, with zeros up to whole vectors
  int64_t offset;    // of the copy in the workspace
  int64_t bytes;     // of the copy; 0: it is read in place
};

// What neighbouring threads read of the operands: neighbouring vectors of 16 bytes along channels, neighbouring
// channels, or neighbouring positions. It changes no order of a sum.
enum class CudaLoad : int32_t { Vectors, Channels, Positions };

// tensor_cores, three_tf32, multiply_add and wgmma: products of matrices.
struct CudaProduct {
  int64_t tile_m, tile_n;           // sums in a block
  int64_t part_steps, chain_steps;  // of a part of a sum, which is made of chains; 0 where there are none
  int64_t vector;  // numbers that are read together along channels: 16 bytes of them, or 1 where it makes no odds
  int64_t pitch;   // numbers of a row of packed weights
  CudaLoad load;   // of the input and the upstream gradient; wgmma's operands are brought by TMA
  // Whether rows of gemm_m are neighbours in the result (else columns are), and whether neighbours are written in whole
  // vectors of 16 bytes. Parts of sums are not.
  bool stores_along_m, stores_vectors;
  // The workspace: packed weights (0: they are read in place; weight_grad has none), then the copies of operands: what
  // forward and input_grad gather from, weight_grad's input, and its upstream gradient.
  int64_t packed_bytes;
  CudaOperand source, grad;
};

// What will run: all that a launcher does not find in the problem. Each algorithm fills one of the three structs at the
// end; the others are zeros.
struct CudaPlan {
  CudaAlgorithm algorithm;
  int64_t blocks;
  int64_t parts;          // a sum is cut into so many, which are added in their order,
  int64_t splits, steps;  // by so many blocks, each of so many steps: by one for each part, or by one for all
  int64_t workspace_bytes;
  int64_t partial_offset;  // of the parts of sums, behind all else in the workspace
  CudaProduct product;
  CudaWindow window;        // depthwise, grouped, first_layer, first_layer_cores
  int64_t direct_channels;  // direct: channels of the result that a thread computes
};

// What somebody wants instead of the plan's own choice, to measure it; 0: nothing. A result may have other bits then.
struct CudaChoices {
  int64_t tile_m = 0, tile_n = 0;
  int64_t splits = 0;  // at most; where the algorithm cuts reductions
  int64_t parts = 0;   // at most; of a sum that one block forms (splits = 1), or as many as there are parts
};

// All that the sizes of a plan may depend on. Of the operands it sees addresses and strides.
struct CudaPlanInput {
  const ConvProblem& problem;
  Pass pass;
  const Buffers& operands;
  CudaChoices wanted;

  // What forward and input_grad gather from, and what a pass writes.
  const TensorRef& source() const { return pass == Pass::InputGrad ? operands.output : operands.input; }
  const TensorRef& result() const {
    return pass == Pass::Forward ? operands.output : pass == Pass::InputGrad ? operands.input : operands.weight;
  }
};

struct CudaCandidate {
  CudaAlgorithm algorithm;
  const char* name;
  // As in cpu/candidates.h.
  const char* (*declines)(const ConvProblem&, Pass, const CudaTraits&);
  const char* (*yields)(const ConvProblem&, Pass, const CudaTraits&);
  void (*prepare)(const CudaPlanInput&, CudaPlan*);
  void (*describe)(Pass, const CudaPlan&, Facts*);
  CudaChoices wanted = {};
};

constexpr int kCudaCandidateCount = 9;
extern const CudaCandidate kCudaCandidates[kCudaCandidateCount];  // in the order of CudaAlgorithm
inline const CudaCandidate& cuda_candidate(CudaAlgorithm algorithm) { return kCudaCandidates[int(algorithm)]; }

// Where nobody has shown the operands: dense, in the layout that the problem names, at aligned addresses.
inline Buffers usual_operands(const ConvProblem& z) {
  const TensorSizes sizes = sizes_of(z);
  Buffers usual{};
  set_dense(sizes.input, z.channels_last, usual.input.stride);
  set_dense(sizes.weight, z.channels_last, usual.weight.stride);
  set_dense(sizes.output, z.channels_last, usual.output.stride);
  return usual;
}

// As choose() in cpu/candidates.h.
const CudaCandidate* choose_cuda(const ConvProblem& problem, Pass pass, const CudaTraits& traits, const char* forced,
                                 const char** reason);
// The operands decide what has to be copied or packed, and how wide it is read and written; nullptr: usual_operands.
CudaPlan make_cuda_plan(const ConvProblem& problem, Pass pass, const CudaCandidate& candidate,
                        const Buffers* operands = nullptr);
Facts describe_cuda_plan(Pass pass, const CudaPlan& plan);
// Why the algorithm has no kernel for what candidate.wanted names; nullptr where it has.
const char* cuda_choices_decline(const ConvProblem& problem, Pass pass, const CudaCandidate& candidate);

// Whether operands of products are copied or packed, for describe.
void describe_operands(Pass pass, const CudaProduct& product, Facts* facts);
inline const char* describe_stores(bool vectors) { return vectors ? "vectors" : "numbers"; }

// depthwise, grouped and first_layer, in cuda/window/plan.cpp: the same kernels for three kinds of layers.
inline bool is_window(CudaAlgorithm algorithm) {
  return algorithm == CudaAlgorithm::Depthwise || algorithm == CudaAlgorithm::Grouped ||
         algorithm == CudaAlgorithm::FirstLayer;
}
const char* window_declines(const ConvProblem& problem, Pass pass);
void prepare_window(const CudaPlanInput& input, CudaPlan* plan);
void describe_window(Pass pass, const CudaPlan& plan, Facts* facts);
// first_layer_cores, there as well: forward of first layers on the tensor cores.
const char* first_layer_cores_decline(const ConvProblem& problem);
void prepare_first_layer_cores(const CudaPlanInput& input, CudaPlan* plan);
void describe_first_layer_cores(Pass pass, const CudaPlan& plan, Facts* facts);

// The kernels count rows, columns, images and channels in 32 bits. Every algorithm asks this first: the sizes that it
// lets through can be added, and multiplied in pairs, without overflow.
constexpr int64_t kCudaExtent = int64_t(1) << 30;
const char* cuda_extents_decline(const ConvProblem& problem);
// Whether what is packed, copied and summed in parts has a number of bytes, however the operands lie.
const char* cuda_bytes_decline(const ConvProblem& problem, Pass pass, CudaAlgorithm algorithm);

// Sizes that plan and kernels share.
constexpr int64_t kCudaMultiprocessors = 132;  // of the devices that the plan has in mind
constexpr int64_t kCudaMostParts = 8;          // of a sum of forward or input_grad
constexpr int64_t kCudaShortestPart = 512;     // numbers
// So many products of bfloat16 may be one chain on mma.sync, as a part of a sum of two parts at least: positive numbers
// lose half of float32's bound on Ampere (1024 would lose 0.8 of it), a quarter on Hopper.
constexpr int64_t kCudaLongestChain = 768;
inline int64_t cuda_block_k(DType dtype) { return element_bytes(dtype) == 2 ? 32 : 16; }  // numbers of one step
constexpr int kCudaDirectThreads = 128, kCudaDirectTaps = 9;  // of a block; the weights of a pair that it computes
// Pairs of channels that a block of direct's weight_grad computes, side by side in its threads.
inline int64_t cuda_direct_pairs(const ConvProblem& z) { return z.channels_last ? 32 : 1; }

// The sizes of the product of matrices that a pass is; of the phases of a strided input_grad those of the largest.
struct CudaShape {
  int64_t gemm_m, gemm_n, gemm_k;  // of a group
  int64_t phases_h, phases_w;
  int64_t channels;  // of a group of the source, with zeros up to whole vectors
  int64_t phases() const { return product(phases_h, phases_w); }
};
// Of any problem: products stop at kHuge. `vector`: channels of a group are counted with the zeros up to a multiple of
// it.
inline CudaShape cuda_shape(const ConvProblem& z, Pass pass, int64_t vector = 1) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  CudaShape shape{};
  shape.phases_h = max_of(1, vertical.phases());
  shape.phases_w = max_of(1, horizontal.phases());
  if (pass == Pass::WeightGrad) {
    shape.channels = round_up(z.group_c(), vector);
    shape.gemm_m = z.group_k();
    shape.gemm_n = product(shape.channels, z.r, z.s);
    shape.gemm_k = product(z.n, z.p, z.q);
    return shape;
  }
  // Taps of a phase come round after stride / gcd(stride, dilation).
  const auto taps = [](const Axis& a) {
    return a.inverse ? ceil_div(a.taps, a.stride / greatest_common_divisor(a.stride, a.dilation)) : a.taps;
  };
  const bool forward = pass == Pass::Forward;
  shape.channels = round_up(forward ? z.group_c() : z.group_k(), vector);
  shape.gemm_m = forward ? z.group_k() : z.group_c();
  shape.gemm_n = product(z.n, vertical.longest_count(), horizontal.longest_count());
  shape.gemm_k = product(taps(vertical), taps(horizontal), shape.channels);
  return shape;
}

// Where parts stand for float32, one product of TF32's may be off by 2^-21, eight times float32's own rounding, and the
// tensor cores cut sums off; a sum's error stays within float32's bound, 2 sqrt(L) roundings, from L = 32 products on.
constexpr int64_t kShortestSumOfParts = 32;
inline const char* parts_decline(const ConvProblem& z, Pass pass) {
  return cuda_shape(z, pass).gemm_k < kShortestSumOfParts
             ? "fewer than 32 products of parts are not as accurate as float32's"
             : nullptr;
}

// Whether vectors of 16 bytes along channels can be read in place from an n x c x h x w tensor of groups of `channels`:
// every address is a multiple of theirs.
inline bool reads_vectors(const TensorRef& t, int64_t n, int64_t h, int64_t w, int64_t channels, int64_t real_bytes) {
  const int64_t vector = 16 / real_bytes;
  const auto steps_by_vectors = [&](int64_t size, int64_t stride) { return size <= 1 || stride % vector == 0; };
  return t.stride[1] == 1 && channels % vector == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         steps_by_vectors(n, t.stride[0]) && steps_by_vectors(h, t.stride[2]) && steps_by_vectors(w, t.stride[3]);
}

}  // namespace conv_ext
