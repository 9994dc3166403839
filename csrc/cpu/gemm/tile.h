// The register tile of the panel algorithm: rows of scalars times a panel of vectors, the same for all three passes.
//
//   out[m][lane] = start[m][lane] + sum over segments s, i < count of
//                      rows[s][m][offset[s] + i * step] * panel[s * count + i][lane]        (or added to out: `add`)
//
// The scalars are read where they lie, by broadcasts, so that only the panel is ever packed; a panel fits the first
// level of cache and serves many rows. One chain of multiply-adds per output, in the order of the panel.
#pragma once

#include "../base/epilogue.h"
#include "../base/extents.h"
#include "layout.h"

namespace conv_ext {

constexpr int kPanelV = panel_vectors(kMachine), kPanelP = panel_vectors_of_most_rows(kMachine);
constexpr int panel_rows(int vectors) { return panel_rows(kMachine, vectors); }

template <class A>
struct PanelArguments {
  const A* const* rows;   // (segments, M), or (M) for all of them
  int64_t rows_step;      // M, or 0
  const int64_t* offset;  // (segments)
  int64_t segments, count, step;
  const A* panel;  // (segments, count, V * kLanes)
  A* out;          // (M, V * kLanes)
  int64_t out_row;
  const A* start;  // (M, V * kLanes): what the chains begin with, the bias; nullptr: zeros
  int64_t start_row;
  bool add;                              // the finished chains are added to what `out` holds
  A zero = -A(0);                        // added to every sum
  const Finish<A, A>* finish = nullptr;  // of sums that end here
  // What is wanted later: ahead + ahead_offset[i] bytes is prefetched into the second level of cache with the i-th of
  // segments * count products, one line in the time of some 24 multiply-adds of vectors.
  const char* ahead;
  const int32_t* ahead_offset;

  void look_ahead(const A* place, const int32_t* offsets) {
    ahead = reinterpret_cast<const char*>(place);
    ahead_offset = offsets;
  }
  // The next of some lines, one for each product; false where none is left.
  bool look_ahead(const A* place, LinesAhead* lines, int64_t products) {
    if (lines->count <= 0) return false;
    look_ahead(place, lines->offset);
    lines->offset += products;
    lines->count -= products;
    return true;
  }
  void nothing_ahead() {
    static constexpr int32_t kHere[kMostProducts] = {};
    look_ahead(panel, kHere);
  }
};

template <class A, int M, int V>
void panel_tile(const PanelArguments<A>& a) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = a.start ? load(a.start + m * a.start_row + v * L) : Vec<A>{};
  if (a.add) {
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) __builtin_prefetch(a.out + m * a.out_row + v * L, 1);
  }
  const A* panel = a.panel;
  const A* const* rows = a.rows;
  const char* const ahead = a.ahead;
  const int32_t* ahead_offset = a.ahead_offset;
  for (int64_t s = 0; s < a.segments; ++s) {
    const A* row[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) row[m] = rows[m] + a.offset[s];
    rows += a.rows_step;
    int64_t i = 0;
    for (const int32_t* const end = ahead_offset + a.count; ahead_offset != end; ++ahead_offset, i += a.step) {
      Vec<A> lanes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) lanes[v] = load(panel + v * L);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<A> scalar = splat(load_one(row[m] + i));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += scalar * lanes[v];
      }
      panel += V * L;
      __builtin_prefetch(ahead + *ahead_offset, 0, 2);
    }
  }
  write_tile<A, M, V>(sum, a.out, a.out_row, a.add, a.zero, a.finish);
}

template <class A>
using PanelTile = void (*)(const PanelArguments<A>&);
template <class A>
inline PanelTile<A> select_panel_tile(int m, int v) {
  return with_extent<kPanelV>(v, [m](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    return with_extent<panel_rows(V)>(
        m, [](auto rows) -> PanelTile<A> { return panel_tile<A, decltype(rows)::value, V>; });
  });
}

}  // namespace conv_ext
