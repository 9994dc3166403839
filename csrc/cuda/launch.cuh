// What the launchers of the three passes share: from a ConvProblem to a kernel's parameters, complex numbers by parts.
#pragma once

#include <type_traits>

#include "direct.cuh"
#include "launch.h"
#include "passes.cuh"

namespace conv_ext {
namespace cuda {

inline Axis axis_of(const conv_ext::Axis& a) {
  return {a.inverse, int32_t(a.taps), int32_t(a.output), int32_t(a.stride), int32_t(a.dilation), int32_t(a.pad)};
}
inline Strides strides_of(const TensorRef& t) { return {t.stride[0], t.stride[1], t.stride[2], t.stride[3]}; }

// One product of real tensors: a complex pass is made of four.
struct RealCall {
  const ConvProblem& z;
  const CudaPlan& plan;
  Buffers b;
  void* stream;
  bool add, negative;

  char* workspace() const { return static_cast<char*>(b.workspace); }
};

// The residual has the result's strides, where they mean something: launch.h asks for that.
template <class T, class Sum>
Finish<T, Sum> finish_of(const Buffers& b) {
  const Epilogue& e = b.epilogue;
  Finish<T, Sum> finish{};
  finish.activation = e.activation;
  finish.low = Sum(e.low);
  finish.high = Sum(e.high);
  if (e.residual.data == nullptr) return finish;
  finish.adds = 1;
  finish.residual = reinterpret_cast<intptr_t>(e.residual.data) - reinterpret_cast<intptr_t>(b.output.data);
  finish.vectors = finish.residual % 16 == 0;  // as the result's, which are aligned
  return finish;
}

template <class T, class Sum>
Result<T, Sum> result_of(const RealCall& call, const TensorRef& to, int64_t stride_m) {
  return {static_cast<T*>(to.data),
          nullptr,
          stride_m,
          static_cast<const T*>(call.b.bias),
          call.b.bias_stride,
          finish_of<T, Sum>(call.b),
          call.add,
          call.negative,
          false,
          false};
}

// The strides of a contiguous tensor whose dimensions, the slowest first, are those that `order` names.
inline Strides strides_in_order(const int64_t (&size)[4], const int32_t (&order)[4]) {
  int64_t stride[4], next = 1;
  for (int i = 3; i >= 0; --i) {
    stride[order[i]] = next;
    next *= size[order[i]];
  }
  return {stride[0], stride[1], stride[2], stride[3]};
}

// The order in which parts of outputs' and of weights' sums lie in the workspace: NCHW, KRSC.
constexpr int32_t kOrderOfOutputs[4] = {0, 1, 2, 3}, kOrderOfWeights[4] = {0, 2, 3, 1};

// Adds up the parts that a split reduction has left in the workspace.
template <class T, class Sum, class Again>
int launch_reduce(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], const int32_t (&order)[4],
                  int bias_dimension, const Sum* partial, const Again& again) {
  ReduceParameters<T, Sum, Again> p{};
  int64_t elements = 1;
  for (int i = 0; i < 4; ++i) {
    p.order[i] = order[i];
    p.size[i] = size[order[i]];
    p.stride[i] = to.stride[order[i]];
    p.has_bias[i] = order[i] == bias_dimension;
    elements *= size[i];
  }
  p.splits = int32_t(call.plan.splits);
  p.partial = partial;
  p.result = result_of<T, Sum>(call, to, 0);
  p.again = again;
  constexpr int kWide = 16 / int(sizeof(Sum));
  if (p.size[3] % kWide != 0)
    return launch(reduce<T, Sum, Again, 1>, ceil_div(elements, kReduceThreads), kReduceThreads, 0, call.stream, p);
  return launch(reduce<T, Sum, Again, kWide>, ceil_div(elements / kWide, kReduceThreads), kReduceThreads, 0,
                call.stream, p);
}

// The tests' build for a device has float32's kernels and those of bfloat16 on the tensor cores alone, and takes half
// the time (bench/gpu_runner.py).
#if defined(CONV_EXT_FEW_TYPES)
constexpr bool kEveryType = false;
#else
constexpr bool kEveryType = true;
#endif

// Calls function(math): here a dtype and an algorithm become template arguments.
template <class T>
struct Type {};
template <class Function>
int with_math(const ConvProblem& z, CudaAlgorithm algorithm, const Function& function) {
  const bool cores = algorithm == CudaAlgorithm::TensorCores;
  switch (z.dtype) {
    case DType::Complex64:
    case DType::Float32:
      if (cores) return function(Type<TF32>());
      if (algorithm == CudaAlgorithm::ThreeTF32) return function(Type<ThreeTF32>());
      return function(Type<Simple<float, float>>());
    case DType::Complex128:
    case DType::Float64:
      if constexpr (kEveryType) return cores ? function(Type<Float64>()) : function(Type<Simple<double, double>>());
      break;
    case DType::BFloat16:
      if (cores) return function(Type<TensorCores<bfloat16>>());
      if constexpr (kEveryType) return function(Type<Simple<bfloat16, float>>());
      break;
    case DType::Float16:
      if constexpr (kEveryType)
        return cores ? function(Type<TensorCores<float16>>()) : function(Type<Simple<float16, float>>());
      break;
  }
  return 1;  // an error of CUDA: an invalid value
}
// The same rule as has_tiles in cuda/plan.cpp.
template <class Math>
constexpr bool has_tiles() {
  return sizeof(typename Math::Element) == 4 || (sizeof(typename Math::Element) == 2 && Math::kTensorCores);
}

// Starts the product with the plan's tile.
template <class Pass, class Math>
int launch_igemm(const RealCall& call, const typename Pass::Parameters& p) {
  const auto with_tile = [&]<class Tile>(Type<Tile>) {
    return launch(igemm<Pass, Math, Tile>, p.grid.blocks(), Tile::kThreads,
                  SharedStages<Math, Tile, kOrderOf<Pass::kLoadLeft>>::kBytes, call.stream, p);
  };
  if constexpr (has_tiles<Math>()) {
    if (call.plan.product.tile_m == LargeTile::kM) return with_tile(Type<LargeTile>());
    if (call.plan.product.tile_m == NarrowTile::kM) return with_tile(Type<NarrowTile>());
  }
  return with_tile(Type<SmallTile>());
}

// Copies an n x c x h x w tensor into the plan's place for it, if it has one there, and says where the operand lies
// then.
template <class Kind, class T = typename Kind::Source, class Element = typename Kind::Element>
int pack_operand(const RealCall& call, const CudaOperand& operand, int64_t n, int64_t h, int64_t w, int64_t channels,
                 TensorRef* tensor) {
  if (operand.bytes == 0) return 0;
  const int64_t groups = call.z.groups, slots = groups * operand.channels;
  PackSourceParameters<T, Element> p{};
  p.from = static_cast<const T*>(tensor->data);
  p.to = reinterpret_cast<Element*>(call.workspace() + operand.offset);
  p.positions = {int32_t(n),        int32_t(h),        int32_t(w),       1, 1, 0, 0,
                 tensor->stride[0], tensor->stride[2], tensor->stride[3]};
  p.stride_c = tensor->stride[1];
  p.groups = int32_t(groups);
  p.channels = int32_t(channels);
  p.padded = int32_t(operand.channels);
  p.along_channels = tensor->stride[1] == 1 && groups * channels > 1;
  using Tile = PackTile<T>;
  while ((1 << p.log_channels) < min_of(slots, Tile::kMostChannels)) ++p.log_channels;  // slots: whole vectors
  p.tile_positions = Tile::kElements >> p.log_channels;
  p.pitch = (1 << p.log_channels) + Tile::kInWord;
  p.tiles = int32_t(ceil_div(slots, 1 << p.log_channels));
  *tensor = {p.to, {h * w * slots, 1, w * slots, slots}};
  return launch(pack_channels_last<Kind>, ceil_div(n * h * w, p.tile_positions) * p.tiles, kPackThreads,
                p.tile_positions * p.pitch * int(sizeof(T)), call.stream, p);
}

// The real or the imaginary part of a complex tensor, as a real one.
inline TensorRef part_of(const TensorRef& t, int part, int64_t real_bytes) {
  TensorRef real = t;
  real.data = static_cast<char*>(t.data) + part * real_bytes;
  for (int64_t& stride : real.stride) stride *= 2;
  return real;
}

// Runs a pass on real tensors: once, or once for each product of real and imaginary parts. (a + ib) (c + id) is
// (ac - bd) + i (ad + bc); which of the three tensors is the result makes no difference to that.
template <class Run>
int run_by_parts(const ConvProblem& z, Pass pass, const CudaPlan& plan, const Buffers& b, void* stream,
                 const Run& run) {
  if (!is_complex(z.dtype)) return run(RealCall{z, plan, b, stream, false, false});
  const int64_t bytes = element_bytes(z.dtype) / 2;
  for (int first = 0; first < 2; ++first)
    for (int second = 0; second < 2; ++second) {
      const int result = first ^ second;  // of both parts, the one with the real part of the first operand is first
      const int input = pass == Pass::InputGrad ? result : pass == Pass::WeightGrad ? second : first;
      const int weight = pass == Pass::WeightGrad ? result : second;
      const int output = pass == Pass::Forward ? result : first;
      Buffers real = b;
      real.input = part_of(b.input, input, bytes);
      real.weight = part_of(b.weight, weight, bytes);
      real.output = part_of(b.output, output, bytes);
      real.bias = first == 0 && b.bias ? static_cast<const char*>(b.bias) + result * bytes : nullptr;
      real.bias_stride = 2 * b.bias_stride;
      real.epilogue = {};  // of complex numbers a residual alone, which is added to what is complete
      if (first == 1 && b.epilogue.residual.data != nullptr)
        real.epilogue.residual = part_of(b.epilogue.residual, result, bytes);
      if (const int error = run(RealCall{z, plan, real, stream, first == 1, first == 1 && second == 1})) return error;
    }
  return 0;
}

// What a gathering pass reads and writes; forward and input_grad differ in these roles and their axes alone.
struct GatherRoles {
  Pass pass;
  TensorRef source, result;
  int64_t source_h, source_w;
  int64_t result_size[4];
  int64_t rows, channels;                    // of a group: channels of the result, channels of the source
  int64_t stride_m, stride_c, stride_group;  // of the weights
};
int launch_gather(const RealCall& call, const GatherRoles& roles);
// What forms their sums again from the operands as they are, in float32.
inline GatherAgain gather_again(const RealCall& call, const GatherRoles& roles) {
  return {axis_of(vertical_axis(call.z, roles.pass)),
          axis_of(horizontal_axis(call.z, roles.pass)),
          {static_cast<const float*>(roles.source.data), int32_t(roles.source_h), int32_t(roles.source_w)},
          strides_of(roles.source),
          static_cast<const float*>(call.b.weight.data),
          int32_t(roles.rows),
          int32_t(roles.channels),
          roles.stride_group,
          roles.stride_m,
          roles.stride_c,
          call.b.weight.stride[2],
          call.b.weight.stride[3]};
}
inline CorrelateAgain correlate_again(const RealCall& call) {
  const ConvProblem& z = call.z;
  return {axis_of(vertical_axis(z, Pass::WeightGrad)),
          axis_of(horizontal_axis(z, Pass::WeightGrad)),
          {static_cast<const float*>(call.b.output.data), int32_t(z.p), int32_t(z.q)},
          {static_cast<const float*>(call.b.input.data), int32_t(z.h), int32_t(z.w)},
          strides_of(call.b.output),
          strides_of(call.b.input),
          int32_t(z.n),
          int32_t(z.group_k()),
          int32_t(z.group_c())};
}
// Copies the weights to the beginning of the workspace, as rows of the product, each tap with `padded` channels: a
// multiple of `wide`.
template <class Kind, int wide, class T = typename Kind::Source, class Element = typename Kind::Element>
int pack_weights_of(const RealCall& call, const GatherRoles& roles, int64_t padded) {
  const TensorRef& weight = call.b.weight;
  const CudaShape shape = cuda_shape(call.z, roles.pass);
  PackParameters<T, Element> p{};
  p.vertical = axis_of(vertical_axis(call.z, roles.pass));
  p.horizontal = axis_of(horizontal_axis(call.z, roles.pass));
  p.phases_w = int32_t(shape.phases_w);
  p.phases = int32_t(shape.phases());
  p.groups = int32_t(call.z.groups);
  p.rows = int32_t(roles.rows);
  p.channels = int32_t(roles.channels);
  p.padded = int32_t(padded);
  p.stride_m = roles.stride_m;
  p.stride_c = roles.stride_c;
  p.stride_h = weight.stride[2];
  p.stride_w = weight.stride[3];
  p.stride_group = roles.stride_group;
  p.weights = static_cast<const T*>(weight.data);
  p.packed = static_cast<Element*>(call.b.workspace);
  p.pitch = call.plan.product.pitch;
  const int64_t tap = call.z.s > 1 ? p.stride_w : p.stride_h;
  p.order = p.rows > 1 && p.stride_m < p.stride_c         ? PackOrder::Rows
            : call.z.r * call.z.s > 1 && tap < p.stride_c ? PackOrder::Taps
                                                          : PackOrder::Channels;
  const int most = p.order == PackOrder::Rows ? 3 : kLogPackThreads;
  while (p.log_lanes < most && (int64_t(1) << p.log_lanes) < p.pitch / wide) ++p.log_lanes;
  const int64_t blocks = ceil_div(p.all_rows(), kPackThreads >> p.log_lanes);
  return launch(pack_weights<Kind, wide>, blocks, kPackThreads, 0, call.stream, p);
}
// The same by the kernels for few channels (window.cu).
int launch_window(const RealCall& call, const GatherRoles& roles);
int launch_window_grad(const RealCall& call);
// forward of first layers on the tensor cores (first_layer.cu).
int launch_first_layer(const RealCall& call);
// The same by the algorithm `wgmma`, which is compiled for sm_90a alone: it calls add_parts for what other files hold.
int launch_wgmma(const RealCall& call, const GatherRoles& roles);
int launch_wgmma_weight_grad(const RealCall& call);
int add_parts(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], int bias_dimension,
              const float* partial);
int add_parts(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], const float* partial,
              const GatherAgain& again);
int add_parts(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], const float* partial,
              const CorrelateAgain& again);

}  // namespace cuda
}  // namespace conv_ext
