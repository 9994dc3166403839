// Padding in the depthwise algorithm where lanes are channels. Its loops leave padding out, though the definition
// multiplies its zeros: that shows where what they meet is not finite (0 * Inf is NaN), or where a bias is -0 (which
// becomes +0 when a zero is added). Such sums are few, and are seen to here, by numbers.
#pragma once

#include "vectors.h"

namespace conv_ext {

// Whether the i-th output of a phase reads padding along this axis.
inline bool reads_padding(const Axis& axis, const PhaseTaps& taps, int64_t i) {
  const int64_t first = i * axis.step() + taps.offset, last = i * axis.step() + taps.last_offset();
  return taps.count > 0 && (first < 0 || last >= axis.source);
}

// Calls visit(j) for the outputs j of a row that read padding: all of them where the row does.
template <class Visit>
inline void for_each_padded(const PhaseColumns& columns, bool row_padded, Visit visit) {
  const int64_t begin = row_padded ? columns.count : columns.inside_begin;
  const int64_t end = row_padded ? columns.count : columns.inside_end;
  for (int64_t j = 0; j < begin; ++j) visit(j);
  for (int64_t j = max_of(begin, end); j < columns.count; ++j) visit(j);
}

// Whether every one of `count` numbers, whole vectors of them, is finite.
template <class A>
inline bool all_finite(const A* from, int64_t count) {
  Vec<A> zeros{};  // 0 * x, NaN where x is not finite
  for (int64_t i = 0; i < count; i += kLanes<A>) zeros += load(from + i) * A(0);
  bool finite = true;
  for (int l = 0; l < kLanes<A>; ++l) finite = finite && zeros[l] == A(0);
  return finite;
}

template <class A>
inline bool is_minus_zero(A value) {
  return value == A(0) && __builtin_signbit(value);
}

// A weight of a channel is not finite, or its bias is -0.
template <class A>
inline bool padding_shows(const A* weights, int64_t taps, A bias) {
  A zeros = 0;
  for (int64_t t = 0; t < taps; ++t) zeros += weights[t * kLanes<A>] * A(0);
  return zeros != A(0) || is_minus_zero(bias);
}

// forward and input_grad: sums again what a channel's outputs in rows [first, last) read with padding, in the order of
// the loops. `D` is DepthwiseChannels.
template <class D>
__attribute__((noinline, cold)) void sum_with_padding(const D& d, int64_t n, int64_t c, int64_t first, int64_t last) {
  typedef typename D::Sum A;
  typedef typename D::Element T;
  const T* const from = d.source.data + n * d.source.n + c;
  T* const to = d.result.data + n * d.result.n + c;
  const A* const weights = d.shared.weights + c / D::L * D::L * d.taps() + c % D::L;
  const A bias = d.shared.biases[c];
  if (!padding_shows(weights, d.taps(), bias)) return;
  for (int64_t row = first; row < last; ++row) {
    const int64_t i = row / d.vertical.output_step();
    const PhaseTaps& down = d.shared.rows[row % d.vertical.output_step()];
    for (int64_t f = 0; f < d.horizontal.phases() && down.count > 0; ++f) {
      const PhaseTaps& right = d.shared.columns[f].taps;
      if (right.count == 0) continue;
      for_each_padded(d.shared.columns[f], reads_padding(d.vertical, down, i), [&](int64_t j) {
        A sum = bias;
        for (int64_t r = 0; r < down.count; ++r) {
          const int64_t y = i * d.vertical.step() + down.offset_at(r);
          for (int64_t s = 0; s < right.count; ++s) {
            const int64_t x = j * d.horizontal.step() + right.offset_at(s);
            const bool inside = y >= 0 && y < d.vertical.source && x >= 0 && x < d.horizontal.source;
            const int64_t tap = down.tap_at(r) * d.z.s + right.tap_at(s);
            sum += weights[tap * D::L] * (inside ? read<A>(from + y * d.source.row + x * d.source.column) : A(0));
          }
        }
        const int64_t column = f + j * d.horizontal.output_step();
        T* const at = to + row * d.result.row + column * d.result.column;
        write<T>(at, D::in_place || !d.finish_sums.adds ? d.finish_sums.one(sum, at) : sum);
      });
    }
  }
}

// weight_grad: whether a gradient that is not finite may have met padding. Most outputs read something inside as well,
// which left a sum that is not finite; only those that lie wholly in the padding leave no trace.
template <class A>
inline bool padding_may_show_in(const Axis& vertical, const Axis& horizontal, const A* sums, int64_t count) {
  const auto wholly = [](const Axis& a) {  // or on either side of it, where the taps lie further apart than it is long
    return a.offset(a.taps - 1) < 0 || (a.output - 1) * a.step() + a.offset(0) >= a.source || a.dilation > a.source;
  };
  return !all_finite(sums, count) || wholly(vertical) || wholly(horizontal);
}

// weight_grad: a gradient that is not finite makes NaN of every tap through which its output reads padding, in
// sum: (channels / L, R S, L).
template <class D>
__attribute__((noinline, cold)) void add_padding(const D& d, int64_t n, int64_t c, int64_t channels,
                                                 typename D::Sum* sum) {
  typedef typename D::Sum A;
  typedef typename D::Element T;
  const PhaseColumns& columns = d.shared.columns[0];
  const PhaseTaps &down = d.shared.rows[0], &right = columns.taps;
  for (int64_t i = 0; i < d.z.p; ++i) {
    const bool row_padded = reads_padding(d.vertical, down, i);
    for (int64_t v = 0; v < channels; v += D::L) {
      const T* const line = d.result.data + n * d.result.n + i * d.result.row + c + v;
      const int64_t lanes = min_of(D::L, channels - v);
      Vec<A> zeros{};
      for_each_padded(columns, row_padded, [&](int64_t j) {
        const T* const at = line + j * d.result.column;
        zeros += (lanes == D::L ? read_lanes<A>(at) : read_lanes<A>(at, lanes)) * A(0);
      });
      for (int64_t l = 0; l < lanes; ++l) {
        if (zeros[l] == A(0)) continue;
        for_each_padded(columns, row_padded, [&](int64_t j) {
          const A none = read<A>(line + j * d.result.column + l) * A(0);  // 0, or NaN
          if (none == A(0)) return;
          for (int64_t r = 0; r < down.count; ++r)
            for (int64_t s = 0; s < right.count; ++s) {
              const int64_t y = i * d.vertical.step() + down.offset_at(r);
              const int64_t x = j * d.horizontal.step() + right.offset_at(s);
              if (y < 0 || y >= d.vertical.source || x < 0 || x >= d.horizontal.source)
                sum[(v / D::L * d.taps() + r * d.z.s + s) * D::L + l] += none;
            }
        });
      }
    }
  }
}

}  // namespace conv_ext
