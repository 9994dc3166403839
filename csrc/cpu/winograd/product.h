// The register tile of a plain matrix product with vectors along one operand's rows.
//
//   out[m][lane] (+)= sum over i of  a[m * a_row + i * a_step] * b[i * b_row + lane]
#pragma once

#include "../base/extents.h"
#include "../base/simd.h"
#include "layout.h"

namespace conv_ext {

constexpr int kProductM = product_rows(kMachine);

template <class A>
struct ProductArguments {
  const A* a;
  int64_t a_row, a_step;
  const A* b;
  int64_t b_row;
  int64_t count;  // of i
  A* out;
  int64_t out_row;
  bool add;  // goes on with the sums that `out` holds
};

// `adjacent`: a_row is 1.
template <class A, int M, int V, bool adjacent>
void product_tile(const ProductArguments<A>& p) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[m][v] = p.add ? load(p.out + m * p.out_row + v * L) : Vec<A>{};
  const A* a = p.a;
  const A* b = p.b;
  const int64_t a_row = adjacent ? 1 : p.a_row, a_step = adjacent ? p.a_step : 1;
  for (int64_t i = 0; i < p.count; ++i, a += a_step, b += p.b_row) {
    Vec<A> lanes[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) lanes[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec<A> factor = splat(a[m * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[m][v] += factor * lanes[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(p.out + m * p.out_row + v * L, sum[m][v]);
}

template <class A>
using ProductTile = void (*)(const ProductArguments<A>&);
template <class A, bool adjacent>
inline ProductTile<A> select_product_tile(int64_t m, int v) {
  return with_extent<kProductM>(m, [v](auto rows) -> ProductTile<A> {
    constexpr int M = decltype(rows)::value;
    return v == 2 ? product_tile<A, M, 2, adjacent> : product_tile<A, M, 1, adjacent>;
  });
}

// `rows` rows of the product by `vectors` vectors: tiles of evenly many rows.
template <class A, bool adjacent>
void product(ProductArguments<A> p, int64_t rows, int64_t vectors) {
  const A* const a = p.a;
  const A* const b = p.b;
  A* const out = p.out;
  for (int64_t v = 0; v < vectors; v += kProductV) {
    const int width = vectors - v >= kProductV ? kProductV : 1;
    for (int64_t m = 0; m < rows;) {
      const int64_t left = (rows - m + kProductM - 1) / kProductM, count = (rows - m + left - 1) / left;
      p.a = a + m * p.a_row;
      p.b = b + v * kLanes<A>;
      p.out = out + m * p.out_row + v * kLanes<A>;
      select_product_tile<A, adjacent>(count, width)(p);
      m += count;
    }
  }
}

}  // namespace conv_ext
