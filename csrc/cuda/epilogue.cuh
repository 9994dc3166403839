// What becomes of a finished sum: bias and ReLU, one rounding, its place; or a part of a sum for reduce() to add up.
#pragma once

#include <type_traits>

#include "again.cuh"

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
  int32_t along_m;   // rows of gemm_m are neighbours in memory, else columns are
  int32_t vectors;   // neighbours can be written in whole, aligned vectors

  CONV_EXT_DEVICE void write(int64_t m, int64_t offset, Sum sum) const {
    if (partial != nullptr) {
      partial[m * stride_m + offset] = sum;
    } else {
      finish(m, data + m * stride_m + offset, sum);
    }
  }
  // The same for kWide neighbours, whose sums are neighbours too.
  template <bool along_m, int kWide>
  CONV_EXT_DEVICE void write_vector(int64_t m, int64_t offset, const Sum* sums) const {
    constexpr int kSums = 16 / int(sizeof(Sum));
    struct alignas(16) Sums {
      Sum sum[kSums];
    };
    struct alignas(16) Vector {
      T value[kWide];
    } vector;
    T* const to = data + m * stride_m + offset;
#pragma unroll
    for (int i = 0; i < kWide; i += kSums) {
      const Sums some = *reinterpret_cast<const Sums*>(sums + i);
#pragma unroll
      for (int j = 0; j < kSums; ++j) vector.value[i + j] = value(m + (along_m ? i + j : 0), to + i + j, some.sum[j]);
    }
    *reinterpret_cast<Vector*>(to) = vector;
  }
  CONV_EXT_DEVICE void finish(int64_t m, T* to, Sum sum) const { *to = value(m, to, sum); }
  CONV_EXT_DEVICE T value(int64_t m, const T* to, Sum sum) const {
    if (negative) sum = -sum;
    if (add) sum += Sum(widen(*to));
    return rounded(sum + bias_of(m));
  }
  // Without a bias the zero that changes no sum, not even another zero.
  CONV_EXT_DEVICE Sum bias_of(int64_t m) const { return bias != nullptr ? Sum(widen(bias[m * bias_stride])) : -Sum(0); }
  CONV_EXT_DEVICE T rounded(Sum sum) const {
    T value;
    narrow(sum, &value);
    if (relu && widen(value) < 0) narrow(Sum(0), &value);  // of the rounded number, as an nn.ReLU behind it; NaN stays
    return value;
  }
};

// The parts of split reductions lie one after the other, each as a contiguous tensor whose dimensions, the slowest
// first, are those that `order` names of the result's.
template <class T, class Sum, class Again = NotAgain>
struct ReduceParameters {
  int64_t size[4], stride[4];  // of the result, in the parts' order
  int32_t order[4];
  int32_t splits;
  int32_t has_bias[4];  // 1 for the dimension that has one, else 0
  const Sum* partial;
  Result<T, Sum> result;  // stride_m unused
  Again again;
};

constexpr int kReduceThreads = 256;

// Adds up the parts in their order: a thread has kWide neighbours of them.
template <class T, class Sum, class Again, int kWide>
CONV_EXT_KERNEL(kReduceThreads)
reduce(ReduceParameters<T, Sum, Again> p) {
  struct alignas(sizeof(Sum) * kWide) Sums {
    Sum one[kWide];
  };
  const int64_t all = p.size[0] * p.size[1] * p.size[2] * (p.size[3] / kWide);
  const int64_t index = block_index() * kReduceThreads + thread_index();
  if (index >= all) return;
  const Sums* const parts = reinterpret_cast<const Sums*>(p.partial) + index;
  Sums sum = parts[0];
#pragma unroll 4
  for (int split = 1; split < p.splits; ++split) {
    const Sums more = parts[split * all];
#pragma unroll
    for (int i = 0; i < kWide; ++i) sum.one[i] += more.one[i];
  }
  const Quotient last = divide(index, int32_t(p.size[3] / kWide));
  const Digits first = digits_of(last.whole, int32_t(p.size[1]), int32_t(p.size[2]));
  const int64_t digit[4] = {first.high, first.middle, first.low, int64_t(last.rest) * kWide};
  int64_t offset = 0, m = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    m += digit[i] * p.has_bias[i];
    offset += digit[i] * p.stride[i];
  }
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    if constexpr (!std::is_same_v<Again, NotAgain>)
      if (!is_finite(sum.one[i])) {
        int64_t at[4];
        for (int d = 0; d < 4; ++d) at[p.order[d]] = digit[d] + (d == 3 ? i : 0);
        sum.one[i] = p.again.sum(at);
      }
    p.result.finish(m + i * p.has_bias[3], p.result.data + offset + i * p.stride[3], sum.one[i]);
  }
}

}  // namespace cuda
}  // namespace conv_ext
