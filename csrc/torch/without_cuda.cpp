// Stands for cuda.cpp in a build without CUDA kernels: a call with CUDA tensors is checked, and told how to get them.
#include "registration.h"

namespace conv_ext {

Tensor run_cuda(Pass pass, const Operand& a, const Operand& b, const Operand* bias, const CallArguments& call) {
  validate(pass, a, b, bias, call);
  throw NotImplemented(
      text_of("conv_ext was built without CUDA kernels, and got tensors on ", a.device,
              ". They are built where torch is a CUDA build and nvcc of the same CUDA version is on the PATH: "
              "CONV_EXT_CUDA=1 python -m pip install --no-build-isolation -e . (in the checkout of conv_ext)"));
}

void load_cuda_library(const std::string&) { throw std::runtime_error("conv_ext was built without CUDA kernels"); }

namespace {
const Library kLibrary = implemented<run_cuda>("CUDA");
}  // namespace

}  // namespace conv_ext
