// What _C takes of libconv_ext_cuda.so. It is opened and not linked, so that one _C serves torch's builds for CUDA and
// those for the CPU, which have no libcudart.
#pragma once

#include "launch.h"

namespace conv_ext {

struct CudaLibrary {
  decltype(&launch_forward) launch[kPasses];  // in the order of Pass
  decltype(&cuda_error_text) error_text;
  decltype(&cuda_capability) capability;
};

}  // namespace conv_ext

// The one symbol that is looked up.
extern "C" __attribute__((visibility("default"))) const conv_ext::CudaLibrary* conv_ext_cuda_library();
