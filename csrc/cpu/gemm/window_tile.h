// The register tile over a packed source: rows of scalars times vectors of lanes, one of them weights, the other one
// neighbours of the source.
//
//   lanes are channels    out[j][lane] = start[lane] + sum over products i of  x[offset[i] + j] * w[i][lane]
//   lanes are positions   out[m][lane] = start[m]    + sum over products i of  x[offset[i] + lane] * w[i][m]
#pragma once

#include "../base/epilogue.h"
#include "../base/extents.h"
#include "windows_layout.h"

namespace conv_ext {

template <class A>
struct WindowArguments {
  const A* x;                             // packed source of the first output
  const int64_t* offset;                  // (products) to what each of them reads
  const A* weight;                        // (products, channels of the panel)
  int64_t count, segments, segment_step;  // products that take part: `segments` runs of `count`, so far apart
  const A* start;                         // (channels of the panel), with which the sums begin, or nullptr
  A* out;                                 // the rows, out_pitch apart
  int64_t out_pitch;
  bool add;                              // the sums are added to what `out` holds
  A zero;                                // added to every sum
  const Finish<A, A>* finish = nullptr;  // of sums that end here
};

template <class A, int M, int V, bool along_channels>
void window_tile(const WindowArguments<A>& a) {
  constexpr int L = kLanes<A>, kChannels = along_channels ? V * L : M;
  Vec<A> sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if (a.start == nullptr)
        sum[m][v] = Vec<A>{};
      else
        sum[m][v] = along_channels ? load(a.start + v * L) : splat(a.start[m]);
    }
  A* const out = a.out;
  const int64_t pitch = a.out_pitch;
  const bool add = a.add;
  if (add) {
    for (int64_t m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) __builtin_prefetch(out + m * pitch + v * L, 1);
  }
  for (int64_t s = 0; s < a.segments; ++s) {
    const int64_t* offset = a.offset + s * a.segment_step;
    const A* weight = a.weight + s * a.segment_step * kChannels;
    for (int64_t n = a.count; n > 0; --n) {
      const A* const x = a.x + *offset++;
      const A *const rows = along_channels ? x : weight, *const from = along_channels ? weight : x;
      Vec<A> lanes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) lanes[v] = load(from + v * L);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec<A> number = splat(rows[m]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += number * lanes[v];
      }
      weight += kChannels;
    }
  }
  write_tile<A, M, V>(sum, out, pitch, add, a.zero, a.finish);
}

template <class A>
using WindowTile = void (*)(const WindowArguments<A>&);
// `m` rows by `v` vectors: outputs by channels, or channels by outputs.
template <class A, bool along_channels>
inline WindowTile<A> select_window_tile(int64_t m, int64_t v) {
  if constexpr (along_channels) {
    return with_extent<int(kWindowV)>(v, [m](auto vectors) {
      constexpr int V = decltype(vectors)::value;
      return with_extent<int(window_outputs(kMachine, V))>(
          m, [](auto rows) -> WindowTile<A> { return window_tile<A, decltype(rows)::value, V, true>; });
    });
  } else {
    return with_extent<int(window_channels(kMachine))>(m, [v](auto rows) {
      constexpr int M = decltype(rows)::value;
      return with_extent<int(window_vectors(kMachine, M))>(
          v, [](auto vectors) -> WindowTile<A> { return window_tile<A, M, decltype(vectors)::value, false>; });
    });
  }
}

}  // namespace conv_ext
