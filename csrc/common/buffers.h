// Where the operands of a pass lie in memory: pointers with strides.
#pragma once

#include <stdint.h>

namespace conv_ext {

// A 4-D tensor as the kernels see it. Strides count elements of the tensor's dtype; the data need not be aligned.
struct TensorRef {
  void* data;
  int64_t stride[4];
};

// Which of the three is written follows from the pass: output (forward), input (input_grad), weight (weight_grad).
// The output's place holds the upstream gradient in the two backward passes.
struct Buffers {
  TensorRef input;   // (N, C, H, W)
  TensorRef weight;  // (K, C/g, R, S)
  TensorRef output;  // (N, K, P, Q)
  const void* bias;  // (K), or nullptr; forward only
  int64_t bias_stride;
  void* workspace;  // plan.workspace_bytes, aligned to 64 bytes
  bool relu;        // of the finished sums, forward only; like the bias no matter of the plan
};

}  // namespace conv_ext
