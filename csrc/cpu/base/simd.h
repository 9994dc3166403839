// Vectors of the instruction set that this library is compiled for, by the compiler's own vector types.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../machine.h"
#include "../../common/numbers.h"

namespace conv_ext {

#if defined(CONV_EXT_AMX_EMULATED)
constexpr Machine kMachine = machine_of(Isa::AmxEmulated);
#elif defined(__AMX_BF16__)
constexpr Machine kMachine = machine_of(Isa::Amx);
#elif defined(__AVX512BF16__)
constexpr Machine kMachine = machine_of(Isa::Avx512Bf16);
#elif defined(__AVX512F__)
constexpr Machine kMachine = machine_of(Isa::Avx512);
#elif defined(__AVX2__)
constexpr Machine kMachine = machine_of(Isa::Avx2);
#else
constexpr Machine kMachine = machine_of(Isa::Baseline);
#endif
constexpr int kVectorBytes = int(kMachine.vector_bytes);

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  // For loads and stores at any address, of memory that others see as scalars.
  typedef A unaligned __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));
};
template <class A>
using Vec = typename VectorOf<A>::type;
template <class A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));

template <class A>
inline __attribute__((always_inline)) Vec<A> load(const A* p) {
  return *reinterpret_cast<const typename VectorOf<A>::unaligned*>(p);
}
template <class A>
inline __attribute__((always_inline)) void store(A* p, Vec<A> v) {
  *reinterpret_cast<typename VectorOf<A>::unaligned*>(p) = v;
}
template <class A>
inline __attribute__((always_inline)) A load_one(const A* p) {
  A value;
  memcpy(&value, p, sizeof(A));
  return value;
}
// a - 0 rather than 0 + a, which would turn -0 into +0.
template <class A>
inline __attribute__((always_inline)) Vec<A> splat(A a) {
  return a - Vec<A>{};
}

template <class A>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  typedef int32_t type;
};
template <>
struct IntegerOf<double> {
  typedef int64_t type;
};

// All ones in the first `count` lanes.
template <class A>
inline Vec<typename IntegerOf<A>::type> first_lanes(int64_t count) {
  typedef typename IntegerOf<A>::type I;
  Vec<I> lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = I(i);
  return lane < (I(count) - Vec<I>{});
}
template <class A>
inline __attribute__((always_inline)) Vec<A> keep(Vec<A> v, Vec<typename IntegerOf<A>::type> mask) {
  return (Vec<A>)((Vec<typename IntegerOf<A>::type>)v & mask);
}

// The lanes of a where the mask has ones, else those of b.
template <class A>
inline __attribute__((always_inline)) Vec<A> select(Vec<typename IntegerOf<A>::type> mask, Vec<A> a, Vec<A> b) {
  typedef Vec<typename IntegerOf<A>::type> Bits;
  return (Vec<A>)(((Bits)a & mask) | ((Bits)b & ~mask));
}

// The first `count` lanes in memory, 0 < count < kLanes; the others are zero, and their addresses are not touched.
template <class A>
inline __attribute__((always_inline)) Vec<A> load_first(const A* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  else
    return (Vec<A>)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p);
#elif defined(__AVX2__)
  const auto mask = (__m256i)first_lanes<A>(count);
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), mask);
  else
    return (Vec<A>)_mm256_maskload_pd(reinterpret_cast<const double*>(p), mask);
#else
  Vec<A> v{};
  for (int i = 0; i < kLanes<A>; ++i)
    if (i < count) memcpy(reinterpret_cast<char*>(&v) + i * sizeof(A), p + i, sizeof(A));
  return v;
#endif
}
template <class A>
inline __attribute__((always_inline)) void store_first(A* p, Vec<A> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v);
#elif defined(__AVX2__)
  const auto mask = (__m256i)first_lanes<A>(count);
  if constexpr (sizeof(A) == 4)
    _mm256_maskstore_ps(reinterpret_cast<float*>(p), mask, (__m256)v);
  else
    _mm256_maskstore_pd(reinterpret_cast<double*>(p), mask, (__m256d)v);
#else
  for (int i = 0; i < kLanes<A>; ++i)
    if (i < count) memcpy(p + i, reinterpret_cast<const char*>(&v) + i * sizeof(A), sizeof(A));
#endif
}

// Lanes of a and b, numbered through, in the order of an index.
template <class A, class Index>
inline __attribute__((always_inline)) Vec<A> shuffle(Vec<A> a, Vec<A> b, Index index) {
#if defined(__clang__)
  Vec<A> result;
  for (int i = 0; i < kLanes<A>; ++i) result[i] = index[i] < kLanes<A> ? a[index[i]] : b[index[i] - kLanes<A>];
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// The numbers 0 ... count - 1 as template arguments: shuffles by them are constants wherever they are inlined.
template <class T, T... i>
struct Numbers {};
#if defined(__clang__)
template <int count>
using NumbersTo = __make_integer_seq<Numbers, int, count>;
#else
template <int count>
using NumbersTo = Numbers<int, __integer_pack(count)...>;
#endif

// Swaps the upper halves of blocks of 2 * half lanes of a with the lower halves of b's.
template <class A, int half, int... i>
inline __attribute__((always_inline)) void swap_halves(Vec<A>& a, Vec<A>& b, Numbers<int, i...>) {
  constexpr int L = kLanes<A>;
  const Vec<A> low = __builtin_shufflevector(a, b, ((i & half) ? L + i - half : i)...);
  b = __builtin_shufflevector(a, b, ((i & half) ? L + i : i + half)...);
  a = low;
}

// Turns kLanes rows of kLanes columns round, in log2(kLanes) rounds of swaps between halves.
template <class A, int half = kLanes<A> / 2>
inline __attribute__((always_inline)) void transpose(Vec<A>* row) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i)
    if (!(i & half)) swap_halves<A, half>(row[i], row[i + half], NumbersTo<kLanes<A>>{});
  if constexpr (half > 1) transpose<A, half / 2>(row);
}

// column[j] = the elements j of kLanes rows in memory, `stride` apart, for the first `count` elements of a row; the
// other columns are zero, and their addresses are not touched.
template <class A>
inline __attribute__((always_inline)) void load_transposed(Vec<A>* column, const A* from, int64_t stride,
                                                           int64_t count = kLanes<A>) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    // Quarters of four rows fill a vector as they are loaded; what remains are 4 x 4 squares within the quarters, which
    // need half the shuffles of a square of 16.
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      __m512 row[4];
      const auto gather = [&](auto load_quarter) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const float* at = from + i * stride + quarter * 4;
          __m512 v = _mm512_castps128_ps512(load_quarter(at));
          v = _mm512_insertf32x4(v, load_quarter(at + 4 * stride), 1);
          v = _mm512_insertf32x4(v, load_quarter(at + 8 * stride), 2);
          row[i] = _mm512_insertf32x4(v, load_quarter(at + 12 * stride), 3);
        }
      };
      if (count >= 4 * quarter + 4) {
        gather([](const float* at) __attribute__((always_inline)) { return _mm_loadu_ps(at); });
      } else {
        const __mmask8 mask = count > 4 * quarter ? __mmask8((1u << (count - 4 * quarter)) - 1) : __mmask8(0);
        gather([mask](const float* at) __attribute__((always_inline)) { return _mm_maskz_loadu_ps(mask, at); });
      }
      const __m512d a = (__m512d)_mm512_unpacklo_ps(row[0], row[1]), b = (__m512d)_mm512_unpackhi_ps(row[0], row[1]);
      const __m512d c = (__m512d)_mm512_unpacklo_ps(row[2], row[3]), d = (__m512d)_mm512_unpackhi_ps(row[2], row[3]);
      column[4 * quarter] = (Vec<A>)_mm512_unpacklo_pd(a, c);
      column[4 * quarter + 1] = (Vec<A>)_mm512_unpackhi_pd(a, c);
      column[4 * quarter + 2] = (Vec<A>)_mm512_unpacklo_pd(b, d);
      column[4 * quarter + 3] = (Vec<A>)_mm512_unpackhi_pd(b, d);
    }
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i)
    column[i] = count == kLanes<A> ? load(from + i * stride) : load_first(from + i * stride, count);
  transpose<A>(column);
}

// Whether a vector of which some lanes are left out is stored as fast as a whole one.
#if defined(__AVX512F__)
constexpr bool kMaskedStores = true;
#else
constexpr bool kMaskedStores = false;
#endif

// The first `count` of the elements at an address, every `step`-th of them, for 2 <= step <= kLanes; the other lanes
// are zero or repeat elements before the last one, and none behind the last one is touched.
template <class A, int step>
inline __attribute__((always_inline)) Vec<A> load_every(const A* from, int64_t count = kLanes<A>) {
  constexpr int L = kLanes<A>;
  const int64_t extent = (count - 1) * step + 1;
  const auto part = [&](int k) __attribute__((always_inline)) {
    const int64_t rest = extent - k * L;
    return rest >= L ? load(from + k * L) : rest > 0 ? load_first(from + k * L, rest) : Vec<A>{};
  };
  Vec<A> result = part(0);
#pragma GCC unroll 16
  for (int k = 1; k < step; ++k) {
    const Vec<A> next = part(k);
    Vec<typename IntegerOf<A>::type> index;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int at = i * step;
      index[i] = at / L == k ? L + at % L : k == 1 && at < L ? at : i;
    }
    result = shuffle<A>(result, next, index);
  }
  return result;
}

#if defined(__AVX512F__)
// Every bit that belongs to a multiple of `step`, of the k-th of some vectors.
template <class A, int step>
constexpr uint32_t every_lane(int k) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes<A>; ++i)
    if ((k * kLanes<A> + i) % step == 0) mask |= 1u << i;
  return mask;
}
// The first `count` lanes to every `step`-th element from an address on. What lies between is not touched.
template <class A, int step>
inline __attribute__((always_inline)) void store_every(A* to, Vec<A> v, int64_t count) {
  constexpr int L = kLanes<A>;
  const int64_t extent = (count - 1) * step + 1;
#pragma GCC unroll 16
  for (int k = 0; k < step; ++k) {
    const int64_t rest = extent - k * L;
    if (rest <= 0) return;
    Vec<typename IntegerOf<A>::type> index;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) index[i] = (k * L + i) / step;
    const Vec<A> spread = shuffle<A>(v, v, index);
    const uint32_t mask = every_lane<A, step>(k) & (rest >= L ? ~0u : (1u << rest) - 1);
    if constexpr (sizeof(A) == 4)
      _mm512_mask_storeu_ps(to + k * L, __mmask16(mask), (__m512)spread);
    else
      _mm512_mask_storeu_pd(to + k * L, __mmask8(mask), (__m512d)spread);
  }
}
#else
template <class A, int step>
void store_every(A* to, Vec<A> v, int64_t count);  // only where kMaskedStores
#endif

// The sum of each of kLanes vectors, in a fixed order, as one vector: round by round the two halves of every block
// are added, and two vectors of half blocks become one.
template <class A>
inline __attribute__((always_inline)) Vec<A> sum_each(Vec<A>* v) {
  constexpr int L = kLanes<A>;
  typedef Vec<typename IntegerOf<A>::type> Index;
  int count = L;
#pragma GCC unroll 8
  for (int block = L; block > 1; block /= 2) {
    const int half = block / 2;
    Index low, high;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int j = i % (L / 2);
      low[i] = (i < L / 2 ? 0 : L) + j / half * block + j % half;
      high[i] = low[i] + half;
    }
    count /= 2;
    // Neighbours meet, so that after the last round lane i belongs to vector i.
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      if (i >= count) break;
      Vec<A> a = v[2 * i], b = v[2 * i + 1];
      v[i] = shuffle<A>(a, b, low) + shuffle<A>(a, b, high);
    }
  }
  return v[0];
}

// The largest magnitude that narrow<T> rounds to zero: half of T's smallest number.
template <class T, class A>
constexpr A kUnderflow = A(0);
template <class A>
constexpr A kUnderflow<bfloat16, A> = A(0x1p-134);
template <class A>
constexpr A kUnderflow<float16, A> = A(0x1p-25);
template <>
constexpr double kUnderflow<float, double> = 0x1p-150;
template <>
constexpr long double kUnderflow<double, long double> = 0x1p-1075L;

}  // namespace conv_ext
