// The whole API of the CUDA kernels, in plain C types: nothing here or below knows torch.
#pragma once

#include "../common/buffers.h"
#include "plan.h"

namespace conv_ext {

// Whether two tensors of these sizes have the same strides, but for dimensions of size 1.
inline bool lies_alike(const int64_t (&sizes)[4], const TensorRef& a, const TensorRef& b) {
  for (int d = 0; d < 4; ++d)
    if (sizes[d] > 1 && a.stride[d] != b.stride[d]) return false;
  return true;
}

// Starts a pass's kernels on a stream (a cudaStream_t) of the current device and returns at once: 0, or the CUDA error
// of a launch. The buffers are as in kernels.h, with plan.workspace_bytes of workspace aligned to 256 bytes, and a
// residual that lies as the output does (lies_alike); no size is 0.
int launch_forward(const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream);
int launch_input_grad(const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream);
int launch_weight_grad(const ConvProblem& problem, const CudaPlan& plan, const Buffers& buffers, void* stream);

const char* cuda_error_text(int error);
// Compute capability of a device, as 10 major + minor; a negative CUDA error.
int cuda_capability(int device);

}  // namespace conv_ext
