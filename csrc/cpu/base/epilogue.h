// Epilogues: Finish is what is done to sums in registers, on their way to memory. What it leaves finish_results does to
// results that lie where they belong, and in the caches still: an algorithm calls it for each part of the result that
// it has written.
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

// Takes finished sums between two bounds: NaN stays, and a zero keeps its sign. They need not be rounded to T yet: what
// will round to -0 is not below 0.
template <class T, class A>
struct Bounds {
  static constexpr A kInfinity = A(__builtin_inf());
  Vec<A> below = splat(-kInfinity), low = below, high = splat(kInfinity);

  Bounds() = default;
  explicit Bounds(const Epilogue& e) {
    const bool relu = e.activation == Activation::Relu;
    if (!relu && e.activation != Activation::Clamp) return;
    low = splat(relu ? A(0) : A(e.low));
    high = splat(relu ? kInfinity : A(e.high));
    below = low[0] == A(0) ? splat(-kUnderflow<T, A>) : low;
  }
  __attribute__((always_inline)) Vec<A> operator()(Vec<A> v) const {
    return select<A>(v < below, low, select<A>(v > high, high, v));
  }
};

// The part of an epilogue that is done in registers: a residual that lies as the result does is added to what T holds
// of a sum, and what T holds of that is taken between bounds. Sums are so finished as they are written; those in a
// scratch that is copied in another order are bounded there, unless something is to be added before.
template <class T, class A>
struct Finish {
  static constexpr int L = kLanes<A>;
  Bounds<T, A> bounded;
  bool bounds = false, adds = false;
  bool left = false;      // all of it is left to finish_results
  intptr_t residual = 0;  // bytes from a result to what is added to it

  Finish() = default;
  Finish(const ConvProblem& z, const Buffers& b) {
    const Epilogue& e = b.epilogue;
    if (!e.any()) return;
    const int64_t sizes[4] = {z.n, z.k, z.p, z.q};
    bool alike = true;
    for (int d = 0; d < 4; ++d) alike &= sizes[d] == 1 || e.residual.stride[d] == b.output.stride[d];
    adds = e.residual.data != nullptr;
    bounds = e.activation == Activation::Relu || e.activation == Activation::Clamp;
    left = (adds && !alike) || (e.activation != Activation::None && !bounds);
    if (left) adds = bounds = false;
    if (bounds) bounded = Bounds<T, A>(e);
    if (adds) residual = reinterpret_cast<intptr_t>(e.residual.data) - reinterpret_cast<intptr_t>(b.output.data);
  }

  bool any() const { return bounds || adds; }
  // For sums that are written where they belong, and for those that go to a scratch; nullptr: nothing is done to them.
  const Finish* as_they_lie() const { return any() ? this : nullptr; }
  const Finish* elsewhere() const { return bounds && !adds ? this : nullptr; }
  const T* residual_of(const T* to) const {
    return reinterpret_cast<const T*>(reinterpret_cast<intptr_t>(to) + residual);
  }
  // The first `count` of some sums, which go to an address.
  __attribute__((always_inline)) Vec<A> operator()(Vec<A> v, const T* to, int64_t count = L) const {
    if (adds) v = round_to<T, A>(round_to<T, A>(v) + read_some<A>(residual_of(to), count));
    return bounded(v);
  }
  A one(A sum, const T* to) const { return (*this)(splat(sum), to, 1)[0]; }
  // Whole vectors of a scratch.
  void in_scratch(A* sums, int64_t count) const {
    for (int64_t i = 0; bounds && !adds && i < count; i += L) store(sums + i, bounded(load(sums + i)));
  }
};

// The sums of a register tile, where they belong: `zero` is added to all of them, and what lies there if they are part
// of a sum. finish: what is done to those that are the last part, or nullptr.
template <class A, int M, int V>
inline __attribute__((always_inline)) void write_tile(const Vec<A> (&sum)[M][V], A* out, int64_t out_row, bool add,
                                                      A zero, const Finish<A, A>* finish) {
  const Vec<A> zeros = splat(zero);
  const auto write = [&](auto finished) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        A* const to = out + m * out_row + v * kLanes<A>;
        store(to, finished((add ? load(to) + sum[m][v] : sum[m][v]) + zeros, to));
      }
  };
  if (finish == nullptr) return write([](Vec<A> v, const A*) __attribute__((always_inline)) { return v; });
  write(Finish<A, A>(*finish));
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
  const V zero{};
  switch (b.epilogue.activation) {
    case Activation::None:
      return run([](V v) __attribute__((always_inline)) { return v; });
    case Activation::Relu:
    case Activation::Clamp:
      return run(Bounds<T, A>(b.epilogue));
    case Activation::Silu:
      return run([](V v) __attribute__((always_inline)) { return silu<A>(v); });
    case Activation::HardSwish:
      return run([=](V v) __attribute__((always_inline)) {
        const V six = splat(A(6)), x = v + splat(A(3));
        return v * select<A>(x < zero, zero, select<A>(x > six, six, x)) / six;
      });
  }
}

// Adds the residual to what lies in a box of the result, and applies the activation, where `finish` has left that: it
// was applied to all sums of the box as they were written, or to those in a scratch.
template <class T, class A>
inline __attribute__((always_inline)) void finish_results(const Finish<T, A>& finish, bool as_written, const Buffers& b,
                                                          int64_t parts, const ResultBox& at) {
  if (__builtin_expect(finish.left || (finish.adds && !as_written), 0)) finish_box<T, A>(b, parts, at);
}

// The same for positions [first, last) of an image, numbered through its rows of `width`.
template <class T, class A>
inline void finish_positions(const Finish<T, A>& finish, bool as_written, const Buffers& b, int64_t parts, int64_t n,
                             int64_t channel, int64_t channels, int64_t width, int64_t first, int64_t last) {
  if (!finish.left && (as_written || !finish.adds)) return;
  while (first < last) {
    const int64_t column = first % width, rest = last - first;
    const int64_t rows = column == 0 && rest >= width ? rest / width : 1;  // whole ones at once
    const int64_t columns = min_of(width - column, rest);
    finish_box<T, A>(b, parts, {n, channel, channels, first / width, rows, column, columns});
    first += rows * columns;
  }
}

}  // namespace conv_ext
