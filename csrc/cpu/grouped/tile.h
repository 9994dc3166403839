// The register tiles for small groups. Lanes are channels of the result, and a channel of the source is spread over the
// lanes of its group:
//
//   spread(x, c)[lane] = x[group of lane][c]: a permutation where a vector holds several groups, else a broadcast
//
//   group_tile  forward, input_grad:  out[position][lane] = bias + sum over taps, c of  spread(x, c)[lane] * w[lane]
//   group_dot   weight_grad:          out[c][tap][lane] += sum over positions of  spread(x, c)[lane] * g[lane]
//
// A spread vector serves all outputs, or taps, that read its position in one row: with three taps there are three
// multiply-adds for each permutation.
#pragma once

#include "../base/epilogue.h"
#include "layout.h"

namespace conv_ext {

constexpr GroupedTile kGroupedTile = grouped_tile(kMachine);
constexpr int kGroupRows = kGroupedTile.rows, kGroupColumns = kGroupedTile.columns;
constexpr int kGroupChannels = kGroupedTile.channels, kGroupOutputs = kGroupedTile.outputs;
constexpr int kGroupTaps = 3;

template <class A>
using LaneIndex = Vec<typename IntegerOf<A>::type>;

template <class A>
inline __attribute__((always_inline)) Vec<A> permute(Vec<A> v, LaneIndex<A> index) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_permutexvar_ps((__m512i)index, (__m512)v);
  else
    return (Vec<A>)_mm512_permutexvar_pd((__m512i)index, (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)index);
#endif
  Vec<A> result;
  for (int i = 0; i < kLanes<A>; ++i) result[i] = v[index[i]];
  return result;
}

template <class A, bool several>
inline __attribute__((always_inline)) Vec<A> spread(const A* x, int64_t c, LaneIndex<A> index) {
  if constexpr (several) {
    (void)c;
    return permute<A>(load(x), index);
  } else {
    (void)index;
    return splat(load_one(x + c));
  }
}

template <class A>
struct GroupTileArguments {
  const A* x;              // packed source of the tile's first output, (block of channels, row, column, lane)
  int64_t x_row, x_block;  // between rows of outputs; between blocks of channels
  const int64_t* offset;   // (segments)
  int64_t segments, channels;
  const A* weight;            // (segments, channels, S, kLanes)
  const LaneIndex<A>* index;  // (channels)
  const A* bias;              // (kLanes), or nullptr: the chains are added to what `out` holds
  A* out;
  int64_t out_row, out_column;
  const Finish<A, A>* finish;  // nullptr: nothing
  bool ahead;  // whether the next vector of the output's memory will be written next: it is fetched meanwhile
};

template <class A, bool several, int M, int N, int S, int step>
void group_tile(const GroupTileArguments<A>& a) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[M][N];
  const Vec<A> bias = a.bias ? load(a.bias) : Vec<A>{};
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sum[m][i] = bias;
  const A* w = a.weight;
  for (int64_t segment = 0; segment < a.segments; ++segment) {
    const A* x = a.x + a.offset[segment];
    for (int64_t c0 = 0; c0 < a.channels; c0 += L, x += a.x_block) {
      const int64_t count = min_of(L, a.channels - c0);
      for (int64_t c = 0; c < count; ++c) {
        const LaneIndex<A> index = several ? a.index[c] : LaneIndex<A>{};
        Vec<A> weight[S];
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) weight[s] = load(w + s * L);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 32
          for (int j = 0; j < (N - 1) * step + S; ++j) {
            if (step > S && j % step >= S) continue;
            const Vec<A> lanes = spread<A, several>(x + m * a.x_row + j * L, c, index);
#pragma GCC unroll 4
            for (int s = 0; s < S; ++s)
              if (j >= s && (j - s) % step == 0 && (j - s) / step < N) sum[m][(j - s) / step] += lanes * weight[s];
          }
        w += S * L;
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      A* const out = a.out + m * a.out_row + i * a.out_column;
      const Vec<A> total = a.bias ? sum[m][i] : load(out) + sum[m][i];
      if (a.ahead) __builtin_prefetch(out + L, 1, 2);
      store(out, a.finish ? (*a.finish)(total, out) : total);
    }
}

// Here the extent of a tile becomes a template argument. Columns: 8, 7 (many maps are multiples of 7),
// 4, 2, 1; tiles of a row may overlap. Taps of a row: 3, 2, 1, those with step 2 only 3 or 1; one column takes any
// step.
template <class A>
using GroupTile = void (*)(const GroupTileArguments<A>&);
template <class A, bool several, int S, int step>
inline GroupTile<A> group_tile_of_size(int64_t m, int64_t n) {
  return with_extent<kGroupRows>(m, [n](auto rows) {
    return with_one_of < kGroupColumns, kGroupColumns == 8 ? 7 : 4, 4, 2,
           1 > (n, [](auto columns) -> GroupTile<A> {
             constexpr int N = decltype(columns)::value;
             return group_tile < A, several, decltype(rows)::value, N, S, N == 1 ? 1 : step > ;
           });
  });
}
template <class A, bool several>
inline GroupTile<A> select_group_tile(int64_t m, int64_t n, int64_t s, int64_t step) {
  if (step == 2 && s == 3) return group_tile_of_size<A, several, 3, 2>(m, n);
  if (step == 2 && s == 1) return group_tile_of_size<A, several, 1, 2>(m, n);
  if (s == 3) return group_tile_of_size<A, several, 3, 1>(m, n);
  return s == 2 ? group_tile_of_size<A, several, 2, 1>(m, n) : group_tile_of_size<A, several, 1, 1>(m, n);
}
// How many neighbouring taps of a row are taken together when `rest` are left.
inline int64_t group_taps(int64_t rest, int64_t step) {
  if (rest >= kGroupTaps) return kGroupTaps;
  return step == 1 ? rest : 1;
}
// Columns of a tile for a row of `count` outputs.
inline int64_t group_columns(int64_t count, int64_t step) {
  if (step > 2) return 1;
  if (kGroupColumns == 8 && count >= 7) return ceil_div(count, 7) * 7 < ceil_div(count, 8) * 8 ? 7 : 8;
  return count >= 4 ? 4 : count >= 2 ? 2 : 1;
}

template <class A>
struct GroupDotArguments {
  const A* x;  // packed input of the first output, first of the taps, first channel
  int64_t x_row, x_column;
  const A* g;  // upstream gradient, kLanes channels of a position together
  int64_t g_row, g_column;
  int64_t rows, columns;
  bool ahead;                 // whether the next vector of g's memory will be read next
  const LaneIndex<A>* index;  // (C)
  A* sum;                     // added to
  int64_t sum_channel, sum_tap;
};

// step 0: any, one output at a time.
template <class A, bool several, int C, int S, int step>
void group_dot(const GroupDotArguments<A>& a) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[C][S];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) sum[c][s] = Vec<A>{};
  const auto add = [&](auto outputs, const A* x, const A* g) __attribute__((always_inline)) {
    constexpr int U = decltype(outputs)::value, kStep = step > 0 ? step : 1;
    Vec<A> grad[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      grad[u] = load(g + u * a.g_column);
      if (a.ahead) __builtin_prefetch(g + u * a.g_column + L, 0, 2);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const LaneIndex<A> index = several ? a.index[c] : LaneIndex<A>{};
#pragma GCC unroll 16
      for (int j = 0; j < (U - 1) * kStep + S; ++j) {
        if (kStep > S && j % kStep >= S) continue;
        const Vec<A> lanes = spread<A, several>(x + j * L, c, index);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s)
          if (j >= s && (j - s) % kStep == 0 && (j - s) / kStep < U) sum[c][s] += lanes * grad[(j - s) / kStep];
      }
    }
  };
  for (int64_t row = 0; row < a.rows; ++row) {
    const A *x = a.x + row * a.x_row, *g = a.g + row * a.g_row;
    int64_t rest = a.columns;
    constexpr int U = step > 0 ? kGroupOutputs : 1;
    for (; rest >= U; rest -= U, x += U * a.x_column, g += U * a.g_column) add(Constant<U>{}, x, g);
    if constexpr (U > 2) {
      if (rest == 3) add(Constant<3>{}, x, g);
      if (rest == 2) add(Constant<2>{}, x, g);
    }
    if constexpr (U > 1) {
      if (rest == 1) add(Constant<1>{}, x, g);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      A* const to = a.sum + c * a.sum_channel + s * a.sum_tap;
      store(to, load(to) + sum[c][s]);
    }
}

template <class A>
using GroupDot = void (*)(const GroupDotArguments<A>&);
template <class A, bool several, int S, int step>
inline GroupDot<A> group_dot_of_channels(int64_t c) {
  return with_one_of<kGroupChannels, kGroupChannels / 2, kGroupChannels / 4, 1>(
      c, [](auto channels) -> GroupDot<A> { return group_dot<A, several, decltype(channels)::value, S, step>; });
}
template <class A, bool several>
inline GroupDot<A> select_group_dot(int64_t c, int64_t s, int64_t step) {
  if (s == 3) {
    if (step > 2) return group_dot_of_channels<A, several, 3, 0>(c);
    return step == 2 ? group_dot_of_channels<A, several, 3, 2>(c) : group_dot_of_channels<A, several, 3, 1>(c);
  }
  if (step > 2) return group_dot_of_channels<A, several, 1, 0>(c);
  return step == 2 ? group_dot_of_channels<A, several, 1, 2>(c) : group_dot_of_channels<A, several, 1, 1>(c);
}

}  // namespace conv_ext
