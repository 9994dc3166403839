// What becomes of a finished sum: bias, one rounding, the epilogue (Finish), its place; or a part of a sum for reduce()
// to add up.
#pragma once

#include <type_traits>

#include "../common/buffers.h"
#include "again.cuh"

namespace conv_ext {
namespace cuda {

// The epilogue of a number that T holds: the rules are those of Epilogue in common/buffers.h, and the bits are those of
// the CPU's (cpu/base/epilogue.h) but for what exponential functions differ in. Of zeros it does nothing.
template <class T, class Sum>
struct Finish {
  Activation activation;
  int32_t adds;      // whether there is a residual; it lies as the result does
  int32_t vectors;   // whether it is read in whole, aligned vectors where the result is written so
  int64_t residual;  // bytes from a result to what is added to it
  Sum low, high;     // of Clamp

  // What is added to kCount neighbours.
  template <int kCount>
  CONV_EXT_DEVICE void read(const T* to, T (&other)[kCount]) const {
    constexpr int kBytes = kCount * int(sizeof(T));
    struct alignas(kBytes < 16 ? kBytes : 16) Vector {
      T value[kCount];
    };
    if (!adds) return;
    const T* const from = reinterpret_cast<const T*>(reinterpret_cast<intptr_t>(to) + residual);
    if (kCount > 1 && vectors) {
      const Vector vector = *reinterpret_cast<const Vector*>(from);
#pragma unroll
      for (int i = 0; i < kCount; ++i) other[i] = vector.value[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) other[i] = from[i];
    }
  }
  // other: what read() brought.
  CONV_EXT_DEVICE T operator()(T value, T other) const {
    if (adds) narrow(Sum(widen(value)) + Sum(widen(other)), &value);
    if (activation == Activation::None) return value;
    const Sum v = Sum(widen(value));
    if (activation == Activation::Relu) {
      if (v < 0) narrow(Sum(0), &value);  // NaN stays, a zero keeps its sign
    } else if (activation == Activation::Clamp) {
      if (v < low) narrow(low, &value);
      if (v > high) narrow(high, &value);
    } else if (activation == Activation::Silu) {
      const Sum e = exponential(v < 0 ? v : -v);  // at most 1
      narrow((v < 0 ? v * e : v) / (Sum(1) + e), &value);
    } else {
      const Sum x = v + Sum(3);
      narrow(v * (x < 0 ? Sum(0) : x > 6 ? Sum(6) : x) / Sum(6), &value);
    }
    return value;
  }
};

template <class T, class Sum>
struct Result {
  T* data;
  Sum* partial;      // where not nullptr, sums go there as they are
  int64_t stride_m;  // elements between rows of gemm_m
  const T* bias;     // one for each row of gemm_m, or nullptr
  int64_t bias_stride;
  Finish<T, Sum> finish;
  int32_t add;       // to what is there already: a complex sum is made of two real ones
  int32_t negative;  // the sum is subtracted
  int32_t along_m;   // rows of gemm_m are neighbours in memory, else columns are
  int32_t vectors;   // neighbours can be written in whole, aligned vectors

  CONV_EXT_DEVICE void write(int64_t m, int64_t offset, Sum sum) const {
    if (partial != nullptr) {
      partial[m * stride_m + offset] = sum;
    } else {
      write_to(m, data + m * stride_m + offset, sum);
    }
  }
  CONV_EXT_DEVICE void write_to(int64_t m, T* to, Sum sum) const {
    T other[1] = {};
    finish.read(to, other);
    *to = value(m, to, sum, other[0]);
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
    T other[kWide] = {};
    finish.read(to, other);
#pragma unroll
    for (int i = 0; i < kWide; i += kSums) {
      const Sums some = *reinterpret_cast<const Sums*>(sums + i);
#pragma unroll
      for (int j = 0; j < kSums; ++j)
        vector.value[i + j] = value(m + (along_m ? i + j : 0), to + i + j, some.sum[j], other[i + j]);
    }
    *reinterpret_cast<Vector*>(to) = vector;
  }
  // What is to stand at `to`; other: what the epilogue adds there.
  CONV_EXT_DEVICE T value(int64_t m, const T* to, Sum sum, T other) const {
    if (negative) sum = -sum;
    if (add) sum += Sum(widen(*to));
    return finished(sum + bias_of(m), other);
  }
  // Without a bias the zero that changes no sum, not even another zero.
  CONV_EXT_DEVICE Sum bias_of(int64_t m) const { return bias != nullptr ? Sum(widen(bias[m * bias_stride])) : -Sum(0); }
  CONV_EXT_DEVICE T finished(Sum sum, T other) const {
    T value;
    narrow(sum, &value);
    return finish(value, other);
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
    p.result.write_to(m + i * p.has_bias[3], p.result.data + offset + i * p.stride[3], sum.one[i]);
  }
}

}  // namespace cuda
}  // namespace conv_ext
