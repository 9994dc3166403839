// The operators on CUDA: allocate, plan, start the kernels on the current stream. Compiled where torch is a CUDA build.
//
// Written against torch's device-neutral interface, so that no header of the CUDA toolkit is needed. Nothing here waits
// for the device, and all memory comes from torch's allocator, so that a call can be captured in a CUDA graph.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>

#include <atomic>

#include "../cuda/launch.h"
#include "buffers.h"
#include "old_glibc.h"
#include "registration.h"

namespace conv_ext {
namespace {

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

// Torch's current stream of a device, by a function of its stable interface. It lives in a library that is not there
// to link with where torch is a CPU build, and that is loaded already where it is not.
void* current_stream(c10::DeviceIndex device) {
  using Function = int32_t (*)(int32_t device, void** stream);
  static const Function function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(found);
  }();
  TORCH_CHECK(function != nullptr, "conv_ext found no aoti_torch_get_current_cuda_stream in torch's libtorch_cuda.so");
  void* stream = nullptr;
  TORCH_CHECK(function(device, &stream) == 0, "conv_ext: torch gave no current stream of CUDA device ", int(device));
  return stream;
}

}  // namespace

Tensor run_cuda(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                const CallArguments& call) {
  ConvProblem problem = validate(pass, a, b, bias, call);  // all operands are on one device
  TORCH_CHECK(a.is_cuda(), "conv_ext has no kernels for device ", a.device());
  const c10::DeviceGuard on_device(a.device());
  Tensor result = allocate_result(problem, pass, a, b);
  Buffers buffers = buffers_of(pass, a, b, bias, result, call);
  merge_kernel_into_channels(&problem, &buffers);
  const CudaCandidate& candidate = choose_cuda_or_throw(problem, pass, traits_of(a.device().index()), call.algorithm);
  if (result.numel() == 0) return result;
  if (a.numel() == 0 || b.numel() == 0) return fill_empty_sum(pass, result, bias, call);
  const CudaPlan plan = make_cuda_plan(problem, pass, candidate, &buffers);
  RECORD_FUNCTION(std::string("conv_ext::") + pass_name(pass) + "[" + candidate.name + "]", std::vector<c10::IValue>());
  Tensor workspace;  // freed in the stream's order: the kernels are done with it before anybody else gets it
  if (plan.workspace_bytes > 0) {
    workspace = at::empty({plan.workspace_bytes}, a.options().dtype(at::kByte).memory_format(std::nullopt));
    buffers.workspace = workspace.mutable_data_ptr();
  }
  const auto launch = pass == Pass::Forward     ? launch_forward
                      : pass == Pass::InputGrad ? launch_input_grad
                                                : launch_weight_grad;
  check_cuda(launch(problem, plan, buffers, current_stream(a.device().index())), "a kernel could not be started");
  const bool finished = !buffers.epilogue.any() || buffers.epilogue.is_relu();  // which the kernels have
  return finished ? result : finish_by_torch(result, call);
}

TORCH_LIBRARY_IMPL(conv_ext, CUDA, library) { implement<run_cuda>(library); }

}  // namespace conv_ext
