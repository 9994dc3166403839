// The innermost loops of the depthwise algorithm that are for the backward passes alone, where lanes are columns.
//
//   columns_spread  input_grad of 3x3 with stride 2: four outputs from each position of the gradient and the next
//   columns_dot     weight_grad:
//                     sum[r][s][lane] += sum over b, vectors of  g[b][lane] * x[row of b, r][tap s + lane]
//
// 3x3 on 7x7 maps takes 89 cycles a map, of which 32 would be multiply-adds; with rows outside and columns inside in
// the loop it takes 91, with every load aligned 85.
#pragma once

#include "columns_tile.h"

namespace conv_ext {

// input_grad of 3x3 with stride 2 and an odd padding: of the gradient's rows i and i + 1 and columns
// j and j + 1 come the four outputs (2 i, 2 i + 1) x (2 j, 2 j + 1), from 1, 2, 2 and 4 products.
template <class A>
struct ColumnsSpreadArguments {
  const A* const* rows;  // (block + 1)
  const ColumnSegment* segment;
  int64_t segments;
  const A* weight;  // of the middle tap; the others are one step away, towards the later position
  int64_t weight_r, weight_s;
  A* out;
  int64_t out_row, out_rows, out_columns;
  int64_t channels, x_channel, weight_channel, out_channel;
};
template <class A>
void columns_spread(const ColumnsSpreadArguments<A>& a) {
  constexpr int L = kLanes<A>;
  Vec<typename IntegerOf<A>::type> low, high;
  for (int l = 0; l < L; ++l) {
    low[l] = l / 2 + l % 2 * L;
    high[l] = low[l] + L / 2;
  }
  const int64_t rows = a.out_rows, out_row = a.out_row;
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    // w[r][s]: 1 reads position i alone; 0 and 2 read i and i + 1.
    Vec<A> w[3][3];
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s)
        w[r][s] = splat(read<A>(a.weight + channel * a.weight_channel + (r - 1) * a.weight_r + (s - 1) * a.weight_s));
    for (int64_t i = 0; i < a.segments; ++i) {
      const ColumnSegment& segment = a.segment[i];
      const ColumnTap first = segment.tap[0], second = segment.tap[1];
      for (int64_t v = 0; v < segment.count; ++v) {
        const int64_t x = channel * a.x_channel + v * L, column = 2 * (segment.first + v * L);
        const int64_t rest = a.out_columns - column;
        A* out = a.out + channel * a.out_channel + column;
        const A* row = a.rows[0] + x;
        Vec<A> x0 = load_lanes<A, false>(row + first.offset, first.low);
        Vec<A> x1 = load_lanes<A, false>(row + second.offset, second.low);
        const auto store_pair = [&](A * to, Vec<A> even, Vec<A> odd) __attribute__((always_inline)) {
          const Vec<A> left = shuffle<A>(even, odd, low), right = shuffle<A>(even, odd, high);
          store_lanes(to, left, lanes_between<A>(0, rest));
          if (rest > L) store_lanes(to + L, right, lanes_between<A>(0, rest - L));
        };
        for (int64_t p = 0; p < rows; p += 2, out += 2 * out_row) {
          row = a.rows[p / 2 + 1] + x;
          const Vec<A> y0 = load_lanes<A, false>(row + first.offset, first.low);
          const Vec<A> y1 = load_lanes<A, false>(row + second.offset, second.low);
          __builtin_prefetch(row + kPrefetch, 0, 3);
#pragma GCC unroll 2
          for (int line = 0; line < 2; ++line) {
            __builtin_prefetch(out + line * out_row + kPrefetch, 1, 3);
            __builtin_prefetch(out + line * out_row + L + kPrefetch, 1, 3);
          }
          Vec<A> even{}, odd{};
          even += w[1][1] * x0;
          odd += w[1][0] * x0;
          odd += w[1][2] * x1;
          store_pair(out, even, odd);
          if (p + 1 < rows) {
            even = odd = Vec<A>{};
            even += w[0][1] * x0;
            even += w[2][1] * y0;
            odd += w[0][0] * x0;
            odd += w[2][0] * y0;
            odd += w[0][2] * x1;
            odd += w[2][2] * y1;
            store_pair(out + out_row, even, odd);
          }
          x0 = y0;
          x1 = y1;
        }
      }
    }
  }
}

// As ColumnsArguments, for S columns of taps from `tap` on.
template <class A>
struct ColumnsDotArguments {
  const A* const* rows;
  int64_t row_step;
  const A* const* grad;  // (B)
  const ColumnSegment* segment;
  int64_t segments, tap;
  A* sum;  // added to
  int64_t sum_r, sum_s;
  int64_t channels, x_channel, g_channel, sum_channel;
  const A* ahead;
  int64_t ahead_row;
};

template <class A, int R, int S, int B, int row_step, int column_step, bool all_inside>
inline __attribute__((always_inline)) void dot_vector(const A* const* rows, int64_t step, const A* const* grad,
                                                      const ColumnTap* tap, int64_t x_at, int64_t g_at, LaneBits lanes,
                                                      Vec<A> (&sum)[R][S], const A* ahead, int64_t ahead_row) {
  constexpr int L = kLanes<A>;
  constexpr bool pairs = takes_pairs(column_step, R == 3 ? S : 0);
  if (row_step != 0 && B > 1 && ahead != nullptr) {
#pragma GCC unroll 32
    for (int y = 0; y < B * row_step; ++y)
#pragma GCC unroll 2
      for (int half = 0; half < column_step; ++half) __builtin_prefetch(ahead + y * ahead_row + half * L, 0, 3);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) __builtin_prefetch(grad[b] + g_at + kPrefetch, 0, 3);
  }
  Vec<A> g[B];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) g[b] = load_lanes < A, all_inside && !pairs > (grad[b] + g_at, lanes);
  if constexpr (pairs) {
    // What a lane without an output takes from the pair may be anything.
    typedef typename IntegerOf<A>::type I;
    Vec<I> bit;
    for (int l = 0; l < L; ++l) bit[l] = I(1) << l;
    const Vec<I> mask = ((I(lanes) - Vec<I>{}) & bit) == bit;
    const int64_t at = x_at + tap[0].offset;
    const LaneBits low_bits = tap[0].low, high_bits = tap[0].high;
#pragma GCC unroll 32
    for (int y = 0; y < (B - 1) * row_step + R; ++y) {
      const A* const row = rows[y] + at;
      const Vec<A> low = load_lanes<A, all_inside>(row, low_bits), high = load_lanes<A, all_inside>(row + L, high_bits);
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) {
        const Vec<A> x = keep<A>(from_pair<A>(low, high, s), mask);
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
          if (y - b * row_step >= 0 && y - b * row_step < R) sum[y - b * row_step][s] += g[b] * x;
      }
    }
  } else {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const int64_t at = x_at + tap[s].offset;
      const LaneBits low = tap[s].low, high = tap[s].high;
      if constexpr (row_step == 0) {
        static_assert(R == 1, "rows that outputs share are a fixed step apart");
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
          sum[0][s] += g[b] * load_tap<A, column_step, all_inside>(rows[b * step] + at, low, high);
      } else {
#pragma GCC unroll 32
        for (int y = 0; y < (B - 1) * row_step + R; ++y) {
          const Vec<A> x = load_tap<A, column_step, all_inside>(rows[y] + at, low, high);
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b)
            if (y - b * row_step >= 0 && y - b * row_step < R) sum[y - b * row_step][s] += g[b] * x;
        }
      }
    }
  }
}

template <class A, int R, int S, int B, int row_step, int column_step>
void columns_dot(const ColumnsDotArguments<A>& a) {
  constexpr int L = kLanes<A>, outputs = takes_pairs(column_step, R == 3 ? S : 0) ? L - 1 : L;
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    Vec<A> sum[R][S] = {};
    for (int64_t i = 0; i < a.segments; ++i) {
      const ColumnSegment& segment = a.segment[i];
      const LaneBits lanes = segment.lanes;
      const ColumnTap* const tap = segment.tap + a.tap;
      int64_t x_at = channel * a.x_channel;
      int64_t g_at = channel * a.g_channel + segment.first;
      const bool all_inside = !kMasksAreFree && segment.all_inside && (lanes == kAllLanes<A> || outputs < L);
      const A* ahead = a.ahead ? a.ahead + x_at + segment.first * column_step : nullptr;
      for (int64_t v = 0; v < segment.count; ++v, x_at += outputs * column_step, g_at += outputs) {
        if (all_inside)
          dot_vector<A, R, S, B, row_step, column_step, !kMasksAreFree>(a.rows, a.row_step, a.grad, tap, x_at, g_at,
                                                                        lanes, sum, ahead, a.ahead_row);
        else
          dot_vector<A, R, S, B, row_step, column_step, false>(a.rows, a.row_step, a.grad, tap, x_at, g_at, lanes, sum,
                                                               ahead, a.ahead_row);
        if (ahead) ahead += outputs * column_step;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        A* const to = a.sum + channel * a.sum_channel + r * a.sum_r + s * a.sum_s;
        store(to, load(to) + sum[r][s]);
      }
  }
}

// weight_grad: columns of taps that are computed together.
constexpr int dot_tap_columns(int chunk, int64_t rest) {
  return chunk == 7 ? 1 : chunk == 5 ? (rest >= 2 ? 2 : 1) : (rest >= 3 ? 3 : 1);
}

template <class A>
using ColumnsDot = void (*)(const ColumnsDotArguments<A>&);
template <class A, int row_step, int column_step, int... chunks>
inline ColumnsDot<A> columns_dot_of(int chunk, int columns, int rows) {
  return with_one_of<chunks...>(chunk, [columns, rows](auto r) {
    constexpr int R = decltype(r)::value;
    return with_one_of<dot_tap_columns(R, 3), 1>(columns, [rows](auto s) {
      return with_one_of<kColumnsDotRows, 3, 1>(rows, [](auto b) -> ColumnsDot<A> {
        return columns_dot<A, R, decltype(s)::value, decltype(b)::value, row_step, column_step>;
      });
    });
  });
}
template <class A, int column_step>
inline ColumnsDot<A> select_columns_dot(int chunk, int64_t row_step, int columns, int rows) {
  if (chunk == 1) return columns_dot_of<A, 0, column_step, 1>(chunk, columns, rows);
  if (column_step == 2 || row_step == 2) return columns_dot_of<A, 2, column_step, 7, 5, 3, 2>(chunk, columns, rows);
  if constexpr (column_step == 1) return columns_dot_of<A, 1, 1, 7, 5, 3, 2>(chunk, columns, rows);
  return nullptr;
}

}  // namespace conv_ext
