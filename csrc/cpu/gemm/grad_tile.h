// The register tiles of weight_grad that read memory as it lies: nothing is turned round.
//
//   dot_tile: lanes are positions
//     out[m][t] = sum over rows, lanes of  g[m][row][lane] * x[t][row][lane]       (or added to out: `add`)
//   outer_tile: lanes are channels, and the channels of either operand are neighbours
//     out[m][lane] = sum over positions of  rows[position][m] * lanes[position][lane]
//
// One chain of multiply-adds per sum and lane; dot_tile adds the lanes at the end.
#pragma once

#include "../base/extents.h"
#include "../base/simd.h"
#include "layout.h"

namespace conv_ext {

constexpr int kGradTileK = grad_tile(kMachine).k, kGradTileRows = grad_tile(kMachine).rows;

template <class A>
struct DotArguments {
  const A* g;  // packed upstream gradient, M channels g_channel apart
  int64_t g_channel, g_row;
  const A* const* x;  // (T) into the packed input, each x_offset further on
  int64_t x_offset, x_row;
  int64_t rows, lanes;  // rows of outputs in the tile, outputs in a row
  A* out;               // (M, T), rows out_pitch apart
  int64_t out_pitch;
  bool add;
};

template <class A, int M, int T>
void dot_tile(const DotArguments<A>& a) {
  constexpr int L = kLanes<A>;
  // Padded to whole groups of kLanes sums; what is padded stays zero and costs nothing but shuffles.
  constexpr int kSums = (M * T + L - 1) / L * L;
  Vec<A> sum[kSums];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) sum[i] = Vec<A>{};
  const A* xt[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) xt[t] = a.x[t] + a.x_offset;
  const int64_t full = a.lanes / L * L;
  // Beyond the end of a row stand zeros in g, but numbers in x: where those are not finite, 0 * x would be NaN.
  const auto mask = first_lanes<A>(a.lanes - full);
  for (int64_t row = 0; row < a.rows; ++row) {
    const A* g = a.g + row * a.g_row;
    const int64_t x_row = row * a.x_row;
    int64_t i = 0;
    const auto multiply = [&](auto lanes_of) __attribute__((always_inline)) {
      Vec<A> gv[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) gv[m] = load(g + m * a.g_channel + i);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const Vec<A> x = lanes_of(xt[t] + x_row + i);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sum[m * T + t] += gv[m] * x;
      }
    };
    for (; i < full; i += L) multiply([](const A* x) __attribute__((always_inline)) { return load(x); });
    if (i < a.lanes) multiply([mask](const A* x) __attribute__((always_inline)) { return keep<A>(load(x), mask); });
  }
  A total[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; i += L) store(total + i, sum_each<A>(sum + i));
  for (int m = 0; m < M; ++m)
    for (int t = 0; t < T; ++t) {
      A* const out = a.out + m * a.out_pitch + t;
      *out = a.add ? *out + total[m * T + t] : total[m * T + t];
    }
}

// Rows of the next block: 6, 3 and 1 divide the taps of the usual kernels (1, 3, 5, 7, 11) well.
inline int grad_tile_rows(int64_t rest) { return kGradTileRows > 3 && rest >= 6 ? 6 : rest >= 3 ? 3 : 1; }

template <class A>
using DotTile = void (*)(const DotArguments<A>&);
template <class A>
inline DotTile<A> select_dot_tile(int m, int t) {
  return with_one_of<kGradTileK, kGradTileK / 2, 1>(m, [t](auto rows_k) {
    return with_one_of<kGradTileRows, 3, 1>(
        t, [](auto rows) -> DotTile<A> { return dot_tile<A, decltype(rows_k)::value, decltype(rows)::value>; });
  });
}

constexpr int kOuterV = outer_tile(kMachine).vectors, kOuterRows = outer_tile(kMachine).rows;

template <class A>
struct OuterArguments {
  const A *lanes, *rows;  // of the first position
  int64_t lanes_step, rows_step;
  const int64_t *lanes_offset, *rows_offset;  // (segments): where positions that follow one another evenly begin
  int64_t segments, count;                    // of so many positions each
  A* out;                                     // (M, V * kLanes)
  int64_t out_row;
  bool add;
};

template <class A, int M, int V>
void outer_tile(const OuterArguments<A>& a) {
  constexpr int L = kLanes<A>;
  // A position's numbers are a line or two of memory, and the next one's lie as far on as there are channels, often in
  // another page: they are on their way this many positions before.
  constexpr int64_t kPositionsAhead = 12;
  Vec<A> sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = Vec<A>{};
  const int64_t ahead = kPositionsAhead * a.lanes_step;
  for (int64_t s = 0; s < a.segments; ++s) {
    const A* at = a.lanes + a.lanes_offset[s];
    const A* row = a.rows + a.rows_offset[s];
    for (int64_t i = 0; i < a.count; ++i, at += a.lanes_step, row += a.rows_step) {
      Vec<A> lanes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        lanes[v] = load(at + v * L);
        __builtin_prefetch(at + ahead + v * L);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec<A> scalar = splat(load_one(row + m));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += scalar * lanes[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      A* const out = a.out + m * a.out_row + v * L;
      store(out, a.add ? load(out) + sum[m][v] : sum[m][v]);
    }
}

template <class A>
using OuterTileFunction = void (*)(const OuterArguments<A>&);
template <class A>
inline OuterTileFunction<A> select_outer_tile(int m, int v) {
  return with_extent<kOuterV>(v, [m](auto vectors) {
    return with_extent<kOuterRows>(m, [](auto rows) -> OuterTileFunction<A> {
      return outer_tile<A, decltype(rows)::value, decltype(vectors)::value>;
    });
  });
}

}  // namespace conv_ext
