// The three operators of a device, made of the one function that runs any pass there.
#pragma once

#include <torch/library.h>

#include "operators.h"

namespace conv_ext {

template <RunPass run>
at::Tensor forward_by(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      std::string_view precision, std::string_view algorithm, std::string_view activation,
                      const std::optional<at::Tensor>& residual, double low, double high) {
  return run(Pass::Forward, input, weight, bias,
             {{},
              stride,
              padding,
              dilation,
              groups,
              precision,
              algorithm,
              activation,
              nullptr,
              residual ? &*residual : nullptr,
              low,
              high});
}

template <RunPass run>
at::Tensor forward_packed_by(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& packed,
                             const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups, std::string_view precision,
                             std::string_view algorithm, std::string_view activation,
                             const std::optional<at::Tensor>& residual, double low, double high) {
  return run(Pass::Forward, input, weight, bias,
             {{},
              stride,
              padding,
              dilation,
              groups,
              precision,
              algorithm,
              activation,
              &packed,
              residual ? &*residual : nullptr,
              low,
              high});
}

template <RunPass run>
at::Tensor input_grad_by(const at::Tensor& grad_output, const at::Tensor& weight, at::IntArrayRef input_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                         std::string_view precision, std::string_view algorithm) {
  return run(Pass::InputGrad, grad_output, weight, std::nullopt,
             {input_size, stride, padding, dilation, groups, precision, algorithm, "none"});
}

template <RunPass run>
at::Tensor weight_grad_by(const at::Tensor& grad_output, const at::Tensor& input, at::IntArrayRef kernel_size,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                          std::string_view precision, std::string_view algorithm) {
  return run(Pass::WeightGrad, grad_output, input, std::nullopt,
             {kernel_size, stride, padding, dilation, groups, precision, algorithm, "none"});
}

// For use in TORCH_LIBRARY_IMPL(conv_ext, <device's key>, library).
template <RunPass run>
void implement(torch::Library& library) {
  library.impl("forward", TORCH_FN(forward_by<run>));
  library.impl("forward_packed", TORCH_FN(forward_packed_by<run>));
  library.impl("input_grad", TORCH_FN(input_grad_by<run>));
  library.impl("weight_grad", TORCH_FN(weight_grad_by<run>));
}

}  // namespace conv_ext
