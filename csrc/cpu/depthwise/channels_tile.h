// The innermost loops of the depthwise algorithm where lanes are channels.
//
//   channels_run, channels_run_rows  forward, input_grad:
//       out[u][lane] = bias + sum over r, s of  w[r][s] * x[row r][u * step + s][lane]
//   channels_dot  weight_grad:
//       sum[r][s][lane] += sum over u of  g[u][lane] * x[row r][u * step + s][lane]
//
// U outputs are neighbouring columns of one row (channels_run_rows, channels_dot: of B rows below one another), and a
// block of them goes through all the channels: what it reads and writes are runs of memory. A vector of the source that
// is loaded serves every output that reads it. Padding is left out. Whatever the block, the products of an output are
// added row by row, in each from left to right.
#pragma once

#include "vectors.h"

namespace conv_ext {

// Operands are read and results written where they lie: of the type E, summed in A.
template <class E>
struct SumOfElements {
  typedef E type;
};
template <>
struct SumOfElements<bfloat16> {
  typedef float type;
};
template <class E>
using SumOf = typename SumOfElements<E>::type;

template <class E, bool all_lanes>
inline __attribute__((always_inline)) Vec<SumOf<E>> load_elements(const E* p, LaneBits lanes) {
  if constexpr (is_same<E, SumOf<E>>)
    return load_lanes<E, all_lanes>(p, lanes);
  else if constexpr (all_lanes)
    return read_lanes<SumOf<E>>(p);
  else
    return read_lanes<SumOf<E>>(p, __builtin_popcount(lanes));
}

constexpr int kChannelsColumns = channels_columns(kMachine), kChannelsRows = channels_rows(kMachine),
              kChannelsDotRows = channels_dot_rows(kMachine);

// What a block reads of a row. Neighbouring taps: positions `column` apart, of which the bits in `inside` lie in the
// source. Other taps: tap s of output u reads position first + u * step + s * tap_step, where that is below `source`.
struct BlockColumns {
  int64_t at;      // elements from a row's start to the first position
  int64_t column;  // elements between positions (neighbouring taps), between taps (others)
  uint32_t inside;
  int64_t output;  // others: elements between outputs
  int64_t first, step, tap_step, source;
};

template <class E>
struct ChannelsArguments {
  typedef SumOf<E> A;
  const E* const* rows;  // nullptr: outside the source
  int64_t row_count;     // channels_run
  int64_t taps;          // of a row, where the kernel does not know
  BlockColumns x;
  const A* weight;  // of the first row
  int64_t weight_r, weight_s, weight_vector;
  const A* bias;
  E* out;
  int64_t out_column, out_row;
  int64_t blocks, x_block, out_block;  // beside one another, all of them inside where there are several
  int64_t vectors;
  LaneBits lanes;                     // of each vector
  const Finish<E, SumOf<E>>* finish;  // nullptr: nothing
  // What is prefetched meanwhile: so many elements beyond the rows from first_new_row on, which no output has read yet,
  // and beyond the results; 0: nothing is.
  int64_t first_new_row, ahead, out_ahead;
};

template <class E, int step, int positions>
inline __attribute__((always_inline)) void prefetch_positions(const E* p, int64_t column) {
#pragma GCC unroll 32
  for (int i = 0; i < positions * step; ++i) __builtin_prefetch(p + i * column, 0, 3);
}

template <class E, bool all_lanes>
inline __attribute__((always_inline)) void finish_output(const ChannelsArguments<E>& a, E* out, Vec<SumOf<E>> sum) {
  const int64_t count = all_lanes ? kLanes<SumOf<E>> : __builtin_popcount(a.lanes);
  if (a.finish) sum = (*a.finish)(sum, out, count);
  if (a.out_ahead) __builtin_prefetch(out + a.out_ahead, 1, 3);
  write_some<E, SumOf<E>>(out, sum, count);
}

// S taps and a step of 1 or 2, or S = 0: any number of taps, any distances.
template <class E, int S, int step, int U, bool margins, bool all_lanes>
inline __attribute__((always_inline)) void run_channels_block(const ChannelsArguments<E>& a, int64_t at, E* out) {
  typedef SumOf<E> A;
  constexpr int L = kLanes<A>, positions = (U - 1) * step + S;
  const E* const* const rows = a.rows;
  const int64_t row_count = a.row_count, column = a.x.column, weight_r = a.weight_r, weight_s = a.weight_s;
  const LaneBits lanes = a.lanes;
  const uint32_t inside = a.x.inside;
  const A *weights = a.weight, *bias = a.bias;
  for (int64_t v = 0; v < a.vectors; ++v, at += L, bias += L, out += L, weights += a.weight_vector) {
    Vec<A> sum[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) sum[u] = load(bias);
    const A* weight = weights;
    for (int64_t r = 0; r < row_count; ++r, weight += weight_r) {
      if (rows[r] == nullptr) continue;
      const E* const row = rows[r] + at;
      if constexpr (S > 0) {
        Vec<A> w[S];
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) w[s] = load(weight + s * weight_s);
#pragma GCC unroll 32
        for (int i = 0; i < positions; ++i) {
          if (margins && !(inside >> i & 1)) continue;
          const Vec<A> x = load_elements<E, all_lanes>(row + i * column, lanes);
#pragma GCC unroll 8
          for (int s = 0; s < S; ++s)
            if (i >= s && (i - s) % step == 0 && (i - s) / step < U) sum[(i - s) / step] += w[s] * x;
        }
        if (a.ahead && r >= a.first_new_row) prefetch_positions<E, step, U>(row + a.ahead, column);
      } else {
        int64_t position = a.x.first;
        for (int64_t s = 0; s < a.taps; ++s, position += a.x.tap_step) {
          const Vec<A> w = load(weight + s * weight_s);
#pragma GCC unroll 8
          for (int u = 0; u < U; ++u) {
            if (margins && uint64_t(position + u * a.x.step) >= uint64_t(a.x.source)) continue;
            sum[u] += w * load_elements<E, all_lanes>(row + s * column + u * a.x.output, lanes);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) finish_output<E, all_lanes>(a, out + u * a.out_column, sum[u]);
  }
}

// Of B outputs below one another.
template <class E, int R, int S, int step, int B, int U, bool margins, bool all_lanes>
inline __attribute__((always_inline)) void run_channels_rows_block(const ChannelsArguments<E>& a, int64_t at, E* out) {
  typedef SumOf<E> A;
  constexpr int L = kLanes<A>, positions = (U - 1) * step + S, lines = (B - 1) * step + R;
  const E* const* const rows = a.rows;
  const int64_t column = a.x.column, weight_r = a.weight_r, weight_s = a.weight_s;
  const LaneBits lanes = a.lanes;
  const uint32_t inside = a.x.inside;
  const A *weights = a.weight, *bias = a.bias;
  for (int64_t v = 0; v < a.vectors; ++v, at += L, bias += L, out += L, weights += a.weight_vector) {
    Vec<A> sum[B][U], w[R][S];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) sum[b][u] = load(bias);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) w[r][s] = load(weights + r * weight_r + s * weight_s);
#pragma GCC unroll 32
    for (int y = 0; y < lines; ++y) {
      if (rows[y] == nullptr) continue;
      const E* const row = rows[y] + at;
#pragma GCC unroll 32
      for (int i = 0; i < positions; ++i) {
        if (margins && !(inside >> i & 1)) continue;
        const Vec<A> x = load_elements<E, all_lanes>(row + i * column, lanes);
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
          for (int s = 0; s < S; ++s)
            if (i >= s && (i - s) % step == 0 && (i - s) / step < U && y >= b * step && y < b * step + R)
              sum[b][(i - s) / step] += w[y - b * step][s] * x;
      }
      if (y >= lines - B * step && a.ahead) prefetch_positions<E, step, U>(row + a.ahead, column);
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) finish_output<E, all_lanes>(a, out + b * a.out_row + u * a.out_column, sum[b][u]);
  }
}

template <class E, int S, int step, int U, bool margins>
void channels_run(const ChannelsArguments<E>& a) {
  for (int64_t i = 0; i < a.blocks; ++i) {
    if (a.lanes == kAllLanes<SumOf<E>>)
      run_channels_block<E, S, step, U, margins, true>(a, a.x.at + i * a.x_block, a.out + i * a.out_block);
    else
      run_channels_block<E, S, step, U, margins, false>(a, a.x.at + i * a.x_block, a.out + i * a.out_block);
  }
}
template <class E, int step, int B, bool margins>
void channels_run_rows(const ChannelsArguments<E>& a) {
  for (int64_t i = 0; i < a.blocks; ++i) {
    if (a.lanes == kAllLanes<SumOf<E>>)
      run_channels_rows_block<E, 3, 3, step, B, kChannelsColumns, margins, true>(a, a.x.at + i * a.x_block,
                                                                                 a.out + i * a.out_block);
    else
      run_channels_rows_block<E, 3, 3, step, B, kChannelsColumns, margins, false>(a, a.x.at + i * a.x_block,
                                                                                  a.out + i * a.out_block);
  }
}

template <class E>
using ChannelsRun = void (*)(const ChannelsArguments<E>&);
template <class E, int S, int step>
inline ChannelsRun<E> channels_run_of(int columns, bool margins) {
  return columns == kChannelsColumns ? (margins ? channels_run<E, S, step, kChannelsColumns, true>
                                                : channels_run<E, S, step, kChannelsColumns, false>)
         : columns == 2              ? channels_run<E, S, step, 2, true>
                                     : channels_run<E, S, step, 1, true>;
}
// Whether the taps of a row are neighbours that share what they load.
inline bool taps_share_loads(int64_t taps, int64_t tap_step, int64_t step) {
  return taps == 1 ||
         (tap_step == 1 && ((step <= 2 && (taps == 3 || taps == 5)) || (step == 1 && (taps == 2 || taps == 7))));
}
template <class E>
inline ChannelsRun<E> select_channels_run(int64_t taps, int64_t tap_step, int64_t step, int columns, bool margins) {
  if (!taps_share_loads(taps, tap_step, step)) return channels_run_of<E, 0, 0>(columns, margins);
  if (taps == 1) return channels_run_of<E, 1, 1>(columns, margins);
  if (taps == 2) return channels_run_of<E, 2, 1>(columns, margins);
  if (taps == 7) return channels_run_of<E, 7, 1>(columns, margins);
  if (taps == 3)
    return step == 2 ? channels_run_of<E, 3, 2>(columns, margins) : channels_run_of<E, 3, 1>(columns, margins);
  return step == 2 ? channels_run_of<E, 5, 2>(columns, margins) : channels_run_of<E, 5, 1>(columns, margins);
}
// Of 3x3 neighbouring taps.
template <class E>
inline ChannelsRun<E> select_channels_rows(int64_t step, int rows, bool margins) {
  if constexpr (kChannelsRows >= 3) {
    if (rows == 3 && step == 1) return margins ? channels_run_rows<E, 1, 3, true> : channels_run_rows<E, 1, 3, false>;
    if (rows == 3) return margins ? channels_run_rows<E, 2, 3, true> : channels_run_rows<E, 2, 3, false>;
  }
  if (step == 1) return margins ? channels_run_rows<E, 1, 2, true> : channels_run_rows<E, 1, 2, false>;
  return margins ? channels_run_rows<E, 2, 2, true> : channels_run_rows<E, 2, 2, false>;
}

// ---- weight_grad

// `blocks` blocks of U columns beside one another.
template <class E>
struct ChannelsDotArguments {
  typedef SumOf<E> A;
  const E* const* rows;  // nullptr: outside the source
  const E* grad;
  int64_t grad_column, grad_row;
  int64_t x_at, x_column;  // elements before the first position, and between neighbouring ones
  int64_t blocks, x_block, grad_block;
  const uint32_t* inside;  // (blocks)
  A* sum;                  // added to
  int64_t sum_r, sum_s, sum_vector;
  int64_t vectors;
  LaneBits lanes;
  int64_t ahead, grad_ahead;  // as above, of the last rows
};

template <class E, int R, int S, int step, int B, int U, bool margins, bool all_lanes>
inline __attribute__((always_inline)) void dot_channels_block(const ChannelsDotArguments<E>& a, int64_t at,
                                                              const E* grad, uint32_t inside,
                                                              Vec<SumOf<E>> (&sum)[R][S]) {
  typedef SumOf<E> A;
  constexpr int positions = (U - 1) * step + S, lines = (B - 1) * step + R;
  const LaneBits lanes = a.lanes;
  Vec<A> g[B][U];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const E* const from = grad + b * a.grad_row + u * a.grad_column;
      g[b][u] = load_elements<E, all_lanes>(from, lanes);
      if (a.grad_ahead) __builtin_prefetch(from + a.grad_ahead, 0, 2);
    }
#pragma GCC unroll 8
  for (int y = 0; y < lines; ++y) {
    if (a.rows[y] == nullptr) continue;
    const E* const row = a.rows[y] + at;
#pragma GCC unroll 32
    for (int i = 0; i < positions; ++i) {
      if (margins && !(inside >> i & 1)) continue;
      const Vec<A> x = load_elements<E, all_lanes>(row + i * a.x_column, lanes);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s)
          if (i >= s && (i - s) % step == 0 && (i - s) / step < U && y >= b * step && y < b * step + R)
            sum[y - b * step][s] += g[b][(i - s) / step] * x;
    }
    if (y >= lines - B * step && a.ahead) {
#pragma GCC unroll 32
      for (int i = 0; i < U * step; ++i) __builtin_prefetch(row + a.ahead + i * a.x_column, 0, 2);
    }
  }
}

template <class E, int R, int S, int step, int B, int U, bool all_lanes>
inline __attribute__((always_inline)) void dot_channels(const ChannelsDotArguments<E>& a) {
  typedef SumOf<E> A;
  constexpr uint32_t all = uint32_t((uint64_t(1) << ((U - 1) * step + S)) - 1);
  for (int64_t v = 0; v < a.vectors; ++v) {
    Vec<A> sum[R][S] = {};
    int64_t at = a.x_at + v * kLanes<A>;
    const E* grad = a.grad + v * kLanes<A>;
    for (int64_t i = 0; i < a.blocks; ++i, at += a.x_block, grad += a.grad_block) {
      if (a.inside[i] == all)
        dot_channels_block<E, R, S, step, B, U, false, all_lanes>(a, at, grad, all, sum);
      else
        dot_channels_block<E, R, S, step, B, U, true, all_lanes>(a, at, grad, a.inside[i], sum);
    }
    A* const to = a.sum + v * a.sum_vector;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        A* const one = to + r * a.sum_r + s * a.sum_s;
        store(one, load(one) + sum[r][s]);
      }
  }
}
template <class E, int R, int S, int step, int B, int U>
void channels_dot(const ChannelsDotArguments<E>& a) {
  if (a.lanes == kAllLanes<SumOf<E>>)
    dot_channels<E, R, S, step, B, U, true>(a);
  else
    dot_channels<E, R, S, step, B, U, false>(a);
}

template <class E>
using ChannelsDot = void (*)(const ChannelsDotArguments<E>&);
template <class E, int R, int S, int step, int B>
inline ChannelsDot<E> channels_dot_of(int columns) {
  return columns == kChannelsColumns ? channels_dot<E, R, S, step, B, kChannelsColumns>
                                     : channels_dot<E, R, S, step, B, 1>;
}
// Rows x columns of taps that one call computes, for `rows` gradients below one another; a step that the kernel does
// not know is in the distance of the columns of a single one.
template <class E, int step>
inline ChannelsDot<E> channels_dot_of_taps(int64_t taps_r, int64_t taps_s, int rows, int columns) {
  if constexpr (step == 1) {
    if (taps_s == 7) return channels_dot_of<E, 1, 7, 1, 1>(columns);
  }
  if (taps_s == 5) return channels_dot_of<E, 1, 5, step, 1>(columns);
  if (taps_r == 1) return channels_dot_of<E, 1, 3, step, 1>(columns);
  return rows == 1 ? channels_dot_of<E, 3, 3, step, 1>(columns)
                   : channels_dot_of<E, 3, 3, step, kChannelsDotRows>(columns);
}
template <class E>
inline ChannelsDot<E> select_channels_dot(int64_t taps_r, int64_t taps_s, int64_t step, int rows, int columns) {
  if (taps_s == 1)
    return taps_r == 3 ? channels_dot_of<E, 3, 1, 1, 1>(columns) : channels_dot_of<E, 1, 1, 1, 1>(columns);
  return step == 2 ? channels_dot_of_taps<E, 2>(taps_r, taps_s, rows, columns)
                   : channels_dot_of_taps<E, 1>(taps_r, taps_s, rows, columns);
}

}  // namespace conv_ext
