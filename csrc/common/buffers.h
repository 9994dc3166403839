// Where the operands of a pass lie in memory: pointers with strides.
#pragma once

#include "indexing.h"

namespace conv_ext {

// A 4-D tensor as the kernels see it. Strides count elements of the tensor's dtype; the data need not be aligned.
struct TensorRef {
  void* data;
  int64_t stride[4];
};

// What a forward makes of the weights before it multiplies: for this call, in its workspace; or in memory that is kept,
// which one call fills and others read (plan.h).
enum class PackedWeights : int32_t { OfCall, Make, Kept };

// What becomes of a finished sum, its bias included. Clamp takes it between two bounds, HardSwish is
// x * min(max(x + 3, 0), 6) / 6, Silu x / (1 + exp(-x)).
enum class Activation : int32_t { None, Relu, Clamp, Silu, HardSwish };

// The sum, as the result's type holds it, plus the residual, rounded again, through the activation, rounded again: the
// bits that an addition and an activation behind the convolution would have.
struct Epilogue {
  TensorRef residual;  // of the result's sizes, with any strides, only read; data is nullptr: none
  Activation activation;
  double low, high;  // of Clamp; numbers of the result's type

  bool any() const { return residual.data != nullptr || activation != Activation::None; }
};

// Which of the three is written follows from the pass: output (forward), input (input_grad), weight (weight_grad).
// The output's place holds the upstream gradient in the two backward passes.
struct Buffers {
  TensorRef input;   // (N, C, H, W)
  TensorRef weight;  // (K, C/g, R, S)
  TensorRef output;  // (N, K, P, Q)
  const void* bias;  // (K), or nullptr; forward only
  int64_t bias_stride;
  void* workspace;    // plan.workspace_bytes, aligned to 64 bytes
  Epilogue epilogue;  // forward only; like the bias no matter of the plan
  void* kept;         // where weights are kept: plan.kept_bytes, aligned to 64 bytes
  PackedWeights packed;
};

// How the three tensors lie, which is what a plan may know of memory. Dimensions of size 1 have no say: their strides
// are those of a dense tensor.
struct Strides {
  int64_t input[4];   // (N, C, H, W)
  int64_t weight[4];  // (K, C/g, R, S)
  int64_t output[4];  // (N, K, P, Q)
};

struct TensorSizes {
  int64_t input[4], weight[4], output[4];  // as in Strides
};
inline TensorSizes sizes_of(const ConvProblem& z) {
  return {{z.n, z.c, z.h, z.w}, {z.k, z.group_c(), z.r, z.s}, {z.n, z.k, z.p, z.q}};
}

// Whether the channels of a tensor are neighbours and its rows and columns are not; dimensions of size 1 have no say,
// and what may be either is not.
inline bool is_channels_last(const int64_t (&sizes)[4], const int64_t (&stride)[4]) {
  const auto ordered = [&](const int(&fastest_first)[4]) {
    int64_t least = 0;
    for (const int d : fastest_first) {
      if (sizes[d] == 1) continue;
      int64_t span = 0;
      if (stride[d] < least || !checked_mul(sizes[d], stride[d], &span)) return false;
      least = span;
    }
    return true;
  };
  return ordered({1, 3, 2, 0}) && !ordered({3, 2, 1, 0});
}

// A dimension of size 1 gets the stride that it would have if the dimensions behind it lay dense.
inline void settle_strides(const int64_t (&sizes)[4], int64_t (&stride)[4]) {
  for (int d = 3; d >= 0; --d) {
    if (sizes[d] != 1) continue;
    int behind = d + 1;  // the next dimension that has a stride to speak of
    while (behind < 4 && sizes[behind] == 1) ++behind;
    if (behind == 4 || !checked_mul(sizes[behind], stride[behind], &stride[d])) stride[d] = 1;
  }
}

inline void set_dense(const int64_t (&sizes)[4], bool channels_last, int64_t (&stride)[4]) {
  int64_t next = 1;
  constexpr int kFastestFirst[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  for (const int d : kFastestFirst[channels_last]) {
    stride[d] = next;
    next = product(next, sizes[d]);
  }
}
inline Strides settled(const ConvProblem& z, Strides strides) {
  const TensorSizes sizes = sizes_of(z);
  settle_strides(sizes.input, strides.input);
  settle_strides(sizes.weight, strides.weight);
  settle_strides(sizes.output, strides.output);
  return strides;
}
inline Strides strides_of(const ConvProblem& z, const Buffers& b) {
  Strides strides;
  for (int d = 0; d < 4; ++d) {
    strides.input[d] = b.input.stride[d];
    strides.weight[d] = b.weight.stride[d];
    strides.output[d] = b.output.stride[d];
  }
  return settled(z, strides);
}
// Where nothing else is known: all three dense, in the layout that the problem names.
inline Strides dense_strides(const ConvProblem& z) {
  const TensorSizes sizes = sizes_of(z);
  Strides strides;
  set_dense(sizes.input, z.channels_last, strides.input);
  set_dense(sizes.weight, z.channels_last, strides.weight);
  set_dense(sizes.output, z.channels_last, strides.output);
  return settled(z, strides);
}

}  // namespace conv_ext
