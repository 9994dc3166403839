// The register tile of the direct algorithm: the innermost loops, in which nearly all of its time is spent.
//
//   gather_tile:  out[m][lane] = bias[m] + sum over c, t of  w[c][t][m] * x[c][offset[t] + lane]
//
// Chains of multiply-adds per output and lane, in an order that depends on the shape alone: this is where the promise
// of equal bits is kept.
#pragma once

#include "../base/extents.h"
#include "../base/simd.h"
#include "layout.h"

namespace conv_ext {

constexpr DirectTile kDirectTile = direct_tile(kMachine);
constexpr int kGatherM = kDirectTile.gather_m;
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
using GatherTile = void (*)(const GatherArguments<A>&);
template <class A>
inline GatherTile<A> select_gather_tile(int m, int v) {
  return with_one_of<kGatherM, kGatherM / 2, kGatherM / 4, 1>(m, [v](auto rows) {
    constexpr int M = decltype(rows)::value;
    return with_extent<max_vectors(M)>(
        v, [](auto vectors) -> GatherTile<A> { return gather_tile<A, M, decltype(vectors)::value>; });
  });
}

}  // namespace conv_ext
