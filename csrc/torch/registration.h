// The three operators of a device, made of the one function that runs any pass there, and registered by torch's stable
// interface. A kernel gets its arguments on a stack of 64-bit values, each of which is the kernel's to give back.
#pragma once

#include <bit>

#include "operators.h"

// Of torch 2.13; before it the memory is given back as C++ does.
extern "C" __attribute__((weak)) AOTITorchError torch_delete_stable_ivalue(StableIValue* value);

namespace conv_ext {

// Takes the arguments from the stack one by one, in the schema's order.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  Tensor tensor() { return Tensor(reinterpret_cast<AtenTensorHandle>(uintptr_t(*next_++))); }
  Tensor optional_tensor() {  // a pointer to a value of its own, or none
    const auto value = reinterpret_cast<StableIValue*>(uintptr_t(*next_++));
    if (value == nullptr) return nullptr;
    Tensor tensor(reinterpret_cast<AtenTensorHandle>(uintptr_t(*value)));
    if (torch_delete_stable_ivalue != nullptr) {
      check_torch(torch_delete_stable_ivalue(value), "give an argument back");
    } else {
      delete value;
    }
    return tensor;
  }
  std::vector<int64_t> ints() {
    const auto handle = reinterpret_cast<StableListHandle>(uintptr_t(*next_++));
    const std::unique_ptr<StableListOpaque, void (*)(StableListHandle)> owned(
        handle, [](StableListHandle h) { torch_delete_list(h); });
    size_t count = 0;
    check_torch(torch_list_size(handle, &count), "give a list");
    std::vector<int64_t> values;
    for (size_t i = 0; i < count; ++i) {
      StableIValue value = 0;
      check_torch(torch_list_get_item(handle, i, &value), "give an item of a list");
      values.push_back(int64_t(value));
    }
    return values;
  }
  int64_t integer() { return int64_t(*next_++); }
  double number() { return std::bit_cast<double>(*next_++); }
  std::string text() {
    const auto handle = reinterpret_cast<StringHandle>(uintptr_t(*next_++));
    const std::unique_ptr<StringOpaque, void (*)(StringHandle)> owned(handle,
                                                                      [](StringHandle h) { torch_delete_string(h); });
    const char* data = nullptr;
    size_t length = 0;
    check_torch(torch_string_c_str(handle, &data) || torch_string_length(handle, &length), "give a string");
    return {data, length};
  }

 private:
  StableIValue* next_;
};

// What follows the tensors in all schemas.
struct OwnedCall {
  std::vector<int64_t> size, stride, padding, dilation;
  int64_t groups;
  std::string precision, algorithm, activation = "none";
  std::optional<Operand> residual;
  Tensor residual_tensor;
  double low = 0, high = 0;

  OwnedCall(Arguments* in, bool has_size) {
    if (has_size) size = in->ints();
    stride = in->ints();
    padding = in->ints();
    dilation = in->ints();
    groups = in->integer();
    precision = in->text();
    algorithm = in->text();
  }
  void take_epilogue(Arguments* in) {
    activation = in->text();
    residual_tensor = in->optional_tensor();
    low = in->number();
    high = in->number();
    if (residual_tensor) residual = operand_of(residual_tensor.get());
  }
  CallArguments arguments(const Operand* packed = nullptr) const {
    return {size,      stride,    padding,    dilation, groups,
            precision, algorithm, activation, packed,   residual ? &*residual : nullptr,
            low,       high};
  }
};

inline void give(StableIValue* stack, Tensor result) { *stack = reinterpret_cast<uintptr_t>(result.release()); }

template <RunPass run, bool with_packed>
void boxed_forward(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor input = in.tensor(), weight = in.tensor(), packed = with_packed ? in.tensor() : nullptr;
  const Tensor bias = in.optional_tensor();
  OwnedCall call(&in, false);
  call.take_epilogue(&in);
  std::optional<Operand> bias_operand, packed_operand;
  if (bias) bias_operand = operand_of(bias.get());
  if (packed) packed_operand = operand_of(packed.get());
  give(stack, run(Pass::Forward, operand_of(input.get()), operand_of(weight.get()), bias ? &*bias_operand : nullptr,
                  call.arguments(packed ? &*packed_operand : nullptr)));
}

template <RunPass run, Pass pass>
void boxed_gradient(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor first = in.tensor(), second = in.tensor();
  const OwnedCall call(&in, true);
  give(stack, run(pass, operand_of(first.get()), operand_of(second.get()), nullptr, call.arguments()));
}

inline void boxed_pack(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor weight = in.tensor(), input = in.tensor();
  const OwnedCall call(&in, false);
  give(stack, pack_cpu(operand_of(input.get()), operand_of(weight.get()), call.arguments()));
}

class Library {
 public:
  explicit Library(const char* device) {
    check_torch(aoti_torch_library_init_impl("conv_ext", device, __FILE__, __LINE__, &library_), "open a library");
  }
  void impl(const char* name, void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
    check_torch(torch_library_impl(library_, name, kernel, TORCH_ABI_VERSION), "register an operator");
  }

 private:
  TorchLibraryHandle library_ = nullptr;
};

// The operators of a device ("CPU", "CUDA"), as long as the process lasts.
template <RunPass run>
Library implemented(const char* device) {
  Library library(device);
  library.impl("forward", boxed_forward<run, false>);
  library.impl("forward_packed", boxed_forward<run, true>);
  library.impl("input_grad", boxed_gradient<run, Pass::InputGrad>);
  library.impl("weight_grad", boxed_gradient<run, Pass::WeightGrad>);
  return library;
}

}  // namespace conv_ext
