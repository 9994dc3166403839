// The reference: the definition of each pass as naive loops with wide accumulators. It is the last candidate of every
// plan, and what the other algorithms are compared with; where their own sums are not finite they call it. Read this
// file first to see what is computed.
//
// It shares with the kernels what common/ has: sizes, pointers with strides, and the types of numbers, whose
// conversions a test of their own judges (tests/kernels/test_numbers.py).
#pragma once

#include "../../common/buffers.h"
#include "../../common/numbers.h"

namespace conv_ext {

// A sum of products of real or complex numbers, in a type wider than the operands'.
template <class Wide>
struct Sum {
  Wide re = 0, im = 0;
  void add(const Sum& a, const Sum& b) {
    re += a.re * b.re - a.im * b.im;
    im += a.re * b.im + a.im * b.re;
  }
};

// The result is computed by planes, its last two dimensions.
inline int64_t planes_of(const ConvProblem& z, Pass pass) {
  return pass == Pass::Forward ? z.n * z.k : pass == Pass::InputGrad ? z.n * z.c : z.k * z.group_c();
}

// exp(x): Taylor's series for what is left of x beside whole multiples of ln 2.
template <class Wide>
inline Wide exponential(Wide x) {
  if (x != x || x < -800 || x > 800) return x < 0 ? Wide(0) : x * Wide(1e300) * Wide(1e300);  // 0, or Inf in Wide or T
  const int n = int(x * Wide(1.4426950408889634) + (x < 0 ? Wide(-0.5) : Wide(0.5)));
  const Wide r = (x - n * Wide(0x1.62e42feep-1)) - n * Wide(1.9082149292705878161e-10L);
  Wide sum = 1, term = 1;
  for (int k = 1; k < 24; ++k) sum += term *= r / k;
  for (int i = 0; i < n; ++i) sum *= 2;
  for (int i = 0; i > n; --i) sum /= 2;
  return sum;
}

// One tensor of real numbers or pairs of them, at any byte address and with any strides.
template <class T, class Wide>
struct Operand {
  char* data;
  const int64_t* stride;  // in elements
  bool pairs;

  Operand(const TensorRef& t, bool complex) : data(static_cast<char*>(t.data)), stride(t.stride), pairs(complex) {}
  static Wide load_number(const char* from) {
    T number;
    memcpy(&number, from, sizeof(T));
    return widen<Wide>(number);
  }
  static void store_number(char* to, Wide value) {
    const T number = narrow<T>(value);
    memcpy(to, &number, sizeof(T));
  }
  char* address(int64_t a, int64_t b, int64_t c, int64_t d) const {
    const int64_t element = a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3];
    return data + element * (pairs ? 2 : 1) * int64_t(sizeof(T));
  }
  Sum<Wide> get(int64_t a, int64_t b, int64_t c, int64_t d) const {
    const char* from = address(a, b, c, d);
    return {load_number(from), pairs ? load_number(from + sizeof(T)) : Wide(0)};
  }
  void put(int64_t a, int64_t b, int64_t c, int64_t d, const Sum<Wide>& sum) const {
    char* to = address(a, b, c, d);
    store_number(to, sum.re);
    if (pairs) store_number(to + sizeof(T), sum.im);
  }
};

template <class T, class Wide>
struct Reference {
  const ConvProblem& z;
  const Buffers& b;
  Operand<T, Wide> x, w, y;  // input (N, C, H, W), weight (K, C/g, R, S), output or its gradient (N, K, P, Q)

  Reference(const ConvProblem& problem, const Buffers& buffers)
      : z(problem),
        b(buffers),
        x(b.input, is_complex(z.dtype)),
        w(b.weight, is_complex(z.dtype)),
        y(b.output, is_complex(z.dtype)) {}

  // The map between the three tensors' rows and columns.
  int64_t row(int64_t p, int64_t r) const { return p * z.stride_h + r * z.dilation_h - z.pad_top; }
  int64_t column(int64_t q, int64_t s) const { return q * z.stride_w + s * z.dilation_w - z.pad_left; }

  // Zero outside the input: the padding is read, so that a weight that is not finite shows there as well.
  Sum<Wide> padded_input(int64_t n, int64_t c, int64_t h, int64_t l) const {
    return h >= 0 && h < z.h && l >= 0 && l < z.w ? x.get(n, c, h, l) : Sum<Wide>{};
  }
  Sum<Wide> padded_grad(int64_t n, int64_t k, int64_t p, int64_t q) const {
    return p >= 0 && p < z.p && q >= 0 && q < z.q ? y.get(n, k, p, q) : Sum<Wide>{};
  }
  Sum<Wide> bias(int64_t k) const {
    const TensorRef memory{const_cast<void*>(b.bias), {b.bias_stride, 0, 0, 0}};
    return b.bias != nullptr ? Operand<T, Wide>(memory, x.pairs).get(k, 0, 0, 0) : Sum<Wide>{};
  }

  // y[n,k,p,q] = bias[k] + sum over c, r, s of x[n, c, row(p,r), column(q,s)] w[k,c,r,s]
  Sum<Wide> forward(int64_t n, int64_t k, int64_t p, int64_t q) const {
    const int64_t first = k / z.group_k() * z.group_c();
    Sum<Wide> sum = bias(k);
    for (int64_t c = 0; c < z.group_c(); ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s)
          sum.add(padded_input(n, first + c, row(p, r), column(q, s)), w.get(k, c, r, s));
    return sum;
  }

  // The activation of a number; epilogues are told in common/buffers.h.
  Wide activated(Wide v) const {
    switch (b.epilogue.activation) {
      case Activation::None:
        return v;
      case Activation::Relu:
        return v < 0 ? Wide(0) : v;
      case Activation::Clamp:
        return v < Wide(b.epilogue.low) ? Wide(b.epilogue.low) : v > Wide(b.epilogue.high) ? Wide(b.epilogue.high) : v;
      case Activation::Silu:
        return v / (1 + exponential(-v));
      case Activation::HardSwish:
        return v * (v < -3 ? Wide(0) : v > 3 ? Wide(6) : v + 3) / 6;
    }
    return v;
  }
  Sum<Wide> finished(Sum<Wide> sum, int64_t n, int64_t k, int64_t p, int64_t q) const {
    if (!b.epilogue.any()) return sum;
    sum.re = rounded(sum.re);
    sum.im = rounded(sum.im);
    if (b.epilogue.residual.data != nullptr) {
      const Sum<Wide> other = Operand<T, Wide>(b.epilogue.residual, y.pairs).get(n, k, p, q);
      sum.re = rounded(sum.re + other.re);
      sum.im = rounded(sum.im + other.im);
    }
    sum.re = activated(sum.re);
    return sum;
  }
  static Wide rounded(Wide value) { return widen<Wide>(narrow<T>(value)); }

  // dx[n,c,h,l] = sum over k, r, s of dy[n, k, p, q] w[k,c,r,s], where row(p,r) = h and column(q,s) = l:
  // with stride 1 the full convolution of the padded upstream gradient with the rotated kernel.
  Sum<Wide> input_grad(int64_t n, int64_t c, int64_t h, int64_t l) const {
    const int64_t first = c / z.group_c() * z.group_k(), cg = c % z.group_c();
    Sum<Wide> sum;
    for (int64_t k = 0; k < z.group_k(); ++k)
      for (int64_t r = 0; r < z.r; ++r) {
        const int64_t rest_h = h + z.pad_top - r * z.dilation_h;
        if (rest_h % z.stride_h != 0) continue;
        for (int64_t s = 0; s < z.s; ++s) {
          const int64_t rest_w = l + z.pad_left - s * z.dilation_w;
          if (rest_w % z.stride_w != 0) continue;
          sum.add(padded_grad(n, first + k, rest_h / z.stride_h, rest_w / z.stride_w), w.get(first + k, cg, r, s));
        }
      }
    return sum;
  }

  // dw[k,c,r,s] = sum over n, p, q of dy[n,k,p,q] x[n, c, row(p,r), column(q,s)]
  Sum<Wide> weight_grad(int64_t k, int64_t cg, int64_t r, int64_t s) const {
    const int64_t c = k / z.group_k() * z.group_c() + cg;
    Sum<Wide> sum;
    for (int64_t n = 0; n < z.n; ++n)
      for (int64_t p = 0; p < z.p; ++p)
        for (int64_t q = 0; q < z.q; ++q) sum.add(y.get(n, k, p, q), padded_input(n, c, row(p, r), column(q, s)));
    return sum;
  }

  template <Pass pass>
  void compute_plane(int64_t plane) const {
    if constexpr (pass == Pass::Forward) {
      for (int64_t p = 0; p < z.p; ++p)
        for (int64_t q = 0; q < z.q; ++q) {
          const Sum<Wide> sum = forward(plane / z.k, plane % z.k, p, q);
          y.put(plane / z.k, plane % z.k, p, q, finished(sum, plane / z.k, plane % z.k, p, q));
        }
    } else if constexpr (pass == Pass::InputGrad) {
      for (int64_t h = 0; h < z.h; ++h)
        for (int64_t l = 0; l < z.w; ++l)
          x.put(plane / z.c, plane % z.c, h, l, input_grad(plane / z.c, plane % z.c, h, l));
    } else {
      const int64_t k = plane / z.group_c(), cg = plane % z.group_c();
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s) w.put(k, cg, r, s, weight_grad(k, cg, r, s));
    }
  }
};

// One element of a result of real numbers by the definition, for an algorithm that has formed it otherwise (of parts,
// of transformed numbers) and got what is not finite.
template <class T>
__attribute__((noinline, cold)) double sum_again(const ConvProblem& z, Pass pass, const Buffers& b, int64_t i,
                                                 int64_t j, int64_t k, int64_t l) {
  const Reference<T, double> reference(z, b);
  if (pass == Pass::Forward) return reference.forward(i, j, k, l).re;
  return pass == Pass::InputGrad ? reference.input_grad(i, j, k, l).re : reference.weight_grad(i, j, k, l).re;
}

}  // namespace conv_ext
