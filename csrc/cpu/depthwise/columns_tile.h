// The innermost loops of the depthwise algorithm where lanes are columns; those of the backward passes alone are in
// columns_tile_backward.h.
//
//   columns_run  forward, input_grad:  out[b][lane] = bias + sum over r, s of  w[r][s] * x[row of b, r][tap s + lane]
//
// B outputs lie below one another; a vector of the source that is loaded for one of them serves the others that read
// the same row, so that the loads per multiply-add fall from 1 to about 1/R. Padding is lanes that a mask leaves out:
// they read as zero and are not touched.
#pragma once

#include "vectors.h"

namespace conv_ext {

constexpr int kColumnsDotRows = columns_dot_rows(kMachine);
#if defined(__AVX512F__)
constexpr bool kMasksAreFree = true;
#else
constexpr bool kMasksAreFree = false;
#endif

// Elements ahead of those in use. What is read in blocks of rows is no stream that the processor would see: without
// prefetching, maps that come from memory take two to three times as long (3x3 on 32 channels of 112x112: 1990 us
// against 554; 1123 at 1 KiB, 776 at 4 KiB).
constexpr int kPrefetch = 2048;

// What a tap reads; all_inside: none of it is left out.
template <class A, int column_step, bool all_inside>
inline __attribute__((always_inline)) Vec<A> load_tap(const A* p, LaneBits low, LaneBits high) {
  if constexpr (column_step == 1) {
    (void)high;
    return load_lanes<A, all_inside>(p, low);
  } else {
    constexpr int L = kLanes<A>;
    Vec<typename IntegerOf<A>::type> even;
    for (int i = 0; i < L; ++i) even[i] = 2 * i;
    return shuffle<A>(load_lanes<A, all_inside>(p, low), load_lanes<A, all_inside>(p + L, high), even);
  }
}

// With three taps and a column step of 2 one pair of loads serves them all; the last lane's third tap lies beyond it.
constexpr bool takes_pairs(int column_step, int fixed_columns) { return column_step == 2 && fixed_columns == 3; }
// lane l of the result: position 2 l + s of the pair.
template <class A>
inline __attribute__((always_inline)) Vec<A> from_pair(Vec<A> low, Vec<A> high, int s) {
  Vec<typename IntegerOf<A>::type> index;
  for (int l = 0; l < kLanes<A>; ++l) index[l] = (2 * l + s) % (2 * kLanes<A>);
  return shuffle<A>(low, high, index);
}

// All the segments of a row, for so many channels; x_channel and its like are the distances between two of them (a row
// of zeros must reach as far).
template <class A>
struct ColumnsArguments {
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
  const Finish<A, A>* finish;  // nullptr: nothing
  int64_t channels, x_channel, weight_channel, out_channel;
  const A* ahead;  // prefetched while the first vector is computed, the rows one below the other; nullptr: nothing is
  int64_t ahead_row;
};

// Where the next vector's elements lie.
struct VectorStep {
  int64_t x, weight, bias, out;
};
// Where V vectors of outputs of B rows begin, and what they read.
template <class A>
struct VectorPlace {
  const ColumnTap* tap;
  int64_t x;  // elements from what a tap reads for the segment's first vector to what it reads for this one
  const A* weight;
  const A* bias;
  A* out;
  const A* ahead;
};

template <class A, int B, int V, int row_step, int column_step>
inline __attribute__((always_inline)) void prefetch_vectors(const ColumnsArguments<A>& a, const VectorPlace<A>& at,
                                                            const VectorStep& next) {
  const int64_t ahead_row = a.ahead_row, out_row = a.out_row;
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 32
    for (int y = 0; y < B * row_step; ++y)
#pragma GCC unroll 2
      for (int half = 0; half < column_step; ++half)
        __builtin_prefetch(at.ahead + y * ahead_row + v * next.x + half * kLanes<A>, 0, 3);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) __builtin_prefetch(at.out + v * next.out + b * out_row + kPrefetch, 1, 3);
  }
}

// Three taps that share a pair of loads: row by row.
template <class A, int R, int B, int row_step, bool all_inside>
inline __attribute__((always_inline)) void add_pairs(const ColumnsArguments<A>& a, const VectorPlace<A>& at,
                                                     Vec<A> (&sum)[B]) {
  constexpr int L = kLanes<A>;
  const int64_t weight_r = a.weight_r, weight_s = a.weight_s;
  const A* const* const rows = a.rows;
  Vec<A> w[R][3];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) w[r][s] = splat(read<A>(at.weight + r * weight_r + s * weight_s));
  const int64_t offset = at.tap[0].offset + at.x;
  const LaneBits low_bits = at.tap[0].low, high_bits = at.tap[0].high;
#pragma GCC unroll 32
  for (int y = 0; y < (B - 1) * row_step + R; ++y) {
    const A* const row = rows[y] + offset;
    const Vec<A> low = load_lanes<A, all_inside>(row, low_bits), high = load_lanes<A, all_inside>(row + L, high_bits);
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      const Vec<A> x = from_pair<A>(low, high, s);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
        if (y - b * row_step >= 0 && y - b * row_step < R) sum[b] += w[y - b * row_step][s] * x;
    }
  }
}

// Taps that are loaded one by one, `columns` of them in each of `chunks` chunks of R rows: chunk by chunk, then column
// by column.
template <class A, int R, int B, int V, int row_step, int column_step, bool all_inside>
inline __attribute__((always_inline)) void add_taps(const ColumnsArguments<A>& a, int64_t chunks, int64_t columns,
                                                    const VectorPlace<A>& at, const VectorStep& next,
                                                    Vec<A> (&sum)[V][B]) {
  const int64_t weight_r = a.weight_r, weight_s = a.weight_s;
  const A* const* const all_rows = a.rows;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const A* const* const rows = all_rows + chunk * R;
    const A* const weight = at.weight + chunk * R * weight_r;
#pragma GCC unroll 3
    for (int64_t s = 0; s < columns; ++s) {
      Vec<A> w[V][R];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) w[v][r] = splat(read<A>(weight + v * next.weight + s * weight_s + r * weight_r));
      const int64_t offset = at.tap[s].offset + at.x;
      const LaneBits low = at.tap[s].low, high = at.tap[s].high;
      if constexpr (row_step == 0) {
        static_assert(R == 1, "rows that outputs share are a fixed step apart");
        const int64_t step = a.row_step;
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v)
            sum[v][b] +=
                w[v][0] * load_tap<A, column_step, all_inside>(rows[b * step] + offset + v * next.x, low, high);
      } else {
#pragma GCC unroll 32
        for (int y = 0; y < (B - 1) * row_step + R; ++y)
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) {
            const Vec<A> x = load_tap<A, column_step, all_inside>(rows[y] + offset + v * next.x, low, high);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b)
              if (y - b * row_step >= 0 && y - b * row_step < R) sum[v][b] += w[v][y - b * row_step] * x;
          }
      }
    }
  }
}

// V vectors at a time: B chains of sums alone would wait for one another. `fixed_columns` is the number of taps of a
// row in a single chunk, where it is known.
template <class A, int R, int B, int V, int row_step, int column_step, int fixed_columns, bool all_inside>
inline __attribute__((always_inline)) void compute_vectors(const ColumnsArguments<A>& a, const VectorPlace<A>& at,
                                                           const VectorStep& next, LaneBits lanes) {
  Vec<A> sum[V][B];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sum[v][b] = splat(read<A>(at.bias + v * next.bias));
  if (row_step != 0 && B > 1 && at.ahead != nullptr) prefetch_vectors<A, B, V, row_step, column_step>(a, at, next);
  if constexpr (takes_pairs(column_step, fixed_columns)) {
    static_assert(V == 1, "three shuffles for a row are work enough");
    add_pairs<A, R, B, row_step, all_inside>(a, at, sum[0]);
  } else {
    add_taps<A, R, B, V, row_step, column_step, all_inside>(a, fixed_columns ? 1 : a.chunks,
                                                            fixed_columns ? fixed_columns : a.columns, at, next, sum);
  }
  const int64_t out_row = a.out_row;
  if (a.finish) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
        sum[v][b] = (*a.finish)(sum[v][b], at.out + v * next.out + b * out_row, __builtin_popcount(lanes));
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) store_lanes(at.out + v * next.out + b * out_row, sum[v][b], lanes);
}

// `count` vectors that follow one another: along a row, or the same columns of neighbouring channels.
template <class A, int R, int B, int row_step, int column_step, int fixed_columns>
inline __attribute__((always_inline)) void compute_run(const ColumnsArguments<A>& a, bool all_inside, VectorPlace<A> at,
                                                       const VectorStep& next, int64_t count, LaneBits lanes) {
  constexpr int V = kMasksAreFree && B == 7 && column_step == 1 ? 2 : 1;  // twice the registers, too
  while (count > 0) {
    int done = 1;
    if (!kMasksAreFree && all_inside) {  // else there is no code without masks
      compute_vectors<A, R, B, 1, row_step, column_step, fixed_columns, !kMasksAreFree>(a, at, next, lanes);
    } else if (V == 2 && count >= 2) {
      compute_vectors<A, R, B, V, row_step, column_step, fixed_columns, false>(a, at, next, lanes);
      done = V;
    } else {
      compute_vectors<A, R, B, 1, row_step, column_step, fixed_columns, false>(a, at, next, lanes);
    }
    count -= done;
    at.x += done * next.x;
    if (at.ahead) at.ahead += done * next.x;
    at.weight += done * next.weight;
    at.bias += done * next.bias;
    at.out += done * next.out;
  }
}

template <class A, int R, int B, int row_step, int column_step, int fixed_columns>
inline __attribute__((always_inline)) void compute_segments(const ColumnsArguments<A>& a) {
  constexpr int outputs = takes_pairs(column_step, fixed_columns) ? kLanes<A> - 1 : kLanes<A>;
  const VectorStep to_column{outputs * column_step, 0, 0, outputs};
  const VectorStep to_channel{a.x_channel, a.weight_channel, 1, a.out_channel};
  for (int64_t i = 0; i < a.segments; ++i) {
    const ColumnSegment& segment = a.segment[i];
    const bool along_channels = segment.count == 1;
    for (int64_t c = 0; c < (along_channels ? 1 : a.channels); ++c) {
      const VectorPlace<A> at{segment.tap,
                              c * a.x_channel,
                              a.weight + c * a.weight_channel,
                              a.bias + c,
                              a.out + c * a.out_channel + segment.first,
                              a.ahead ? a.ahead + c * a.x_channel + segment.first * column_step : nullptr};
      compute_run<A, R, B, row_step, column_step, fixed_columns>(
          a, segment.all_inside, at, along_channels ? to_channel : to_column,
          along_channels ? a.channels : segment.count, segment.lanes);
    }
  }
}
template <class A, int R, int B, int row_step, int column_step>
void columns_run(const ColumnsArguments<A>& a) {
  if constexpr (R == 3) {
    if (a.columns == 3 && a.chunks == 1) return compute_segments<A, R, B, row_step, column_step, 3>(a);
  }
  compute_segments<A, R, B, row_step, column_step, 0>(a);
}

// ---- the extents of a block become template arguments

// The taps of a column that are computed together, where outputs share rows.
inline int chunk_of(int64_t taps) {
  return taps % 7 == 0 ? 7 : taps % 5 == 0 ? 5 : taps % 3 == 0 ? 3 : taps % 2 == 0 ? 2 : 1;
}
// The next block of outputs below one another.
inline int next_rows(int64_t rest, int most) { return rest >= 7 && most >= 7 ? 7 : rest >= 3 ? 3 : 1; }

template <class A>
using ColumnsRun = void (*)(const ColumnsArguments<A>&);
template <class A, int row_step, int column_step, int... chunks>
inline ColumnsRun<A> columns_run_of(int chunk, int rows) {
  return with_one_of<chunks...>(chunk, [rows](auto r) {
    return with_one_of<7, 3, 1>(rows, [](auto b) -> ColumnsRun<A> {
      return columns_run<A, decltype(r)::value, decltype(b)::value, row_step, column_step>;
    });
  });
}
template <class A, bool strided, int column_step>
inline ColumnsRun<A> select_columns_run(int chunk, int64_t row_step, int rows) {
  if (chunk == 1) return columns_run_of<A, 0, column_step, 1>(chunk, rows);
  if constexpr (strided) {
    if (column_step == 2 || row_step == 2) return columns_run_of<A, 2, column_step, 7, 5, 3, 2>(chunk, rows);
  }
  if constexpr (column_step == 1) return columns_run_of<A, 1, 1, 7, 5, 3, 2>(chunk, rows);
  return nullptr;
}

}  // namespace conv_ext
