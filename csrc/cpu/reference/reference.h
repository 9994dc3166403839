// The reference: the definition of each pass as naive loops with wide accumulators. It is the last candidate of every
// plan, and what the other algorithms are compared with. Read this file first to see what is computed.
//
// Of the kernels it shares the types of numbers alone (cpu/base/simd.h), not their way to the tensors' memory.
#pragma once

#include "../base/simd.h"
#include "../kernels.h"

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
  Operand<T, Wide> x, w, y;  // input (N, C, H, W), weight (K, C/g, R, S), output or its gradient (N, K, P, Q)

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

  // y[n,k,p,q] = bias[k] + sum over c, r, s of x[n, c, row(p,r), column(q,s)] w[k,c,r,s]
  void forward(int64_t n, int64_t k, const Sum<Wide>& bias, bool relu) const {
    const int64_t first = k / z.group_k() * z.group_c();
    for (int64_t p = 0; p < z.p; ++p)
      for (int64_t q = 0; q < z.q; ++q) {
        Sum<Wide> sum = bias;
        for (int64_t c = 0; c < z.group_c(); ++c)
          for (int64_t r = 0; r < z.r; ++r)
            for (int64_t s = 0; s < z.s; ++s)
              sum.add(padded_input(n, first + c, row(p, r), column(q, s)), w.get(k, c, r, s));
        if (relu) sum.re = rectify_one<T>(sum.re);  // of real numbers alone
        y.put(n, k, p, q, sum);
      }
  }

  // dx[n,c,h,l] = sum over k, r, s of dy[n, k, p, q] w[k,c,r,s], where row(p,r) = h and column(q,s) = l:
  // with stride 1 the full convolution of the padded upstream gradient with the rotated kernel.
  void input_grad(int64_t n, int64_t c) const {
    const int64_t first = c / z.group_c() * z.group_k(), cg = c % z.group_c();
    for (int64_t h = 0; h < z.h; ++h)
      for (int64_t l = 0; l < z.w; ++l) {
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
        x.put(n, c, h, l, sum);
      }
  }

  // dw[k,c,r,s] = sum over n, p, q of dy[n,k,p,q] x[n, c, row(p,r), column(q,s)]
  void weight_grad(int64_t k, int64_t cg) const {
    const int64_t c = k / z.group_k() * z.group_c() + cg;
    for (int64_t r = 0; r < z.r; ++r)
      for (int64_t s = 0; s < z.s; ++s) {
        Sum<Wide> sum;
        for (int64_t n = 0; n < z.n; ++n)
          for (int64_t p = 0; p < z.p; ++p)
            for (int64_t q = 0; q < z.q; ++q) sum.add(y.get(n, k, p, q), padded_input(n, c, row(p, r), column(q, s)));
        w.put(k, cg, r, s, sum);
      }
  }
};

template <class T, class Wide, Pass pass>
void run_reference(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const bool complex = is_complex(z.dtype);
  const Reference<T, Wide> reference{z, {b.input, complex}, {b.weight, complex}, {b.output, complex}};
  const TensorRef bias_memory{const_cast<void*>(b.bias), {b.bias_stride, 0, 0, 0}};
  const Operand<T, Wide> bias(bias_memory, complex);
  parallel_for(executor, plan.tasks, 0, [&](int64_t task, void*) {
    if constexpr (pass == Pass::Forward) {
      const int64_t k = task % z.k;
      reference.forward(task / z.k, k, b.bias ? bias.get(k, 0, 0, 0) : Sum<Wide>{}, b.relu);
    } else if constexpr (pass == Pass::InputGrad) {
      reference.input_grad(task / z.c, task % z.c);
    } else {
      reference.weight_grad(task / z.group_c(), task % z.group_c());
    }
  });
}

}  // namespace conv_ext
