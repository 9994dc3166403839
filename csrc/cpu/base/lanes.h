// Vectors of channels: between tensors in any layout and buffers in which kLanes channels of a position lie together.
#pragma once

#include "epilogue.h"

namespace conv_ext {

// row[j] = the elements j of `lanes` rows `stride` apart, each of `count` neighbours in memory; the rest is zero.
template <class A, class T>
inline __attribute__((always_inline)) void load_square(Vec<A>* row, const T* from, int64_t stride, int64_t lanes,
                                                       int64_t count) {
  constexpr int L = kLanes<A>;
  if (lanes == L) {
    // The rows may be far apart: what the next vectors of channels will need is fetched meanwhile.
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) __builtin_prefetch(from + (L + l) * stride, 0, 2);
    if constexpr (sizeof(T) == sizeof(A)) return load_transposed<A>(row, from, stride, count);
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) row[l] = read_lanes<A>(from + l * stride, count);
  } else {
    for (int l = 0; l < L; ++l) row[l] = l < lanes ? read_lanes<A>(from + l * stride, count) : Vec<A>{};
  }
  transpose<A>(row);
}

// buffer[i][lane] = channel `lane` of position i, for `channels` <= kLanes channels; lanes beyond them are zero.
template <class A, class T>
void positions_to_lanes(A* buffer, const T* from, int64_t channel_stride, int64_t position_stride, int64_t channels,
                        int64_t positions) {
  constexpr int L = kLanes<A>;
  if (position_stride == 1 && channel_stride != 1) {
    for (int64_t i = 0; i < positions; i += L) {
      const int64_t count = min_of(L, positions - i);
      Vec<A> square[L];
      load_square<A>(square, from + i, channel_stride, channels, count);
      for (int64_t j = 0; j < count; ++j) store(buffer + (i + j) * L, square[j]);
    }
  } else if (channel_stride == 1) {
    for (int64_t i = 0; i < positions; ++i, from += position_stride)
      store(buffer + i * L, channels == L ? read_lanes<A>(from) : read_lanes<A>(from, channels));
  } else {
    for (int64_t i = 0; i < positions; ++i)
      for (int64_t l = 0; l < L; ++l)
        buffer[i * L + l] = l < channels ? read<A>(from + l * channel_stride + i * position_stride) : A(0);
  }
}

// The way back; with `finish`, sums are finished on it.
template <class A, class T>
void lanes_to_positions(const A* buffer, T* to, int64_t channel_stride, int64_t position_stride, int64_t channels,
                        int64_t positions, const Finish<T, A>& finish = {}) {
  constexpr int L = kLanes<A>;
  const bool plain = !finish.any();
  const auto write = [&](T * at, Vec<A> v, int64_t count) __attribute__((always_inline)) {
    write_some<T, A>(at, plain ? v : finish(v, at, count), count);
  };
  if (position_stride == 1 && channel_stride != 1) {
    for (int64_t i = 0; i < positions; i += L) {
      const int64_t count = min_of(L, positions - i);
      // A last square reads on past the positions: the buffer has room for whole squares.
      Vec<A> square[L];
      load_transposed<A>(square, buffer + i * L, L);
      T* at = to + i;
      for (int64_t l = 0; l < channels; ++l, at += channel_stride) write(at, square[l], count);
    }
  } else if (channel_stride == 1) {
    for (int64_t i = 0; i < positions; ++i, to += position_stride) write(to, load(buffer + i * L), channels);
  } else {
    for (int64_t i = 0; i < positions; ++i)
      for (int64_t l = 0; l < channels; ++l) {
        T* const at = to + l * channel_stride + i * position_stride;
        conv_ext::write<T>(at, plain ? buffer[i * L + l] : finish.one(buffer[i * L + l], at));
      }
  }
}

// A window of one image, rows x columns positions from (first_row, first_column) on, with zeros outside the image:
// buffer[row][column][lane].
template <class A, class T>
void window_to_lanes(A* buffer, const View<T>& view, int64_t height, int64_t width, int64_t first_row,
                     int64_t first_column, int64_t rows, int64_t columns, int64_t channels) {
  constexpr int L = kLanes<A>;
  const Range inside = range_inside(first_column, 1, columns, width);
  for (int64_t i = 0; i < rows; ++i, buffer += columns * L) {
    const int64_t row = first_row + i;
    const bool outside = row < 0 || row >= height || inside.count() == 0;
    const int64_t from = outside ? columns : inside.first, to = outside ? columns : inside.last;
    for (int64_t j = 0; j < from; ++j) store(buffer + j * L, Vec<A>{});
    for (int64_t j = to; j < columns; ++j) store(buffer + j * L, Vec<A>{});
    if (from < to)
      positions_to_lanes(buffer + from * L, view.data + row * view.row + (first_column + from) * view.column,
                         view.channel, view.column, channels, to - from);
  }
}

// lanes_to_positions that reads nothing of the buffer behind its last position.
template <class A, class T>
void lanes_to_positions_within(const A* buffer, T* to, int64_t channel_stride, int64_t position_stride,
                               int64_t channels, int64_t positions) {
  constexpr int L = kLanes<A>;
  const int64_t whole = positions / L * L, rest = positions - whole;
  lanes_to_positions(buffer, to, channel_stride, position_stride, channels, whole);
  if (rest == 0) return;
  A last[L * L] = {};
  memcpy(static_cast<void*>(last), buffer + whole * L, size_t(rest * L) * sizeof(A));
  lanes_to_positions(last, to + whole * position_stride, channel_stride, position_stride, channels, rest);
}

// Of depthwise weights: calls visit(c, tap, count, lanes, row) for each vector of L channels and each row of their
// kernels: `count` taps from `tap` on, `lanes` channels from c on, the first of which has them at `row`.
template <int L, class T, class Visit>
void for_each_kernel_row(const ConvProblem& z, const View<T>& weight, Visit visit) {
  const bool joined = weight.row == z.s * weight.column;
  const int64_t count = joined ? z.r * z.s : z.s;
  for (int64_t c = 0; c < z.c; c += L)
    for (int64_t tap = 0; tap < z.r * z.s; tap += count)
      visit(c, tap, count, min_of(L, z.c - c), weight.data + c * weight.n + tap / z.s * weight.row);
}

}  // namespace conv_ext
