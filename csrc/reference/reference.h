// The reference: the definition of each pass as naive loops with wide accumulators. It is the last candidate of every
// plan, and what the other algorithms are compared with. Read this file first to see what is computed.
#pragma once

#include "../cpu/pack.h"

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

template <class T, class Wide>
struct Reference {
  const ConvProblem& z;
  int64_t parts;
  View<T> x, w, y;  // input (N, C, H, W), weight (K, C/g, R, S), output or its gradient (N, K, P, Q)

  // The map between the three tensors' rows and columns.
  int64_t row(int64_t p, int64_t r) const { return p * z.stride_h + r * z.dilation_h - z.pad_top; }
  int64_t column(int64_t q, int64_t s) const { return q * z.stride_w + s * z.dilation_w - z.pad_left; }

  T* address(const View<T>& v, int64_t a, int64_t b, int64_t c, int64_t d) const {
    return v.data + a * v.n + b * v.channel + c * v.row + d * v.column;
  }
  Sum<Wide> get(const View<T>& v, int64_t a, int64_t b, int64_t c, int64_t d) const {
    const T* p = address(v, a, b, c, d);
    return {read<Wide>(p), parts == 2 ? read<Wide>(p + 1) : Wide(0)};
  }
  void put(const View<T>& v, int64_t a, int64_t b, int64_t c, int64_t d, const Sum<Wide>& sum) const {
    T* p = address(v, a, b, c, d);
    write<T>(p, sum.re);
    if (parts == 2) write<T>(p + 1, sum.im);
  }
  // Zero outside the input: the padding is read, so that a weight that is not finite shows there as well.
  Sum<Wide> padded_input(int64_t n, int64_t c, int64_t h, int64_t l) const {
    return h >= 0 && h < z.h && l >= 0 && l < z.w ? get(x, n, c, h, l) : Sum<Wide>{};
  }
  Sum<Wide> padded_grad(int64_t n, int64_t k, int64_t p, int64_t q) const {
    return p >= 0 && p < z.p && q >= 0 && q < z.q ? get(y, n, k, p, q) : Sum<Wide>{};
  }

  // y[n,k,p,q] = bias[k] + sum over c, r, s of x[n, c, row(p,r), column(q,s)] w[k,c,r,s]
  void forward(int64_t n, int64_t k, const T* bias, bool relu) const {
    const int64_t first = k / z.group_k() * z.group_c();
    for (int64_t p = 0; p < z.p; ++p)
      for (int64_t q = 0; q < z.q; ++q) {
        Sum<Wide> sum;
        if (bias) sum = {read<Wide>(bias), parts == 2 ? read<Wide>(bias + 1) : Wide(0)};
        for (int64_t c = 0; c < z.group_c(); ++c)
          for (int64_t r = 0; r < z.r; ++r)
            for (int64_t s = 0; s < z.s; ++s)
              sum.add(padded_input(n, first + c, row(p, r), column(q, s)), get(w, k, c, r, s));
        if (relu) sum.re = rectify_one<T>(sum.re);  // of real numbers alone
        put(y, n, k, p, q, sum);
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
              sum.add(padded_grad(n, first + k, rest_h / z.stride_h, rest_w / z.stride_w), get(w, first + k, cg, r, s));
            }
          }
        put(x, n, c, h, l, sum);
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
            for (int64_t q = 0; q < z.q; ++q) sum.add(get(y, n, k, p, q), padded_input(n, c, row(p, r), column(q, s)));
        put(w, k, cg, r, s, sum);
      }
  }
};

template <class T, class Wide, Pass pass>
void run_reference(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const int64_t parts = parts_of(z.dtype);
  const Reference<T, Wide> reference{z, parts, view_of<T>(b.input, parts), view_of<T>(b.weight, parts),
                                     view_of<T>(b.output, parts)};
  parallel_for(executor, plan.tasks, 0, [&](int64_t task, void*) {
    if constexpr (pass == Pass::Forward) {
      const int64_t k = task % z.k;
      const T* bias = b.bias ? static_cast<const T*>(b.bias) + k * b.bias_stride * parts : nullptr;
      reference.forward(task / z.k, k, bias, b.relu);
    } else if constexpr (pass == Pass::InputGrad) {
      reference.input_grad(task / z.c, task % z.c);
    } else {
      reference.weight_grad(task / z.group_c(), task % z.group_c());
    }
  });
}

}  // namespace conv_ext
