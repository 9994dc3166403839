// What becomes of a finished sum: bias and ReLU, one rounding, its place; or a part of a sum for reduce() to add up.
#pragma once

#include "math.cuh"

namespace conv_ext {
namespace cuda {

template <class T, class Sum>
struct Result {
  T* data;
  Sum* partial;      // where not nullptr, sums go there as they are
  int64_t stride_m;  // elements between rows of gemm_m
  const T* bias;     // one for each row of gemm_m, or nullptr
  int64_t bias_stride;
  int32_t relu;
  int32_t add;       // to what is there already: a complex sum is made of two real ones
  int32_t negative;  // the sum is subtracted

  CONV_EXT_DEVICE void write(int64_t m, int64_t offset, Sum sum) const {
    if (partial != nullptr) {
      partial[m * stride_m + offset] = sum;
    } else {
      finish(m, data + m * stride_m + offset, sum);
    }
  }
  CONV_EXT_DEVICE void finish(int64_t m, T* to, Sum sum) const {
    if (negative) sum = -sum;
    if (add) sum += Sum(widen(*to));
    if (bias != nullptr) sum += Sum(widen(bias[m * bias_stride]));
    T value;
    narrow(sum, &value);
    if (relu && widen(value) < 0) narrow(Sum(0), &value);  // of the rounded number, as an nn.ReLU behind it; NaN stays
    *to = value;
  }
};

// The parts of split reductions lie one after the other, each as a contiguous (A, B, C, D) tensor.
template <class T, class Sum>
struct ReduceParameters {
  int64_t size[4], stride[4];  // of the result
  int32_t splits;
  int32_t bias_dimension;  // 1: channels of a forward result
  const Sum* partial;
  Result<T, Sum> result;  // stride_m unused
};

constexpr int kReduceThreads = 256;

// Adds up the parts in their order: one thread for each result.
template <class T, class Sum>
CONV_EXT_KERNEL(kReduceThreads)
reduce(ReduceParameters<T, Sum> p) {
  const int64_t elements = p.size[0] * p.size[1] * p.size[2] * p.size[3];
  const int64_t index = block_index() * kReduceThreads + thread_index();
  if (index >= elements) return;
  Sum sum = p.partial[index];
  for (int split = 1; split < p.splits; ++split) sum += p.partial[split * elements + index];
  int64_t rest = index, offset = 0, m = 0;
  for (int d = 3; d >= 0; --d) {
    const int64_t i = rest % p.size[d];
    if (d == p.bias_dimension) m = i;
    offset += i * p.stride[d];
    rest /= p.size[d];
  }
  p.result.finish(m, p.result.data + offset, sum);
}

}  // namespace cuda
}  // namespace conv_ext
