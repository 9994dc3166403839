// The innermost loops of the depthwise algorithm where lanes are columns; those of the backward passes alone are in
// depthwise_backward.h.
//
//   depthwise_run  forward, input_grad:  out[b][lane] = bias + sum over r, s of  w[r][s] * x[row of b, r][tap s + lane]
//
// B outputs lie below one another; a vector of the source that is loaded for one of them serves the others that read
// the same row, so that the loads per multiply-add fall from 1 to about 1/R. Padding is lanes that a mask leaves out:
// they read as zero and are not touched.
#pragma once

#include "../base/pack.h"
#include "layout.h"

namespace conv_ext {

constexpr int kMaxDepthwiseRows = 7;  // outputs below one another: the maps of many networks are multiples of 7
// weight_grad holds them beside the sums of 9 taps.
#if defined(__AVX512F__)
constexpr int kMaxDotRows = 7;
constexpr bool kMasksAreFree = true;
#else
constexpr int kMaxDotRows = 3;
constexpr bool kMasksAreFree = false;
#endif

// Elements ahead of those in use. What is read in blocks of rows is no stream that the processor would see: without
// prefetching, maps that come from memory take two to three times as long (3x3 on 32 channels of 112x112: 1990 us
// against 554; 1123 at 1 KiB, 776 at 4 KiB).
constexpr int kPrefetch = 2048;

// One bit for each lane.
typedef uint32_t LaneBits;
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

template <class A, bool whole>
inline __attribute__((always_inline)) Vec<A> load_lanes(const A* p, LaneBits bits) {
  if constexpr (whole) return load(p);
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

// What one tap of a row reads: `offset` elements from the row's first, or with a column step of 2 every other one of
// two neighbouring vectors.
struct ColumnTap {
  int64_t offset;
  LaneBits low, high;
};

template <class A, int column_step, bool whole>
inline __attribute__((always_inline)) Vec<A> load_tap(const A* p, LaneBits low, LaneBits high) {
  if constexpr (column_step == 1) {
    (void)high;
    return load_lanes<A, whole>(p, low);
  } else {
    constexpr int L = kLanes<A>;
    Vec<typename IntegerOf<A>::type> even;
    for (int i = 0; i < L; ++i) even[i] = 2 * i;
    return shuffle<A>(load_lanes<A, whole>(p, low), load_lanes<A, whole>(p + L, high), even);
  }
}

// Neighbouring outputs of a row that read alike: `count` vectors of them.
struct ColumnSegment {
  int64_t first, count;  // the first output of the phase, in outputs
  LaneBits lanes;        // of each vector's outputs
  bool whole;            // every lane that is loaded lies in the source
  ColumnTap* tap;
};

template <class A>
inline __attribute__((always_inline)) void store_lanes(A* p, Vec<A> v, LaneBits lanes) {
  if (lanes == kAllLanes<A>)
    store(p, v);
  else
    store_first(p, v, __builtin_popcount(lanes));
}

// With three taps and a column step of 2 one pair of loads serves them all; the last lane's third tap lies beyond it.
constexpr bool shares_pairs(int column_step, int fixed_columns) { return column_step == 2 && fixed_columns == 3; }
// lane l of the result: position 2 l + s of the pair.
template <class A>
inline __attribute__((always_inline)) Vec<A> from_pair(Vec<A> low, Vec<A> high, int s) {
  Vec<typename IntegerOf<A>::type> index;
  for (int l = 0; l < kLanes<A>; ++l) index[l] = (2 * l + s) % (2 * kLanes<A>);
  return shuffle<A>(low, high, index);
}

// All the segments of a row, for so many channels, whose elements lie so far apart (a row of zeros must reach as far).
template <class A>
struct RunArguments {
  const A* const* rows;  // output b reads row b * row_step + r with the r-th tap of a column
  int64_t row_step;      // where the kernel does not know it: one tap of a column at a time
  int64_t chunks;        // taps of a column, in chunks of R
  const ColumnSegment* segment;
  int64_t segments, columns;  // columns of taps
  const A* weight;            // one element for each tap
  int64_t weight_r, weight_s;
  const A* bias;
  A* out;
  int64_t out_row;
  bool relu;
  int64_t channels, x_channel, weight_channel, out_channel;
  const A* ahead;  // prefetched while the first vector is computed, the rows one below the other; nullptr: nothing is
  int64_t ahead_row;
};

// Where the next vector's elements lie.
struct VectorStep {
  int64_t x, weight, bias, out;
};

// The products of an output are added in the order of chunks, then columns, then the rows of a chunk; where three taps
// share a pair of loads, row by row. V vectors at a time: B chains of sums alone would wait for one another.
template <class A, int R, int B, int V, int row_step, int column_step, int fixed_columns, bool whole>
inline __attribute__((always_inline)) void run_vectors(const RunArguments<A>& a, const ColumnTap* tap, int64_t x_first,
                                                       const A* weights, const A* bias, A* out, const VectorStep& next,
                                                       LaneBits lanes, const A* ahead) {
  constexpr int L = kLanes<A>;
  const int64_t columns = fixed_columns ? fixed_columns : a.columns, chunks = fixed_columns ? 1 : a.chunks;
  const int64_t out_row = a.out_row, weight_r = a.weight_r, weight_s = a.weight_s;
  const A* const* const all_rows = a.rows;
  Vec<A> sum[V][B];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sum[v][b] = splat(read<A>(bias + v * next.bias));
  if (row_step != 0 && B > 1 && ahead != nullptr) {
    const int64_t ahead_row = a.ahead_row;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 32
      for (int y = 0; y < B * row_step; ++y)
#pragma GCC unroll 2
        for (int half = 0; half < column_step; ++half)
          __builtin_prefetch(ahead + y * ahead_row + v * next.x + half * L, 0, 3);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) __builtin_prefetch(out + v * next.out + b * out_row + kPrefetch, 1, 3);
    }
  }
  if constexpr (shares_pairs(column_step, fixed_columns)) {
    static_assert(V == 1, "three shuffles for a row are work enough");
    Vec<A> w[R][3];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) w[r][s] = splat(read<A>(weights + r * weight_r + s * weight_s));
    const int64_t at = tap[0].offset + x_first;
    const LaneBits low_bits = tap[0].low, high_bits = tap[0].high;
#pragma GCC unroll 32
    for (int y = 0; y < (B - 1) * row_step + R; ++y) {
      const A* const row = all_rows[y] + at;
      const Vec<A> low = load_lanes<A, whole>(row, low_bits), high = load_lanes<A, whole>(row + L, high_bits);
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) {
        const Vec<A> x = from_pair<A>(low, high, s);
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
          if (y - b * row_step >= 0 && y - b * row_step < R) sum[0][b] += w[y - b * row_step][s] * x;
      }
    }
  } else {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const A* const* const rows = all_rows + chunk * R;
      const A* const weight = weights + chunk * R * weight_r;
#pragma GCC unroll 3
      for (int64_t s = 0; s < columns; ++s) {
        Vec<A> w[V][R];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) w[v][r] = splat(read<A>(weight + v * next.weight + s * weight_s + r * weight_r));
        const int64_t at = tap[s].offset + x_first;
        const LaneBits low = tap[s].low, high = tap[s].high;
        if constexpr (row_step == 0) {
          static_assert(R == 1, "rows that outputs share are a fixed step apart");
          const int64_t step = a.row_step;
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v)
              sum[v][b] += w[v][0] * load_tap<A, column_step, whole>(rows[b * step] + at + v * next.x, low, high);
        } else {
#pragma GCC unroll 32
          for (int y = 0; y < (B - 1) * row_step + R; ++y)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
              const Vec<A> x = load_tap<A, column_step, whole>(rows[y] + at + v * next.x, low, high);
#pragma GCC unroll 8
              for (int b = 0; b < B; ++b)
                if (y - b * row_step >= 0 && y - b * row_step < R) sum[v][b] += w[v][y - b * row_step] * x;
            }
        }
      }
    }
  }
  if (a.relu) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) sum[v][b] = rectify<A, A>(sum[v][b]);
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) store_lanes(out + v * next.out + b * out_row, sum[v][b], lanes);
}

template <class A, int R, int B, int row_step, int column_step, int fixed_columns>
inline __attribute__((always_inline)) void run_columns(const RunArguments<A>& a) {
  constexpr int L = kLanes<A>, outputs = shares_pairs(column_step, fixed_columns) ? L - 1 : L;
  constexpr int V = kMasksAreFree && B == 7 && column_step == 1 ? 2 : 1;  // twice the registers, too
  const auto run = [&](bool whole, const ColumnTap* tap, int64_t x, const A* weight, const A* bias, A* out,
                       const VectorStep& next, int64_t count, LaneBits lanes, const A* ahead)
      __attribute__((always_inline)) {
    while (count > 0) {
      int done = 1;
      if (!kMasksAreFree && whole) {
        run_vectors<A, R, B, 1, row_step, column_step, fixed_columns, true>(a, tap, x, weight, bias, out, next, lanes,
                                                                            ahead);
      } else if (V == 2 && count >= 2) {
        run_vectors<A, R, B, V, row_step, column_step, fixed_columns, false>(a, tap, x, weight, bias, out, next, lanes,
                                                                             ahead);
        done = V;
      } else {
        run_vectors<A, R, B, 1, row_step, column_step, fixed_columns, false>(a, tap, x, weight, bias, out, next, lanes,
                                                                             ahead);
      }
      count -= done;
      x += done * next.x;
      if (ahead) ahead += done * next.x;
      weight += done * next.weight;
      bias += done * next.bias;
      out += done * next.out;
    }
  };
  const VectorStep to_column{outputs * column_step, 0, 0, outputs};
  const VectorStep to_channel{a.x_channel, a.weight_channel, 1, a.out_channel};
  for (int64_t i = 0; i < a.segments; ++i) {
    const ColumnSegment& segment = a.segment[i];
    const bool channels = segment.count == 1;
    for (int64_t c = 0; c < (channels ? 1 : a.channels); ++c)
      run(segment.whole, segment.tap, c * a.x_channel, a.weight + c * a.weight_channel, a.bias + c,
          a.out + c * a.out_channel + segment.first, channels ? to_channel : to_column,
          channels ? a.channels : segment.count, segment.lanes,
          a.ahead ? a.ahead + c * a.x_channel + segment.first * column_step : nullptr);
  }
}
template <class A, int R, int B, int row_step, int column_step>
void depthwise_run(const RunArguments<A>& a) {
  if constexpr (R == 3) {
    if (a.columns == 3 && a.chunks == 1) return run_columns<A, R, B, row_step, column_step, 3>(a);
  }
  run_columns<A, R, B, row_step, column_step, 0>(a);
}

// ---- the one place where the extents of a block become template arguments

// The taps of a column that are computed together, where outputs share rows.
inline int chunk_of(int64_t taps) {
  return taps % 7 == 0 ? 7 : taps % 5 == 0 ? 5 : taps % 3 == 0 ? 3 : taps % 2 == 0 ? 2 : 1;
}
// The next block of outputs below one another.
inline int depthwise_rows(int64_t rest, int most) { return rest >= 7 && most >= 7 ? 7 : rest >= 3 ? 3 : 1; }

template <class A>
using DepthwiseRun = void (*)(const RunArguments<A>&);
template <class A, int R, int row_step, int column_step>
inline DepthwiseRun<A> run_of_rows(int rows) {
  return rows == 7   ? depthwise_run<A, R, 7, row_step, column_step>
         : rows == 3 ? depthwise_run<A, R, 3, row_step, column_step>
                     : depthwise_run<A, R, 1, row_step, column_step>;
}
template <class A, int row_step, int column_step>
inline DepthwiseRun<A> run_of_chunk(int chunk, int rows) {
  return chunk == 7   ? run_of_rows<A, 7, row_step, column_step>(rows)
         : chunk == 5 ? run_of_rows<A, 5, row_step, column_step>(rows)
         : chunk == 3 ? run_of_rows<A, 3, row_step, column_step>(rows)
                      : run_of_rows<A, 2, row_step, column_step>(rows);
}
template <class A, bool strided, int column_step>
inline DepthwiseRun<A> select_run(int chunk, int64_t row_step, int rows) {
  if (chunk == 1) return run_of_rows<A, 1, 0, column_step>(rows);
  if constexpr (strided) {
    if (column_step == 2 || row_step == 2) return run_of_chunk<A, 2, column_step>(chunk, rows);
  }
  if constexpr (column_step == 1) return run_of_chunk<A, 1, 1>(chunk, rows);
  return nullptr;
}

}  // namespace conv_ext
