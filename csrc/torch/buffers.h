// From an operator's tensors to the kernels' buffers, the same on every device.
#pragma once

#include <ATen/ATen.h>

#include <array>

#include "../common/merge.h"
#include "operators.h"

namespace conv_ext {

// A storage may be freed or cut while tensors still look at it (resize_ of the storage, as sharded training does).
inline void check_storage(const char* name, const at::Tensor& t) {
  if (t.numel() == 0) return;
  int64_t last = t.storage_offset();
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  const int64_t needed = (last + 1) * int64_t(t.itemsize()), there = int64_t(t.storage().nbytes());
  TORCH_CHECK(needed <= there, "The memory of ", name, " is not allocated: size ", t.sizes(), ", stride ", t.strides(),
              " and offset ", t.storage_offset(), " need ", needed, " bytes of its storage, which has ", there);
}

inline TensorRef ref(const at::Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}};
}

inline at::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// The result in the memory format that F.conv2d would give it.
inline at::Tensor allocate_result(const ConvProblem& z, Pass pass, const at::Tensor& a, const at::Tensor& b) {
  const bool channels_last = a.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
                             b.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  const std::array<int64_t, 4> sizes[kPasses] = {
      {z.n, z.k, z.p, z.q}, {z.n, z.c, z.h, z.w}, {z.k, z.group_c(), z.r, z.s}};
  return at::empty(sizes[int(pass)], a.options().memory_format(memory_format(channels_last)));
}

// Whether a dense tensor lies so: its strides say nothing of the dimensions of size 1.
inline bool lies_so(const at::Tensor& t, bool channels_last) { return t.is_contiguous(memory_format(channels_last)); }

// Whether one of the operands is channels_last in a way that the strides of dimensions of size 1 cannot change: torch's
// own answer, which the result's format follows, heeds them.
inline bool lies_channels_last(const at::Tensor& a, const at::Tensor& b) {
  const auto lies = [](const at::Tensor& t) {
    int64_t sizes[4], stride[4];
    for (int d = 0; d < 4; ++d) {
      sizes[d] = t.size(d);
      stride[d] = t.stride(d);
    }
    return is_channels_last(sizes, stride);
  };
  return lies(a) || lies(b);
}

// A bound as a number of the result's type, as torch's clamp has it; zero without a sign.
inline double bound_of(double value, at::ScalarType type) {
  if (type == at::kHalf) return double(float(c10::Half(float(value)))) + 0.0;
  if (type == at::kBFloat16) return double(float(c10::BFloat16(float(value)))) + 0.0;
  return (type == at::kDouble ? value : double(float(value))) + 0.0;
}
inline Epilogue epilogue_of(const CallArguments& call, at::ScalarType type) {
  Epilogue epilogue{};
  epilogue.activation = activation_of(call.activation);
  epilogue.low = bound_of(call.low, type);
  epilogue.high = bound_of(call.high, type);
  if (call.residual != nullptr && call.residual->numel() > 0) {
    check_storage("residual", *call.residual);
    epilogue.residual = ref(*call.residual);
  }
  return epilogue;
}

inline Buffers buffers_of(Pass pass, const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias,
                          const at::Tensor& result, const CallArguments& call) {
  Buffers buffers{};
  check_storage(pass == Pass::Forward ? "input" : "grad_output", a);
  check_storage(pass == Pass::WeightGrad ? "input" : "weight", b);
  if (bias) check_storage("bias", *bias);
  const TensorRef out = ref(result), first = ref(a), second = ref(b);
  switch (pass) {
    case Pass::Forward:
      buffers = {first, second, out};
      buffers.epilogue = epilogue_of(call, a.scalar_type());
      break;
    case Pass::InputGrad:
      buffers = {out, second, first};
      break;
    case Pass::WeightGrad:
      buffers = {second, out, first};
      break;
  }
  if (bias) {
    buffers.bias = bias->const_data_ptr();
    buffers.bias_stride = bias->stride(0);
  }
  return buffers;
}

// The epilogue of a call by torch's operators.
inline at::Tensor finish_by_torch(at::Tensor result, const CallArguments& call) {
  if (call.residual != nullptr) result.add_(*call.residual);
  switch (activation_of(call.activation)) {
    case Activation::None:
      break;
    case Activation::Relu:
      return result.relu_();
    case Activation::Clamp:
      return result.clamp_(call.low, call.high);
    case Activation::Silu:
      return at::silu_(result);
    case Activation::HardSwish:
      return at::hardswish_(result);
  }
  return result;
}

// An empty sum: no channels (the bias and the epilogue remain), or no images.
inline at::Tensor fill_empty_sum(Pass pass, at::Tensor result, const std::optional<at::Tensor>& bias,
                                 const CallArguments& call) {
  if (bias)
    result.copy_(bias->view({1, -1, 1, 1}).expand_as(result));
  else
    result.zero_();
  return pass == Pass::Forward ? finish_by_torch(result, call) : result;
}

}  // namespace conv_ext
