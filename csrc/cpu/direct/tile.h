// The register tiles of the direct algorithm: the two innermost loops, in which nearly all of its time is spent.
//
//   gather_tile  forward, input_grad:  out[m][lane] = bias[m] + sum over c, t of  w[c][t][m] * x[c][offset[t] + lane]
//   dot_tile     weight_grad:          out[m][t]   +=           sum over lanes of g[m][lane] * x[offset[t] + lane]
//
// Chains of multiply-adds per output and lane, in an order that depends on the shape alone: this is where the promise
// of equal bits is kept.
#pragma once

#include "../base/extents.h"
#include "../base/simd.h"
#include "layout.h"

namespace conv_ext {

constexpr DirectTile kDirectTile = direct_tile(kMachine);
constexpr int kGatherM = kDirectTile.gather_m, kDotM = kDirectTile.dot_m, kDotT = kDirectTile.dot_t;
constexpr int max_vectors(int m) { return gather_vectors(kMachine, m); }

template <class A>
struct GatherArguments {
  const A* x;  // packed source at this block's first lane
  int64_t channels, channel_pitch;
  const int64_t* offset;  // (taps)
  int64_t taps;
  const A* weight;  // (channels, taps, M)
  const A* bias;    // (M)
  A* out;           // (M, V * kLanes)
};

template <class A, int M, int V>
void gather_tile(const GatherArguments<A>& a) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = splat(a.bias[m]);
  const A* w = a.weight;
  const int64_t* const offset = a.offset;
  const int64_t taps = a.taps;
  // Every kChain products or so the sums are added up elsewhere and begun anew: rounding errors grow with the length of
  // a chain (N. Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2).
  const int64_t block = taps < kChain ? kChain / (taps > 0 ? taps : 1) : 1;
  for (int64_t first = 0;; first += block) {
    const int64_t last = first + block < a.channels ? first + block : a.channels;
    for (int64_t c = first; c < last; ++c) {
      const A* x = a.x + c * a.channel_pitch;
      for (int64_t t = 0; t < taps; ++t) {
        const A* xt = x + offset[t];
        Vec<A> lanes[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) lanes[v] = load(xt + v * L);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const Vec<A> weight = splat(w[m]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[m][v] += weight * lanes[v];
        }
        w += M;
      }
    }
    const bool begin = first == 0;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        A* const out = a.out + (m * V + v) * L;
        store(out, begin ? sum[m][v] : load(out) + sum[m][v]);
        sum[m][v] = Vec<A>{};
      }
    if (last == a.channels) return;
  }
}

template <class A>
struct DotArguments {
  const A* g;  // packed upstream gradient, M rows g_channel apart
  int64_t g_channel, g_row;
  const A* x;             // packed input
  const int64_t* offset;  // (T)
  int64_t x_row;
  int64_t rows, lanes;  // output rows in the tile, outputs in a row
  A* out;               // (M, T), rows out_pitch apart; added to
  int64_t out_pitch;
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
  for (int t = 0; t < T; ++t) xt[t] = a.x + a.offset[t];
  const int64_t full = a.lanes / L * L;
  // Beyond the end of a row stand zeros in g, but numbers in x: where those are not finite, 0 * x would be NaN.
  const auto mask = first_lanes<A>(a.lanes - full);
  for (int64_t row = 0; row < a.rows; ++row) {
    const A* g = a.g + row * a.g_row;
    const int64_t x_row = row * a.x_row;
    int64_t i = 0;
    for (; i < full; i += L) {
      Vec<A> gv[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) gv[m] = load(g + m * a.g_channel + i);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const Vec<A> x = load(xt[t] + x_row + i);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sum[m * T + t] += gv[m] * x;
      }
    }
    if (i < a.lanes) {
      Vec<A> gv[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) gv[m] = load(g + m * a.g_channel + i);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const Vec<A> x = keep<A>(load(xt[t] + x_row + i), mask);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sum[m * T + t] += gv[m] * x;
      }
    }
  }
  A total[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; i += L) store(total + i, sum_each<A>(sum + i));
  for (int m = 0; m < M; ++m)
    for (int t = 0; t < T; ++t) a.out[m * a.out_pitch + t] += total[m * T + t];
}

template <class A>
using GatherTile = void (*)(const GatherArguments<A>&);
template <class A>
inline GatherTile<A> select_gather_tile(int m, int v) {
  return with_one_of<kGatherM, kGatherM / 2, kGatherM / 4, 1>(m, [v](auto rows) {
    constexpr int M = decltype(rows)::value;
    return with_extent<max_vectors(M)>(
        v, [](auto vectors) -> GatherTile<A> { return gather_tile<A, M, decltype(vectors)::value>; });
  });
}

// Taps of the next block of weight_grad: 6, 3 and 1 divide the rows of the usual kernels (1, 3, 5, 7, 11) well.
inline int block_taps(int64_t rest) { return kDotT > 3 && rest >= 6 ? 6 : rest >= 3 ? 3 : 1; }

template <class A>
using DotTile = void (*)(const DotArguments<A>&);
template <class A>
inline DotTile<A> select_dot_tile(int m, int t) {
  return with_one_of<kDotM, kDotM / 2, 1>(m, [t](auto rows) {
    return with_one_of<kDotT, 3, 1>(
        t, [](auto taps) -> DotTile<A> { return dot_tile<A, decltype(rows)::value, decltype(taps)::value>; });
  });
}

}  // namespace conv_ext
