// From an operator's tensors to the kernels' buffers, the same on every device.
#pragma once

#include "../common/merge.h"
#include "operators.h"

namespace conv_ext {

// A storage may be freed or cut while tensors still look at it (resize_ of the storage, as sharded training does).
inline void check_storage(const char* name, const Operand& t) {
  if (t.elements() == 0) return;
  int64_t offset = 0, there = 0;
  check_torch(aoti_torch_get_storage_offset(t.tensor, &offset) || aoti_torch_get_storage_size(t.tensor, &there),
              "describe a tensor's storage");
  int64_t last = offset;
  for (size_t i = 0; i < t.sizes.size(); ++i) last += (t.sizes[i] - 1) * t.stride[i];
  int count;
  const int64_t needed = (last + 1) * torch_types(&count)[t.dtype].bytes;
  CONV_EXT_CHECK(needed <= there, "The memory of ", name, " is not allocated: size ", t.sizes, ", stride ",
                 List<int64_t>(t.stride, t.sizes.size()), " and offset ", offset, " need ", needed,
                 " bytes of its storage, which has ", there);
}

inline TensorRef ref(const Operand& t) {
  return {const_data(t.tensor), {t.stride[0], t.stride[1], t.stride[2], t.stride[3]}};
}

// The result in the memory format that F.conv2d would give it.
inline Tensor allocate_result(const ConvProblem& z, Pass pass, const Operand& a, const Operand& b) {
  const std::array<int64_t, 4> sizes[kPasses] = {
      {z.n, z.k, z.p, z.q}, {z.n, z.c, z.h, z.w}, {z.k, z.group_c(), z.r, z.s}};
  const bool channels_last = suggests_channels_last(a) || suggests_channels_last(b);
  return empty_like_this(sizes[int(pass)], channels_last, a);
}

// Whether one of the operands is channels_last in a way that the strides of dimensions of size 1 cannot change: torch's
// own answer, which the result's format follows, heeds them.
inline bool lies_channels_last(const Operand& a, const Operand& b) {
  const auto lies = [](const Operand& t) {
    int64_t sizes[4], stride[4];
    for (size_t d = 0; d < 4; ++d) {
      sizes[d] = t.sizes[d];
      stride[d] = t.stride[d];
    }
    return is_channels_last(sizes, stride);
  };
  return lies(a) || lies(b);
}

// A bound as a number of the result's type, as torch's clamp has it; zero without a sign.
inline double bound_of(double value, DType type) {
  using torch::headeronly::BFloat16, torch::headeronly::Half;
  if (type == DType::Float16) return double(float(Half(float(value)))) + 0.0;
  if (type == DType::BFloat16) return double(float(BFloat16(float(value)))) + 0.0;
  return (type == DType::Float64 ? value : double(float(value))) + 0.0;
}
inline Epilogue epilogue_of(const CallArguments& call, DType type) {
  Epilogue epilogue{};
  epilogue.activation = activation_of(call.activation);
  epilogue.low = bound_of(call.low, type);
  epilogue.high = bound_of(call.high, type);
  if (call.residual != nullptr && call.residual->elements() > 0) {
    check_storage("residual", *call.residual);
    epilogue.residual = ref(*call.residual);
  }
  return epilogue;
}

inline Buffers buffers_of(Pass pass, const Operand& a, const Operand& b, const Operand* bias, const Operand& result,
                          const CallArguments& call) {
  Buffers buffers{};
  check_storage(pass == Pass::Forward ? "input" : "grad_output", a);
  check_storage(pass == Pass::WeightGrad ? "input" : "weight", b);
  if (bias) check_storage("bias", *bias);
  const TensorRef out = ref(result), first = ref(a), second = ref(b);
  switch (pass) {
    case Pass::Forward:
      buffers = {first, second, out};
      buffers.epilogue = epilogue_of(call, DType(a.dtype));
      break;
    case Pass::InputGrad:
      buffers = {out, second, first};
      break;
    case Pass::WeightGrad:
      buffers = {second, out, first};
      break;
  }
  if (bias) {
    buffers.bias = const_data(bias->tensor);
    buffers.bias_stride = bias->stride[0];
  }
  return buffers;
}

// The epilogue of a call by torch's operators.
inline Tensor finish_by_torch(Tensor result, const CallArguments& call) {
  if (call.residual != nullptr) {  // a sum is a difference with the factor -1: torch's interface has that one
    AtenTensorHandle sum = nullptr;
    check_torch(aoti_torch_aten_subtract_Tensor(result.get(), call.residual->tensor, -1.0, &sum), "add the residual");
    copy(result, Tensor(sum).get());
  }
  switch (activation_of(call.activation)) {
    case Activation::None:
      break;
    case Activation::Relu:
      call_in_place("aten::relu_", "", result);
      break;
    case Activation::Clamp:
      clamp(result, call.low, call.high);
      break;
    case Activation::Silu:
      call_in_place("aten::silu_", "", result);
      break;
    case Activation::HardSwish:
      call_in_place("aten::hardswish_", "", result);
      break;
  }
  return result;
}

// An empty sum: no channels (the bias and the epilogue remain), or no images.
inline Tensor fill_empty_sum(Pass pass, Tensor result, const Operand* bias, const CallArguments& call) {
  if (bias) {
    const Operand r = operand_of(result.get());
    const int64_t stride[4] = {0, bias->stride[0], 0, 0};
    AtenTensorHandle wide = nullptr;  // from where the bias begins
    check_torch(aoti_torch__reinterpret_tensor(bias->tensor, 4, r.sizes.data(), stride, 0, &wide), "spread the bias");
    copy(result, Tensor(wide).get());
  } else {
    check_torch(aoti_torch_zero_(result.get()), "fill a tensor");
  }
  return pass == Pass::Forward ? finish_by_torch(std::move(result), call) : std::move(result);
}

}  // namespace conv_ext
