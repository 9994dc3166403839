// The register tile of weight_grad whose lanes are positions, as they lie in memory: nothing is turned round.
//
//   out[m][t] = sum over rows, lanes of  g[m][row][lane] * x[t][row][lane]       (or added to out: `add`)
//
// One chain of multiply-adds per sum and lane; the lanes are added at the end.
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

}  // namespace conv_ext
