// What the depthwise algorithm's loops share, whatever their lanes are: vectors of which a mask leaves out lanes,
// copies from one type to another, and the units of work that make up a task.
#pragma once

#include "../base/reduction.h"
#include "../base/roles.h"
#include "layout.h"

namespace conv_ext {

template <class A>
constexpr LaneBits kAllLanes = (LaneBits(1) << kLanes<A>)-1;
// The lanes l with first <= l < last.
template <class A>
inline LaneBits lanes_between(int64_t first, int64_t last) {
  constexpr int64_t L = kLanes<A>;
  first = min_of(max_of(first, 0), L);
  last = min_of(max_of(last, first), L);
  return LaneBits((uint64_t(1) << last) - (uint64_t(1) << first));
}

// The other lanes are zero, and their memory is not touched. `all`: there are none.
template <class A, bool all>
inline __attribute__((always_inline)) Vec<A> load_lanes(const A* p, LaneBits bits) {
  if constexpr (all) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_maskz_loadu_ps(__mmask16(bits), p);
  else
    return (Vec<A>)_mm512_maskz_loadu_pd(__mmask8(bits), p);
#elif defined(__AVX2__)
  typedef typename IntegerOf<A>::type I;
  Vec<I> bit;
  for (int i = 0; i < kLanes<A>; ++i) bit[i] = I(1) << i;
  const auto mask = (__m256i)(((I(bits) - Vec<I>{}) & bit) == bit);
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), mask);
  else
    return (Vec<A>)_mm256_maskload_pd(reinterpret_cast<const double*>(p), mask);
#else
  if (bits == kAllLanes<A>) return load(p);
  Vec<A> v{};
  for (int i = 0; i < kLanes<A>; ++i)
    if (bits >> i & 1) memcpy(reinterpret_cast<char*>(&v) + i * sizeof(A), p + i, sizeof(A));
  return v;
#endif
}
// `lanes` are the first ones.
template <class A>
inline __attribute__((always_inline)) void store_lanes(A* p, Vec<A> v, LaneBits lanes) {
  if (lanes == kAllLanes<A>)
    store(p, v);
  else
    store_first(p, v, __builtin_popcount(lanes));
}

// Of any type to the accumulator's, and back.
template <class A, class T>
inline void copy_lanes(A* to, const T* from, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, read_lanes<A>(from + i));
  if (i < count) store_first(to + i, read_lanes<A>(from + i, count - i), count - i);
}
template <class A, class T>
inline void copy_back(T* to, const A* from, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= count; i += L) write_lanes<T, A>(to + i, load(from + i));
  if (i < count) write_lanes<T, A>(to + i, load_first(from + i, count - i), count - i);
}

// Shares so many units out evenly among so many tasks: body(unit, scratch).
template <class Body>
inline void for_each_unit(const Executor& executor, int64_t tasks, int64_t scratch_bytes, int64_t units, Body body) {
  parallel_for(executor, tasks, scratch_bytes, [&](int64_t task, void* scratch) {
    for (int64_t unit = part_begin(units, tasks, task); unit < part_begin(units, tasks, task + 1); ++unit)
      body(unit, scratch);
  });
}

}  // namespace conv_ext
