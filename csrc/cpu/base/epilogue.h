// Epilogues: what is left to do with results that lie where they belong, and in the caches still. An algorithm calls
// finish_results for each part of the result when it has written it.
#pragma once

#include "exponential.h"
#include "pack.h"

namespace conv_ext {

// A part of a result: a few neighbouring channels (elements, not their parts), rows and columns of an image.
struct ResultBox {
  int64_t n, channel, channels, row, rows, column, columns;
};

// A number as T holds it.
template <class T, class A>
inline __attribute__((always_inline)) Vec<A> round_to(Vec<A> v) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return v;
  } else if constexpr (kHalves<A, T>) {
    return widen_halves(narrow_halves(v, T{}), T{});
  } else {
    A lane[kLanes<A>];
    store(lane, v);
    for (int i = 0; i < kLanes<A>; ++i) lane[i] = widen<A>(narrow<T>(lane[i]));
    return load(lane);
  }
}

// The first `count` of the numbers at an address, every `step`-th of them; and back.
template <class A, class T>
inline __attribute__((always_inline)) Vec<A> read_apart(const T* p, int64_t step, int64_t count) {
  if (step == 1) return read_some<A>(p, count);
  A lane[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) lane[i] = read<A>(p + i * step);
  return load(lane);
}
template <class T, class A>
inline __attribute__((always_inline)) void write_apart(T* p, int64_t step, Vec<A> v, int64_t count) {
  if (step == 1) return write_some<T, A>(p, v, count);
  A lane[kLanes<A>];
  store(lane, v);
  for (int64_t i = 0; i < count; ++i) write<T>(p + i * step, lane[i]);
}

// What is done to some results with one activation: NaN stays, a zero keeps its sign.
template <class T, class A, class Activate>
struct FinishRuns {
  Activate activate;

  // Of neighbours; other: the residual's, or nullptr.
  void neighbours(T* to, const T* other, int64_t count) const {
    constexpr int64_t L = kLanes<A>;
    for (int64_t i = 0; i < count; i += L) {
      const int64_t here = min_of(L, count - i);
      Vec<A> v = read_some<A>(to + i, here);
      if (other != nullptr) v = round_to<T, A>(v + read_some<A>(other + i, here));
      write_some<T, A>(to + i, activate(v), here);
    }
  }
  void apart(T* to, int64_t step, const T* other, int64_t other_step, int64_t count) const {
    if (step == 1 && (other == nullptr || other_step == 1)) return neighbours(to, other, count);
    constexpr int64_t L = kLanes<A>;
    for (int64_t i = 0; i < count; i += L) {
      const int64_t here = min_of(L, count - i);
      Vec<A> v = read_apart<A>(to + i * step, step, here);
      if (other != nullptr) v = round_to<T, A>(v + read_apart<A>(other + i * other_step, other_step, here));
      write_apart<T, A>(to + i * step, step, activate(v), here);
    }
  }

  // Along what is neighbours in the result: channels, or columns. Runs that follow one another are one.
  void box(const Buffers& b, int64_t parts, const ResultBox& at) const {
    const View<T> result = view_of<T>(b.output, parts);
    const bool adds = b.epilogue.residual.data != nullptr;
    View<T> residual = adds ? view_of<T>(b.epilogue.residual, parts) : View<T>{};
    const auto begin = [&](const View<T>& v) {
      return v.data + at.n * v.n + at.channel * v.channel + at.row * v.row + at.column * v.column;
    };
    const bool by_channels = result.channel == parts && (result.column != parts || at.channels > at.columns);
    struct Along {
      int64_t count, step, other;
    } inner{at.channels, result.channel, residual.channel}, middle{at.columns, result.column, residual.column},
        outer{at.rows, result.row, residual.row};
    if (!by_channels) {
      const Along channels = inner;
      inner = middle, middle = outer, outer = channels;
    }
    const auto follows = [&](const Along& a, const Along& b) {
      return b.step == a.count * a.step && (!adds || b.other == a.count * a.other);
    };
    if (follows(inner, middle)) inner.count *= middle.count, middle = outer, outer.count = 1;
    if (follows(inner, middle)) inner.count *= middle.count, middle.count = 1;
    // Both parts of a complex number are neighbours.
    const bool together = inner.step == parts && (!adds || inner.other == parts);
    const int64_t runs = together ? 1 : parts;
    for (int64_t i = 0; i < outer.count; ++i)
      for (int64_t j = 0; j < middle.count; ++j)
        for (int64_t part = 0; part < runs; ++part) {
          T* const to = begin(result) + i * outer.step + j * middle.step + part;
          const T* const other = adds ? begin(residual) + i * outer.other + j * middle.other + part : nullptr;
          if (together)
            neighbours(to, other, inner.count * parts);
          else
            apart(to, inner.step, other, inner.other, inner.count);
        }
  }
};

template <class T, class A>
__attribute__((noinline)) void finish_box(const Buffers& b, int64_t parts, const ResultBox& at) {
  typedef Vec<A> V;
  const auto run = [&](auto activate) { FinishRuns<T, A, decltype(activate)>{activate}.box(b, parts, at); };
  const V low = splat(A(b.epilogue.low)), high = splat(A(b.epilogue.high)), zero{};
  switch (b.epilogue.activation) {
    case Activation::None:
      return run([](V v) __attribute__((always_inline)) { return v; });
    case Activation::Relu:
      return run([=](V v) __attribute__((always_inline)) { return select<A>(v < zero, zero, v); });
    case Activation::Clamp:
      return run([=](V v)
                     __attribute__((always_inline)) { return select<A>(v < low, low, select<A>(v > high, high, v)); });
    case Activation::Silu:
      return run([](V v) __attribute__((always_inline)) { return silu<A>(v); });
    case Activation::HardSwish:
      return run([=](V v) __attribute__((always_inline)) {
        const V six = splat(A(6)), x = v + splat(A(3));
        return v * select<A>(x < zero, zero, select<A>(x > six, six, x)) / six;
      });
  }
}

// Adds the residual to what lies in a box of the result, and applies the activation, where there is one to be applied.
template <class T, class A>
inline __attribute__((always_inline)) void finish_results(const Buffers& b, int64_t parts, const ResultBox& at) {
  if (__builtin_expect(b.epilogue.any(), 0)) finish_box<T, A>(b, parts, at);
}

// The same for positions [first, last) of an image, numbered through its rows of `width`.
template <class T, class A>
inline void finish_positions(const Buffers& b, int64_t parts, int64_t n, int64_t channel, int64_t channels,
                             int64_t width, int64_t first, int64_t last) {
  if (!b.epilogue.any()) return;
  while (first < last) {
    const int64_t column = first % width, rest = last - first;
    const int64_t rows = column == 0 && rest >= width ? rest / width : 1;  // whole ones at once
    const int64_t columns = min_of(width - column, rest);
    finish_box<T, A>(b, parts, {n, channel, channels, first / width, rows, column, columns});
    first += rows * columns;
  }
}

}  // namespace conv_ext
