// A CUDA device in host memory, for a torch without CUDA: tests/cuda/test_cuda_device.py links it to the real binding.
//
// Tensors on "cuda" have a device, dispatch keys and a device guard of their own. Every operator of torch's runs the
// CPU's kernel on the same memory; conv_ext's launchers run the CPU's kernels as well, and check the stream, the
// current device and the workspace on the way. What is tested is everything above the CUDA kernels.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/torch/operators.h"

namespace host_device {

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::IValue;
using c10::Stream;

thread_local c10::DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return {DeviceType::CUDA, current}; }
  Device exchangeDevice(Device to) const override {
    const Device before = getDevice();
    setDevice(to);
    return before;
  }
  void setDevice(Device to) const override {
    if (to.has_index()) current = to.index();
  }
  void uncheckedSetDevice(Device to) const noexcept override { setDevice(to); }
  Stream getStream(Device of) const noexcept override { return Stream(Stream::UNSAFE, of, 0); }
  Stream getDefaultStream(Device of) const override { return getStream(of); }
  Stream exchangeStream(Stream to) const noexcept override { return to; }
  c10::DeviceIndex deviceCount() const noexcept override { return 2; }
  void record(void**, const Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(512, (bytes / 512 + 1) * 512);
    return {data, data, &std::free, Device(DeviceType::CUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
const c10::DispatchKeySet cuda_keys(c10::DispatchKey::CUDA), cpu_keys(c10::DispatchKey::CPU);

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard on(device.value_or(Device(DeviceType::CUDA)));
  return Tensor(
      at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, cuda_keys, dtype.value_or(at::kFloat), format));
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard on(device.value_or(Device(DeviceType::CUDA)));
  return Tensor(at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                                  &memory, cuda_keys, dtype.value_or(at::kFloat)));
}

// The same memory under another device.
Tensor seen_on(const Tensor& t, Device device) {
  c10::DispatchKeySet keys = device.is_cuda() ? cuda_keys : cpu_keys;
  if (t._is_zerotensor()) keys = keys.add(c10::DispatchKey::ZeroTensor);
  auto* const holder = new c10::Storage(t.storage());
  const auto release = [](void* p) { delete static_cast<c10::Storage*>(p); };
  c10::DataPtr data(const_cast<void*>(t.storage().data()), holder, release, device);
  c10::Allocator* const allocator = device.is_cuda() ? &memory : c10::GetAllocator(DeviceType::CPU);
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), allocator, true);
  Tensor seen = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, t.dtype());
  c10::TensorImpl* const impl = seen.unsafeGetTensorImpl();
  impl->set_storage_offset(t.storage_offset());
  impl->set_sizes_and_strides(t.sizes(), t.strides());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (t.is_conj()) seen._set_conj(true);
  if (t.is_neg()) seen._set_neg(true);
  return seen;
}

// One call of any operator: its CUDA tensors are seen on the CPU, and what comes back on the device again.
class Call {
 public:
  explicit Call(bool copies) : copies_(copies) {}

  IValue to_cpu(const IValue& value) {
    if (value.isTensor()) return to_cpu(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(to_cpu(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor> t : value.toOptionalTensorList())
        list.push_back(t ? std::optional<Tensor>(to_cpu(*t)) : std::nullopt);
      return list;
    }
    if (!value.isDevice() || !value.toDevice().is_cuda()) return value;
    device_ = value.toDevice().has_index() ? value.toDevice() : Device(DeviceType::CUDA, current);
    return Device(DeviceType::CPU);
  }

  // What an operand has become: its memory where it was resized, its sizes.
  void write_back() {
    for (const auto& [own, seen] : pairs_) {
      c10::TensorImpl* const impl = own.unsafeGetTensorImpl();
      if (seen.storage().data() != own.storage().data()) {
        impl->set_storage_keep_dtype(seen_on(seen, own.device()).storage());
        impl->set_storage_offset(seen.storage_offset());
      }
      if (own.sizes() != seen.sizes() || own.strides() != seen.strides())
        impl->set_sizes_and_strides(seen.sizes(), seen.strides());
    }
  }

  IValue to_device(const IValue& value) {
    if (value.isTensor()) return to_device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(to_device(t));
    return list;
  }

 private:
  Tensor to_cpu(const Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    TORCH_CHECK(copies_ || !device_ || t.dim() == 0 || t.device() == *device_, "operands on two devices");
    if (!device_ || t.dim() > 0) device_ = t.device();
    for (const auto& [own, seen] : pairs_)
      if (own.is_same(t)) return seen;
    pairs_.emplace_back(t, seen_on(t, DeviceType::CPU));
    return pairs_.back().second;
  }
  Tensor to_device(const Tensor& t) {
    for (const auto& [own, seen] : pairs_)
      if (seen.is_same(t)) return own;
    return t.defined() && device_ && !copies_ ? seen_on(t, *device_) : t;
  }
  const bool copies_;
  std::optional<Device> device_;
  std::vector<std::pair<Tensor, Tensor>> pairs_;
};

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op.schema().name() == "aten::copy_");
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i)
    (*stack)[i] = call.to_cpu((*stack)[i]);
  op.redispatchBoxed(cpu_keys, stack);
  call.write_back();
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i)
    (*stack)[i] = call.to_device((*stack)[i]);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  for (const char* name : {"copy_", "convolution", "convolution_backward"})  // whose own code asks for the device
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
}

}  // namespace host_device

namespace conv_ext {
namespace {

int run(Pass pass, const ConvProblem& problem, const CudaPlan& plan, const Buffers& given, void* stream) {
  TORCH_CHECK(reinterpret_cast<intptr_t>(stream) == 0x1000 + host_device::current, "not the device's current stream");
  TORCH_CHECK(plan.workspace_bytes == 0 || reinterpret_cast<uintptr_t>(given.workspace) % 256 == 0, "the workspace");
  if (plan.workspace_bytes > 0) std::memset(given.workspace, 0xff, size_t(plan.workspace_bytes));
  const KernelLibrary& library = kernel_library();
  const Strides strides = strides_of(problem, given);
  const PlanInput input{problem, pass, library.machine, strides};
  const Candidate& candidate = choose_or_throw(input, "auto");
  const Plan cpu_plan = make_plan(input, candidate);
  at::Tensor workspace = at::empty({cpu_plan.workspace_bytes + 1}, at::kByte);
  Buffers buffers = given;
  buffers.workspace = workspace.data_ptr();
  const TensorRef& residual = buffers.epilogue.residual;
  TORCH_CHECK(!residual.data || lies_alike(sizes_of(problem).output, residual, buffers.output), "the residual");
  const auto in_turn = [](void*, int64_t count, int64_t bytes, void (*body)(void*, int64_t, void*), void* argument) {
    at::Tensor scratch = at::empty({bytes + 1}, at::kByte);
    for (int64_t i = 0; i < count; ++i) body(argument, i, scratch.data_ptr());
  };
  library.run(problem, pass, cpu_plan, buffers, Executor{nullptr, in_turn});
  return 0;
}

}  // namespace

int launch_forward(const ConvProblem& z, const CudaPlan& p, const Buffers& b, void* s) {
  return run(Pass::Forward, z, p, b, s);
}
int launch_input_grad(const ConvProblem& z, const CudaPlan& p, const Buffers& b, void* s) {
  return run(Pass::InputGrad, z, p, b, s);
}
int launch_weight_grad(const ConvProblem& z, const CudaPlan& p, const Buffers& b, void* s) {
  return run(Pass::WeightGrad, z, p, b, s);
}
void load_cuda_library(const std::string&) {}  // the launchers are above
const char* cuda_error_text(int) { return "no error that a device in host memory knows"; }
int cuda_capability(int) { return 90; }

}  // namespace conv_ext
