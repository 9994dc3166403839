// The launchers of cuda/launch.h for cuda.cpp: those of libconv_ext_cuda.so, once that is loaded.
#include "../cuda/library.h"

#include <atomic>
#include <string>

#include "instruction_sets.h"
#include "open_library.h"
#include "operators.h"

// setup.py names that of the CUDA which the kernels are compiled for.
#ifndef CONV_EXT_CUDART
#define CONV_EXT_CUDART "libcudart.so"
#endif

namespace conv_ext {
namespace {

std::atomic<const CudaLibrary*> loaded_library{nullptr};

// Without Python, which loads them when conv_ext is imported, the kernels are loaded by the first call: where torch has
// loaded the run-time library of the CUDA that they are for.
void load_beside_these() {
  if (loaded_library == nullptr && dlopen(CONV_EXT_CUDART, RTLD_NOW | RTLD_NOLOAD) != nullptr)
    load_cuda_library(library_path("cuda"));
}

const CudaLibrary& library() {
  static const bool looked = (load_beside_these(), true);
  static_cast<void>(looked);
  const CudaLibrary* const library = loaded_library;
  if (library == nullptr)
    throw NotImplemented(
        "conv_ext has not loaded its CUDA kernels, since they were built for another major version of CUDA than this "
        "torch: python -m conv_ext info says which. Install the wheel for it, or build again with nvcc of that version "
        "on the PATH");
  return *library;
}

int launch(Pass pass, const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return library().launch[int(pass)](problem, plan, buffers, stream);
}

}  // namespace

void load_cuda_library(const std::string& path) {
  void* const handle = open_library(path, "the library of CUDA kernels");
  const auto entry = reinterpret_cast<decltype(&conv_ext_cuda_library)>(dlsym(handle, "conv_ext_cuda_library"));
  CONV_EXT_CHECK(entry != nullptr, "not a library of conv_ext's CUDA kernels: ", path);
  loaded_library = entry();
}

int launch_forward(const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return launch(Pass::Forward, problem, plan, buffers, stream);
}
int launch_input_grad(const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return launch(Pass::InputGrad, problem, plan, buffers, stream);
}
int launch_weight_grad(const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return launch(Pass::WeightGrad, problem, plan, buffers, stream);
}
const char* cuda_error_text(int error) { return library().error_text(error); }
int cuda_capability(int device) { return library().capability(device); }

}  // namespace conv_ext
