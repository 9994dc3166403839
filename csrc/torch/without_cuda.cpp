// Stands for cuda.cpp in a build without CUDA kernels: a call with CUDA tensors is checked, and told how to get them.
#include <ATen/ATen.h>

#include "registration.h"

namespace conv_ext {

at::Tensor run_cuda(Pass pass, const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias,
                    const CallArguments& call) {
  validate(pass, a, b, bias, call);
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "conv_ext was built without CUDA kernels, and got tensors on ", a.device(),
      ". They are built where torch is a CUDA build and nvcc of the same CUDA version is on the PATH: "
      "CONV_EXT_CUDA=1 python -m pip install --no-build-isolation -e . (in the checkout of conv_ext)");
}

void load_cuda_library(const std::string&) { TORCH_CHECK(false, "conv_ext was built without CUDA kernels"); }

TORCH_LIBRARY_IMPL(conv_ext, CUDA, library) { implement<run_cuda>(library); }

}  // namespace conv_ext
