// The launcher of the passes that gather, forward and input_grad: packs the weights, forms the sums, adds up their
// parts.
#pragma once

#include "launch.cuh"

namespace conv_ext {
namespace cuda {

template <class Pass, class Math, class T = typename Math::Element, class Sum = typename Math::Sum>
int run_gather(const RealCall& call, const GatherRoles& roles) {
  const ConvProblem& z = call.z;
  const CudaShape shape = cuda_shape(z, roles.pass, call.plan.product.vector);
  TensorRef source = roles.source;
  if constexpr (Math::kReadsVectors)
    if (const int error = pack_operand<WholeNumbers<T>>(call, call.plan.product.source, z.n, roles.source_h,
                                                        roles.source_w, roles.channels, &source))
      return error;
  typename Pass::Parameters p{};
  p.grid = {int32_t(ceil_div(shape.gemm_m, call.plan.product.tile_m)),
            int32_t(ceil_div(shape.gemm_n, call.plan.product.tile_n)),
            int32_t(z.groups),
            int32_t(shape.phases()),
            int32_t(call.plan.splits),
            int32_t(call.plan.steps),
            int32_t(call.plan.product.chain_steps)};
  p.vertical = axis_of(vertical_axis(z, roles.pass));
  p.horizontal = axis_of(horizontal_axis(z, roles.pass));
  p.phases_w = int32_t(shape.phases_w);
  p.images = int32_t(z.n);
  p.rows = int32_t(roles.rows);
  p.channels = int32_t(shape.channels);
  p.source = {static_cast<const T*>(source.data), int32_t(roles.source_h), int32_t(roles.source_w)};
  p.from = strides_of(source);
  p.to = strides_of(roles.result);
  p.pitch = call.plan.product.pitch;
  p.result = result_of<T, Sum>(call, roles.result, roles.result.stride[1]);
  if (call.plan.product.packed_bytes == 0) {
    p.weights = static_cast<const T*>(call.b.weight.data);
    p.pitch = roles.stride_m;
  } else {
    p.weights = static_cast<const T*>(call.b.workspace);
    constexpr int kWide = 16 / int(sizeof(T));
    const int error = p.channels % kWide == 0 ? pack_weights_of<WholeNumbers<T>, kWide>(call, roles, p.channels)
                                              : pack_weights_of<WholeNumbers<T>, 1>(call, roles, p.channels);
    if (error) return error;
  }
  if constexpr (Math::kFormsAgain) p.again = gather_again(call, roles);
  const int64_t(&size)[4] = roles.result_size;
  p.result.along_m = call.plan.product.stores_along_m;
  p.result.vectors = call.plan.product.stores_vectors;
  if (call.plan.splits == 1) return launch_igemm<Pass, Math>(call, p);

  const int32_t along_m[4] = {0, 2, 3, 1};
  const int32_t(&order)[4] = p.result.along_m ? along_m : kOrderOfOutputs;
  p.result.partial = reinterpret_cast<Sum*>(call.workspace() + call.plan.partial_offset);
  p.to = strides_in_order(size, order);
  p.result.stride_m = p.to.c;
  p.split_elements = size[0] * size[1] * size[2] * size[3];
  if (const int error = launch_igemm<Pass, Math>(call, p)) return error;
  if constexpr (Math::kFormsAgain)
    return launch_reduce<T, Sum>(call, roles.result, size, order, 1, p.result.partial, p.again);
  return launch_reduce<T, Sum>(call, roles.result, size, order, 1, p.result.partial, NotAgain{});
}

template <class T, class Sum>
int run_direct_gather(const RealCall& call, const GatherRoles& roles) {
  const ConvProblem& z = call.z;
  DirectParameters<T, Sum> p{};
  p.vertical = axis_of(vertical_axis(z, roles.pass));
  p.horizontal = axis_of(horizontal_axis(z, roles.pass));
  p.images = z.n;
  p.groups = int32_t(z.groups);
  p.result_channels = int32_t(roles.rows);
  p.source_channels = int32_t(roles.channels);
  p.height = int32_t(roles.result_size[2]);
  p.width = int32_t(roles.result_size[3]);
  p.along_channels = z.channels_last;
  p.source = {static_cast<const T*>(roles.source.data), int32_t(roles.source_h), int32_t(roles.source_w)};
  const Strides from = strides_of(roles.source), to = strides_of(roles.result);
  p.from_n = from.n;
  p.from_c = from.c;
  p.from_h = from.h;
  p.from_w = from.w;
  p.to_n = to.n;
  p.to_h = to.h;
  p.to_w = to.w;
  p.weights = static_cast<const T*>(call.b.weight.data);
  p.weight_group = roles.stride_group;
  p.weight_m = roles.stride_m;
  p.weight_c = roles.stride_c;
  p.weight_h = call.b.weight.stride[2];
  p.weight_w = call.b.weight.stride[3];
  p.result = result_of<T, Sum>(call, roles.result, to.c);
  const auto kernel = call.plan.direct_channels == 4   ? direct_gather<T, Sum, 4>
                      : call.plan.direct_channels == 2 ? direct_gather<T, Sum, 2>
                                                       : direct_gather<T, Sum, 1>;
  return launch(kernel, call.plan.blocks, kCudaDirectThreads, 0, call.stream, p);
}

template <class Math>
int run_math(const RealCall& call, const GatherRoles& roles) {
  using T = typename Math::Element;
  using Sum = typename Math::Sum;
  if constexpr (!Math::kTensorCores)
    if (call.plan.algorithm == CudaAlgorithm::Direct) return run_direct_gather<T, Sum>(call, roles);
  if constexpr (Math::kReadsVectors) {
    return run_gather<Gather<T, Sum, Load::KVector>, Math>(call, roles);
  } else {
    if (call.plan.product.load == CudaLoad::Vectors)
      return run_gather<Gather<T, Sum, Load::KVector>, Math>(call, roles);
    return run_gather<Gather<T, Sum, Load::Rows>, Math>(call, roles);
  }
}

}  // namespace cuda
}  // namespace conv_ext
