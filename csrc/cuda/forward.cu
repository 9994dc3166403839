// Forward: the input convolved with the weight. It also holds the kernels of input_grad, which gathers as forward does.
#include "gather.cuh"
#include "library.h"

namespace conv_ext {
namespace cuda {

int launch_gather(const RealCall& call, const GatherRoles& roles) {
  if (is_window(call.plan.algorithm)) return launch_window(call, roles);
  if (call.plan.algorithm == CudaAlgorithm::FirstLayerCores) return launch_first_layer(call);
  if (call.plan.algorithm == CudaAlgorithm::Wgmma) return launch_wgmma(call, roles);
  return with_math(call.z, call.plan.algorithm, [&](auto type) {
    return [&]<class Math>(Type<Math>) { return run_math<Math>(call, roles); }(type);
  });
}

int add_parts(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], int bias_dimension,
              const float* partial) {
  const int32_t(&order)[4] = bias_dimension == 1 ? kOrderOfOutputs : kOrderOfWeights;
  switch (call.z.dtype) {
    case DType::BFloat16:
      return launch_reduce<bfloat16>(call, to, size, order, bias_dimension, partial, NotAgain{});
    case DType::Float16:
      return launch_reduce<float16>(call, to, size, order, bias_dimension, partial, NotAgain{});
    default:
      return launch_reduce<float>(call, to, size, order, bias_dimension, partial, NotAgain{});
  }
}
int add_parts(const RealCall& call, const TensorRef& to, const int64_t (&size)[4], const float* partial,
              const GatherAgain& again) {
  return launch_reduce<float>(call, to, size, kOrderOfOutputs, 1, partial, again);
}

}  // namespace cuda

int launch_forward(const ConvProblem& z, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return cuda::run_by_parts(z, Pass::Forward, plan, buffers, stream, [&](const cuda::RealCall& call) {
    const Buffers& b = call.b;
    return cuda::launch_gather(call, {Pass::Forward,
                                      b.input,
                                      b.output,
                                      z.h,
                                      z.w,
                                      {z.n, z.k, z.p, z.q},
                                      z.group_k(),
                                      z.group_c(),
                                      b.weight.stride[0],
                                      b.weight.stride[1],
                                      z.group_k() * b.weight.stride[0]});
  });
}

}  // namespace conv_ext

#if !defined(CONV_EXT_CUDA_HOST)
const char* conv_ext::cuda_error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }
int conv_ext::cuda_capability(int device) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return error == cudaSuccess ? 10 * major + minor : -int(error);
}
const conv_ext::CudaLibrary* conv_ext_cuda_library() {
  using namespace conv_ext;
  static constexpr CudaLibrary kLibrary{
      {launch_forward, launch_input_grad, launch_weight_grad}, cuda_error_text, cuda_capability};
  return &kLibrary;
}
#endif
