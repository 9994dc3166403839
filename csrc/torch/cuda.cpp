// The operators on CUDA: allocate, plan, start the kernels on the current stream. Compiled where torch is a CUDA build.
//
// Written against torch's device-neutral interface, so that no header of the CUDA toolkit is needed. Nothing here waits
// for the device, and all memory comes from torch's allocator, so that a call can be captured in a CUDA graph.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <atomic>

#include "../cuda/launch.h"
#include "buffers.h"
#include "operators.h"

namespace conv_ext {
namespace {

using at::IntArrayRef;
using at::Tensor;

void check_cuda(int error, const char* what) {
  TORCH_CHECK(error == 0, "conv_ext: ", what, ": ", cuda_error_text(error));
}

CudaTraits traits_of(c10::DeviceIndex device) {
  static std::array<std::atomic<int>, 128> known{};  // a query costs more than a small launch
  int capability = known[size_t(device)];
  if (capability == 0) {
    capability = cuda_capability(device);
    if (capability < 0) check_cuda(-capability, "the device's compute capability");
    known[size_t(device)] = capability;
  }
  return {capability};
}

Tensor run_cuda(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                const CallArguments& call) {
  ConvProblem problem = validate(pass, a, b, bias, call);  // all operands are on one device
  TORCH_CHECK(a.is_cuda(), "conv_ext has no kernels for device ", a.device());
  const c10::DeviceGuard on_device(a.device());
  Tensor result = allocate_result(&problem, pass, a, b);
  Buffers buffers = buffers_of(pass, a, b, bias, result, call);
  merge_kernel_into_channels(&problem, &buffers);
  const CudaCandidate& candidate = choose_cuda_or_throw(problem, pass, traits_of(a.device().index()), call.algorithm);
  if (result.numel() == 0) return result;
  if (a.numel() == 0 || b.numel() == 0) return fill_empty_sum(result, bias, buffers.relu);
  const CudaPlan plan = make_cuda_plan(problem, pass, candidate, &buffers);
  RECORD_FUNCTION(std::string("conv_ext::") + pass_name(pass) + "[" + candidate.name + "]", std::vector<c10::IValue>());
  Tensor workspace;  // freed in the stream's order: the kernels are done with it before anybody else gets it
  if (plan.workspace_bytes > 0) {
    workspace = at::empty({plan.workspace_bytes}, a.options().dtype(at::kByte).memory_format(std::nullopt));
    buffers.workspace = workspace.mutable_data_ptr();
  }
  void* const stream = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(a.device()).native_handle();
  const auto launch = pass == Pass::Forward     ? launch_forward
                      : pass == Pass::InputGrad ? launch_input_grad
                                                : launch_weight_grad;
  check_cuda(launch(problem, plan, buffers, stream), "a kernel could not be started");
  return result;
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
               IntArrayRef padding, IntArrayRef dilation, int64_t groups, std::string_view precision,
               std::string_view algorithm, std::string_view activation) {
  return run_cuda(Pass::Forward, input, weight, bias,
                  {{}, stride, padding, dilation, groups, precision, algorithm, activation});
}

Tensor input_grad(const Tensor& grad_output, const Tensor& weight, IntArrayRef input_size, IntArrayRef stride,
                  IntArrayRef padding, IntArrayRef dilation, int64_t groups, std::string_view precision,
                  std::string_view algorithm) {
  return run_cuda(Pass::InputGrad, grad_output, weight, std::nullopt,
                  {input_size, stride, padding, dilation, groups, precision, algorithm, "none"});
}

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, int64_t groups, std::string_view precision,
                   std::string_view algorithm) {
  return run_cuda(Pass::WeightGrad, grad_output, input, std::nullopt,
                  {kernel_size, stride, padding, dilation, groups, precision, algorithm, "none"});
}

}  // namespace

TORCH_LIBRARY_IMPL(conv_ext, CUDA, library) {
  library.impl("forward", TORCH_FN(forward));
  library.impl("input_grad", TORCH_FN(input_grad));
  library.impl("weight_grad", TORCH_FN(weight_grad));
}

}  // namespace conv_ext
