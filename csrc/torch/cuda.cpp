// The operators on CUDA: allocate, plan, start the kernels on the current stream. Compiled where torch is a CUDA build.
//
// Written against torch's stable interface, so that no header of the CUDA toolkit is needed. Nothing here waits
// for the device, and all memory comes from torch's allocator, so that a call can be captured in a CUDA graph.
#include <atomic>

#include "../cuda/launch.h"
#include "buffers.h"
#include "old_glibc.h"
#include "registration.h"

namespace conv_ext {
namespace {

void check_cuda(int error, const char* what) {
  CONV_EXT_CHECK(error == 0, "conv_ext: ", what, ": ", cuda_error_text(error));
}

CudaTraits traits_of(int32_t device) {
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
void* current_stream(int32_t device) {
  using Function = int32_t (*)(int32_t device, void** stream);
  static const Function function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(found);
  }();
  CONV_EXT_CHECK(function != nullptr,
                 "conv_ext found no aoti_torch_get_current_cuda_stream in torch's libtorch_cuda.so");
  void* stream = nullptr;
  CONV_EXT_CHECK(function(device, &stream) == 0, "conv_ext: torch gave no current stream of CUDA device ", device);
  return stream;
}

// Makes a device current for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int32_t device) {
    check_torch(aoti_torch_create_device_guard(device, &guard_), "make a device current");
  }
  ~OnDevice() { aoti_torch_delete_device_guard(guard_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  DeviceGuardHandle guard_ = nullptr;
};

// The kernels want a residual that lies as the result does: another one is copied. What owns the copy.
Tensor lay_residual(const ConvProblem& z, Pass pass, const Operand& a, const Operand& b, const CallArguments& call,
                    Buffers* buffers) {
  TensorRef& residual = buffers->epilogue.residual;
  if (residual.data == nullptr || lies_alike(sizes_of(z).output, residual, buffers->output)) return Tensor();
  Tensor laid = allocate_result(z, pass, a, b);
  copy(laid, call.residual->tensor);
  residual = ref(operand_of(laid.get()));
  return laid;
}

}  // namespace

Tensor run_cuda(Pass pass, const Operand& a, const Operand& b, const Operand* bias, const CallArguments& call) {
  ConvProblem problem = validate(pass, a, b, bias, call);  // all operands are on one device
  CONV_EXT_CHECK(is_cuda(a), "conv_ext has no kernels for device ", a.device);
  const int32_t device = a.device.index;
  const OnDevice on_device(device);
  Tensor owned = allocate_result(problem, pass, a, b);
  const Operand result = operand_of(owned.get());
  Buffers buffers = buffers_of(pass, a, b, bias, result, call);
  const Tensor residual = lay_residual(problem, pass, a, b, call, &buffers);
  merge_kernel_into_channels(&problem, &buffers);
  const CudaCandidate& candidate = choose_cuda_or_throw(problem, pass, traits_of(device), call.algorithm);
  if (result.elements() == 0) return owned;
  if (a.elements() == 0 || b.elements() == 0) return fill_empty_sum(pass, std::move(owned), bias, call);
  const CudaPlan plan = make_cuda_plan(problem, pass, candidate, &buffers);
  const ProfilerScope scope(pass_name(pass), candidate.name);
  Tensor workspace;  // freed in the stream's order: the kernels are done with it before anybody else gets it
  if (plan.workspace_bytes > 0) {
    const std::array<int64_t, 1> bytes{plan.workspace_bytes}, one{1};
    workspace = empty(bytes, one, aoti_torch_dtype_uint8(), a.device);
    buffers.workspace = const_data(workspace.get());
  }
  const auto launch = pass == Pass::Forward     ? launch_forward
                      : pass == Pass::InputGrad ? launch_input_grad
                                                : launch_weight_grad;
  check_cuda(launch(problem, plan, buffers, current_stream(device)), "a kernel could not be started");
  return owned;
}

namespace {
const Library kLibrary = implemented<run_cuda>("CUDA");
}  // namespace

}  // namespace conv_ext
