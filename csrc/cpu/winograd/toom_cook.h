// The transforms of Winograd's minimal filtering F(M x M, R x R), in the form of Toom and Cook: M outputs of an R-tap
// filter along an axis are M + R - 1 products of polynomials' values, at M + R - 2 points and at infinity
// (S. Winograd, "Arithmetic Complexity of Computations", 1980, chapter III; A. Lavin, S. Gray, "Fast Algorithms for
// Convolutional Neural Networks", CVPR 2016, section 4). With the points p_i, N_i = product over q != p_i of (p_i - q):
//
//   y = A^T [(G w) * (B^T x)]     A (T x M): p_i^j,   G (T x R): p_i^j / N_i,   row i of B^T: product over q != p_i of
//   (X - q)
//
// and in the last row, that of infinity, 1 for the highest power, and the product over all points. Two axes are nested.
// The points come in pairs +-p: such two rows differ in the signs of the odd columns alone, and share their sums.
#pragma once

#include "../base/simd.h"

namespace conv_ext {

// Points for small errors: the largest error of F(4 x 4, 3 x 3) over 128 channels of normal data, in units of the
// roundoff of the sum of absolute products, is 3.5 with +-3/4, +-3/2, but 12 with +-1, +-2, and 16 with +-1/2, +-1;
// that of F(2 x 2, 3 x 3) is 1.2. (Choice of points: B. Barabasz et al., "Error Analysis and Improving the Accuracy of
// Winograd Convolution for Deep Neural Networks", 2020.)
template <int M, int R>
struct Points;
template <>
struct Points<2, 3> {
  static constexpr double positive[] = {1};
};
template <>
struct Points<4, 3> {
  static constexpr double positive[] = {0.75, 1.5};
};
template <>
struct Points<4, 5> {
  static constexpr double positive[] = {0.5, 1, 2};
};

template <int M, int R>
struct ToomCook {
  static constexpr int T = M + R - 1, kInfinity = T - 1;
  static_assert(T % 2 == 0, "zero, pairs of points, infinity");

  static constexpr double point(int i) { return i == 0 ? 0 : Points<M, R>::positive[(i - 1) / 2] * (i % 2 ? 1 : -1); }
  static constexpr double power(double x, int n) { return n == 0 ? 1 : x * power(x, n - 1); }
  static constexpr double norm(int i) {
    double n = 1;
    for (int q = 0; q < kInfinity; ++q)
      if (q != i) n *= point(i) - point(q);
    return n;
  }
  // The coefficient of X^j in the product of (X - q) over all points, but for point i.
  static constexpr double coefficient(int i, int j) {
    double polynomial[T + 1] = {1};
    int degree = 0;
    for (int q = 0; q < kInfinity; ++q) {
      if (q == i) continue;
      ++degree;
      for (int n = degree; n >= 0; --n) polynomial[n] = (n > 0 ? polynomial[n - 1] : 0) - point(q) * polynomial[n];
    }
    return j <= degree ? polynomial[j] : 0;
  }

  struct B {  // B^T
    static constexpr int kColumns = T;
    static constexpr double at(int i, int j) { return coefficient(i, j); }
  };
  struct G {
    static constexpr int kColumns = R;
    static constexpr double at(int i, int j) { return i == kInfinity ? j == R - 1 : power(point(i), j) / norm(i); }
  };
  struct A {
    static constexpr int kColumns = M;
    static constexpr double at(int i, int j) { return i == kInfinity ? j == M - 1 : power(point(i), j); }
  };
};

// sum + c * x, with nothing to multiply where c is 1 or -1, and nothing to add to where there is no sum yet.
template <class E, bool begun>
inline __attribute__((always_inline)) Vec<E> add_times(Vec<E> sum, E c, Vec<E> x) {
  if (begun) return c == 1 ? sum + x : c == -1 ? sum - x : sum + c * x;
  return c == 1 ? x : c == -1 ? -x : c * x;
}

// The part of row I of a product Matrix * in that the columns J, J + Step, ... give.
template <class Matrix, int I, int J, int Step, bool begun = false, class E>
inline __attribute__((always_inline)) Vec<E> row_sum(const Vec<E>* in, Vec<E> sum, E) {
  if constexpr (J >= Matrix::kColumns) {
    return sum;
  } else {
    constexpr E c = E(Matrix::at(I, J));
    if constexpr (c == 0)
      return row_sum<Matrix, I, J + Step, Step, begun>(in, sum, E());
    else
      return row_sum<Matrix, I, J + Step, Step, true>(in, add_times<E, begun>(sum, c, in[J]), E());
  }
}

// out = Matrix * in for a matrix of T rows: B^T, G, or A.
template <class Matrix, int T, class E>
struct Expand {
  static constexpr int kIn = Matrix::kColumns, kOut = T;
  template <int I = 1>
  static inline __attribute__((always_inline)) void apply(const Vec<E>* in, Vec<E>* out) {
    if constexpr (I == 1) {
      out[0] = row_sum<Matrix, 0, 0, 1>(in, Vec<E>{}, E());
      out[T - 1] = row_sum<Matrix, T - 1, 0, 1>(in, Vec<E>{}, E());
    }
    if constexpr (I < T - 1) {
      const Vec<E> even = row_sum<Matrix, I, 0, 2>(in, Vec<E>{}, E());
      const Vec<E> odd = row_sum<Matrix, I, 1, 2>(in, Vec<E>{}, E());
      out[I] = even + odd;
      out[I + 1] = even - odd;
      apply<I + 2>(in, out);
    }
  }
};

// out = Matrix^T * in for the same matrices.
template <class Matrix, int T, class E>
struct Contract {
  static constexpr int kIn = T, kOut = Matrix::kColumns;
  // Two rows of a pair seen as one: the even columns of their sum, the odd ones of their difference.
  template <int I, int J>
  static inline __attribute__((always_inline)) Vec<E> column(const Vec<E>* single, const Vec<E>* pair, Vec<E> sum) {
    if constexpr (I == 0) {
      constexpr E c = E(Matrix::at(0, J));
      if constexpr (c == 0)
        return column<1, J>(single, pair, -Vec<E>{});  // -0: adds nothing, not even a sign
      else
        return column<1, J>(single, pair, add_times<E, false>(sum, c, single[0]));
    } else if constexpr (I < T - 1) {
      constexpr E c = E(Matrix::at(I, J));
      return column<I + 2, J>(single, pair, add_times<E, true>(sum, c, pair[I - 1 + J % 2]));
    } else {
      constexpr E c = E(Matrix::at(I, J));
      return c == 0 ? sum : add_times<E, true>(sum, c, single[1]);
    }
  }
  template <int J = 0>
  static inline __attribute__((always_inline)) void columns(const Vec<E>* single, const Vec<E>* pair, Vec<E>* out) {
    if constexpr (J < kOut) {
      out[J] = column<0, J>(single, pair, Vec<E>{});
      columns<J + 1>(single, pair, out);
    }
  }
  static inline __attribute__((always_inline)) void apply(const Vec<E>* in, Vec<E>* out) {
    const Vec<E> single[2] = {in[0], in[T - 1]};
    Vec<E> pair[T - 2];
#pragma GCC unroll 8
    for (int i = 1; i < T - 1; i += 2) {
      pair[i - 1] = in[i] + in[i + 1];
      pair[i] = in[i] - in[i + 1];
    }
    columns(single, pair, out);
  }
};

// Transform * in * Transform^T of kIn x kIn vectors in memory, rows `in_row` and columns `in_column` elements apart;
// store(i, j, v) takes the results.
template <class Transform, class E, class Store>
inline __attribute__((always_inline)) void transform_both_axes(const E* in, int64_t in_row, int64_t in_column,
                                                               Store store) {
  constexpr int I = Transform::kIn, O = Transform::kOut;
  Vec<E> half[O][I];
#pragma GCC unroll 8
  for (int j = 0; j < I; ++j) {
    Vec<E> column[I], result[O];
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) column[i] = load(in + i * in_row + j * in_column);
    Transform::apply(column, result);
#pragma GCC unroll 8
    for (int i = 0; i < O; ++i) half[i][j] = result[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < O; ++i) {
    Vec<E> result[O];
    Transform::apply(half[i], result);
#pragma GCC unroll 8
    for (int j = 0; j < O; ++j) store(i, j, result[j]);
  }
}

}  // namespace conv_ext
