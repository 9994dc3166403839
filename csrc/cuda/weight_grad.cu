// Weight gradient: the input correlated with the upstream gradient, a long sum in parts that are added in their order.
#include "launch.cuh"

namespace conv_ext {
namespace cuda {
namespace {

template <class Pass, class Math, class T = typename Math::Element, class Sum = typename Math::Sum>
int run_correlate(const RealCall& call) {
  const ConvProblem& z = call.z;
  const Buffers& b = call.b;
  const CudaShape shape = cuda_shape(z, conv_ext::Pass::WeightGrad, call.plan.product.vector);
  TensorRef input = b.input, grad = b.output;
  if constexpr (Math::kReadsVectors) {
    if (const int error =
            pack_operand<WholeNumbers<T>>(call, call.plan.product.source, z.n, z.h, z.w, z.group_c(), &input))
      return error;
    if (const int error =
            pack_operand<WholeNumbers<T>>(call, call.plan.product.grad, z.n, z.p, z.q, z.group_k(), &grad))
      return error;
  }
  typename Pass::Parameters p{};
  p.grid = {int32_t(ceil_div(shape.gemm_m, call.plan.product.tile_m)),
            int32_t(ceil_div(shape.gemm_n, call.plan.product.tile_n)),
            int32_t(z.groups),
            1,
            int32_t(call.plan.splits),
            int32_t(call.plan.steps),
            int32_t(call.plan.product.chain_steps)};
  p.vertical = axis_of(vertical_axis(z, conv_ext::Pass::WeightGrad));
  p.horizontal = axis_of(horizontal_axis(z, conv_ext::Pass::WeightGrad));
  p.images = int32_t(z.n);
  p.rows = int32_t(z.group_k());
  p.channels = int32_t(shape.channels);
  p.beyond = int32_t(shape.channels - z.group_c());
  p.grad_channels = int32_t(round_up(z.group_k(), call.plan.product.vector));
  p.grad = {static_cast<const T*>(grad.data), int32_t(z.p), int32_t(z.q)};
  p.input = {static_cast<const T*>(input.data), int32_t(z.h), int32_t(z.w)};
  p.from_grad = strides_of(grad);
  p.from_input = strides_of(input);
  p.to = strides_of(b.weight);
  p.result = result_of<T, Sum>(call, b.weight, b.weight.stride[0]);
  const int64_t size[4] = {z.k, z.group_c(), z.r, z.s};
  if constexpr (Math::kFormsAgain) p.again = correlate_again(call);
  p.result.vectors = call.plan.product.stores_vectors;
  if (call.plan.splits == 1) return launch_igemm<Pass, Math>(call, p);

  const int32_t(&order)[4] = kOrderOfWeights;  // that of gemm_n
  p.result.partial = reinterpret_cast<Sum*>(call.workspace() + call.plan.partial_offset);
  p.to = strides_in_order(size, order);
  p.result.stride_m = p.to.n;
  p.split_elements = size[0] * size[1] * size[2] * size[3];
  if (const int error = launch_igemm<Pass, Math>(call, p)) return error;
  if constexpr (Math::kFormsAgain)
    return launch_reduce<T, Sum>(call, b.weight, size, order, 0, p.result.partial, p.again);
  return launch_reduce<T, Sum>(call, b.weight, size, order, 0, p.result.partial, NotAgain{});
}

template <class T, class Sum>
int run_direct_weight_grad(const RealCall& call) {
  const ConvProblem& z = call.z;
  const Buffers& b = call.b;
  DirectGradParameters<T, Sum> p{};
  p.vertical = axis_of(vertical_axis(z, Pass::WeightGrad));
  p.horizontal = axis_of(horizontal_axis(z, Pass::WeightGrad));
  p.positions = z.n * z.p * z.q;
  p.step = call.plan.steps;
  p.pairs = z.k * z.group_c();
  p.group_k = int32_t(z.group_k());
  p.group_c = int32_t(z.group_c());
  p.tap_blocks = int32_t(ceil_div(z.r * z.s, kCudaDirectTaps));
  p.splits = int32_t(call.plan.splits);
  p.input = {static_cast<const T*>(b.input.data), int32_t(z.h), int32_t(z.w)};
  p.grad = static_cast<const T*>(b.output.data);
  const Strides grad = strides_of(b.output), from = strides_of(b.input);
  Strides to = strides_of(b.weight);
  p.result = result_of<T, Sum>(call, b.weight, to.n);
  const int64_t size[4] = {z.k, z.group_c(), z.r, z.s};
  if (p.splits > 1) {
    p.result.partial = static_cast<Sum*>(b.workspace);
    to = {size[1] * size[2] * size[3], size[2] * size[3], size[3], 1};
    p.result.stride_m = to.n;
    p.split_elements = size[0] * to.n;
  }
  p.grad_n = grad.n;
  p.grad_c = grad.c;
  p.grad_h = grad.h;
  p.grad_w = grad.w;
  p.from_n = from.n;
  p.from_c = from.c;
  p.from_h = from.h;
  p.from_w = from.w;
  p.to_c = to.c;
  p.to_h = to.h;
  p.to_w = to.w;
  const auto kernel = cuda_direct_pairs(z) == 32 ? direct_weight_grad<T, Sum, 32> : direct_weight_grad<T, Sum, 1>;
  const int error =
      launch(kernel, call.plan.blocks, kCudaDirectThreads, kCudaDirectThreads * int(sizeof(Sum)), call.stream, p);
  if (error || p.splits == 1) return error;
  return launch_reduce<T, Sum>(call, b.weight, size, kOrderOfOutputs, 0, p.result.partial, NotAgain{});
}

template <class Math>
int run_math(const RealCall& call) {
  using T = typename Math::Element;
  using Sum = typename Math::Sum;
  if constexpr (!Math::kTensorCores)
    if (call.plan.algorithm == CudaAlgorithm::Direct) return run_direct_weight_grad<T, Sum>(call);
  if constexpr (Math::kReadsVectors) {
    return run_correlate<Correlate<T, Sum, Load::RowsVector>, Math>(call);
  } else {
    const CudaLoad load = call.plan.product.load;  // sums are added in the same order each way
    if constexpr (Math::kTensorCores)
      if (load == CudaLoad::Vectors) return run_correlate<Correlate<T, Sum, Load::RowsVector>, Math>(call);
    if (load == CudaLoad::Channels) return run_correlate<Correlate<T, Sum, Load::Rows>, Math>(call);
    return run_correlate<Correlate<T, Sum, Load::K>, Math>(call);
  }
}

}  // namespace

int add_parts(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], const float* partial,
              const CorrelateAgain& again) {
  return launch_reduce<float>(call, to, size, kOrderOfWeights, 0, partial, again);
}

}  // namespace cuda

int launch_weight_grad(const ConvProblem& z, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return cuda::run_by_parts(z, Pass::WeightGrad, plan, buffers, stream, [&](const cuda::RealCall& call) {
    if (is_window(plan.algorithm)) return cuda::launch_window_grad(call);
    if (plan.algorithm == CudaAlgorithm::Wgmma) return cuda::launch_wgmma_weight_grad(call);
    return cuda::with_math(z, plan.algorithm, [&](auto type) {
      return [&]<class Math>(cuda::Type<Math>) { return cuda::run_math<Math>(call); }(type);
    });
  });
}

}  // namespace conv_ext
