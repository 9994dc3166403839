// What a pass should give: its definition as a matrix product in wide numbers, which shares no code with the kernels.
//
// The input is written out once as a matrix of L = C/g R S rows by N P Q columns, zeros of the padding included:
//   forward      y    = w times the matrix
//   weight_grad  dw   = g times the matrix's transpose
//   input_grad   every element of  w's transpose times g  is added to the place that it was read from
// Beside each sum A is computed, the sum of the products' magnitudes, by which an error is judged.
#pragma once

#include <algorithm>

#include "runs_numbers.h"

namespace fuzz {

template <class T>
using Plane = std::vector<T>;  // a tensor in its logical order, the last dimension fastest

template <class W>
struct Operand {
  Plane<W> part[2];  // real numbers, or real and imaginary parts
  bool all_finite = true;
};

template <class W>
struct Sums {
  Plane<W> value[2];
  Plane<double> magnitude[2];  // A
};

template <class W>
class Oracle {
 public:
  explicit Oracle(const ConvProblem& z)
      : z_(z), gc_(z.c / z.groups), gk_(z.k / z.groups), rows_(gc_ * z.r * z.s), columns_(z.n * z.p * z.q) {}

  void run(Pass pass, const Operand<W>& x, const Operand<W>& w, const Operand<W>& g, Sums<W>* out) {
    const Operand<W>& a = pass == Pass::Forward || pass == Pass::InputGrad ? w : g;
    const Operand<W>& b = pass == Pass::InputGrad ? g : x;
    const int parts = conv_ext::is_complex(z_.dtype) ? 2 : 1;
    const int64_t count = pass == Pass::Forward     ? z_.n * z_.k * z_.p * z_.q
                          : pass == Pass::InputGrad ? z_.n * z_.c * z_.h * z_.w
                                                    : z_.k * rows_;
    for (int i = 0; i < parts; ++i) {
      out->value[i].assign(size_t(count), W(0));
      out->magnitude[i].assign(size_t(count), 0.0);
    }
    // (a + bi)(c + di) = (ac - bd) + (ad + bc)i, by four real passes.
    for (int i = 0; i < parts; ++i)
      for (int j = 0; j < parts; ++j) {
        const W sign = i == 1 && j == 1 ? W(-1) : W(1);
        real(pass, a.part[i], b.part[j], sign, out->value[i ^ j], out->magnitude[i ^ j]);
        if (pass == Pass::InputGrad && !a.all_finite) beyond_gradient(a.part[i], out->value[i ^ j]);
      }
  }

 private:
  // Source position of output p and tap r along an axis; what lies outside [0, size) is padding.
  static int64_t position(int64_t p, int64_t r, int64_t stride, int64_t dilation, int64_t pad) {
    return p * stride + r * dilation - pad;
  }
  // Calls visit(row, column, offset of the input's element or -1) for one group's matrix.
  template <class Visit>
  void for_each_entry(int64_t group, Visit visit) const {
    int64_t row = 0;
    for (int64_t c = group * gc_; c < (group + 1) * gc_; ++c)
      for (int64_t r = 0; r < z_.r; ++r)
        for (int64_t s = 0; s < z_.s; ++s, ++row) {
          int64_t column = 0;
          for (int64_t n = 0; n < z_.n; ++n)
            for (int64_t p = 0; p < z_.p; ++p) {
              const int64_t h = position(p, r, z_.stride_h, z_.dilation_h, z_.pad_top);
              const bool inside = h >= 0 && h < z_.h;
              const int64_t line = ((n * z_.c + c) * z_.h + h) * z_.w;
              for (int64_t q = 0; q < z_.q; ++q, ++column) {
                const int64_t l = position(q, s, z_.stride_w, z_.dilation_w, z_.pad_left);
                visit(row, column, inside && l >= 0 && l < z_.w ? line + l : -1);
              }
            }
        }
  }
  // (K/g, N P Q) of one group of an output or its gradient: the offset of an element.
  template <class Visit>
  void for_each_output(int64_t group, Visit visit) const {
    for (int64_t k = 0; k < gk_; ++k)
      for (int64_t n = 0; n < z_.n; ++n) {
        const int64_t from = (n * z_.k + group * gk_ + k) * z_.p * z_.q, to = k * columns_ + n * z_.p * z_.q;
        for (int64_t i = 0; i < z_.p * z_.q; ++i) visit(to + i, from + i);
      }
  }

  template <class T>
  static void add_row(T* to, T factor, const T* from, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
  }
  template <class T>
  static T dot(const T* a, const T* b, int64_t count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
  }

  // Of real numbers, in values and, where `absolute`, in magnitudes.
  template <class T, bool absolute>
  void product(Pass pass, const Plane<W>& a, const Plane<W>& b, T sign, Plane<T>& out) {
    const auto number = [](W v) { return absolute ? T(std::fabs(v)) : T(v); };
    std::vector<T>& matrix = memory<T>(0);
    std::vector<T>& gradient = memory<T>(1);
    matrix.resize(size_t(rows_ * columns_));
    gradient.resize(size_t(gk_ * columns_));
    for (int64_t group = 0; group < z_.groups; ++group) {
      const int64_t weights = group * gk_ * rows_;
      if (pass == Pass::InputGrad) {
        for_each_output(group, [&](int64_t to, int64_t from) { gradient[size_t(to)] = number(b[size_t(from)]); });
        std::fill(matrix.begin(), matrix.end(), T(0));
        for (int64_t k = 0; k < gk_; ++k)
          for (int64_t row = 0; row < rows_; ++row)
            add_row(&matrix[size_t(row * columns_)], sign * number(a[size_t(weights + k * rows_ + row)]),
                    &gradient[size_t(k * columns_)], columns_);
        for_each_entry(group, [&](int64_t row, int64_t column, int64_t at) {
          if (at >= 0) out[size_t(at)] += matrix[size_t(row * columns_ + column)];
        });
        continue;
      }
      for_each_entry(group, [&](int64_t row, int64_t column, int64_t at) {
        matrix[size_t(row * columns_ + column)] = at >= 0 ? number(b[size_t(at)]) : T(0);
      });
      if (pass == Pass::Forward) {
        std::fill(gradient.begin(), gradient.end(), T(0));
        for (int64_t k = 0; k < gk_; ++k)
          for (int64_t row = 0; row < rows_; ++row)
            add_row(&gradient[size_t(k * columns_)], sign * number(a[size_t(weights + k * rows_ + row)]),
                    &matrix[size_t(row * columns_)], columns_);
        for_each_output(group, [&](int64_t from, int64_t to) { out[size_t(to)] += gradient[size_t(from)]; });
      } else {
        for_each_output(group, [&](int64_t to, int64_t from) { gradient[size_t(to)] = number(a[size_t(from)]); });
        for (int64_t k = 0; k < gk_; ++k)
          for (int64_t row = 0; row < rows_; ++row)
            out[size_t(weights + k * rows_ + row)] +=
                sign * dot(&gradient[size_t(k * columns_)], &matrix[size_t(row * columns_)], columns_);
      }
    }
  }
  void real(Pass pass, const Plane<W>& a, const Plane<W>& b, W sign, Plane<W>& value, Plane<double>& magnitude) {
    product<W, false>(pass, a, b, sign, value);
    product<double, true>(pass, a, b, 1.0, magnitude);
  }

  // input_grad also reads zeros beyond the gradient, wherever the stride leads to a whole number: a weight that is not
  // finite gives NaN there.
  void beyond_gradient(const Plane<W>& w, Plane<W>& dx) const {
    const auto outside = [](int64_t at, int64_t stride, int64_t size) {
      return at % stride == 0 && (at < 0 || at / stride >= size);
    };
    for (int64_t k = 0; k < z_.k; ++k)
      for (int64_t cg = 0; cg < gc_; ++cg)
        for (int64_t r = 0; r < z_.r; ++r)
          for (int64_t s = 0; s < z_.s; ++s) {
            const W weight = w[size_t(((k * gc_ + cg) * z_.r + r) * z_.s + s)];
            if (std::isfinite(weight)) continue;
            for (int64_t h = 0; h < z_.h; ++h)
              for (int64_t l = 0; l < z_.w; ++l) {
                const int64_t down = h + z_.pad_top - r * z_.dilation_h, across = l + z_.pad_left - s * z_.dilation_w;
                if (down % z_.stride_h != 0 || across % z_.stride_w != 0) continue;
                if (!outside(down, z_.stride_h, z_.p) && !outside(across, z_.stride_w, z_.q)) continue;
                for (int64_t n = 0; n < z_.n; ++n)
                  dx[size_t(((n * z_.c + k / gk_ * gc_ + cg) * z_.h + h) * z_.w + l)] += weight * W(0);
              }
          }
  }

  // Kept from case to case.
  template <class T>
  static std::vector<T>& memory(int which) {
    static std::vector<T> kept[2];
    return kept[which];
  }

  const ConvProblem& z_;
  const int64_t gc_, gk_, rows_, columns_;
};

}  // namespace fuzz
