// What is computed: the sizes of one 2-D convolution, and the names of its three passes.
#pragma once

#include <stdint.h>

namespace conv_ext {

// The three derivatives of the trilinear form T(x, w, g) = sum x * w * g; see docs/architecture.md.
enum class Pass : int32_t { Forward, InputGrad, WeightGrad };
enum class DType : int32_t { Float32, Float64, BFloat16, Float16, Complex64, Complex128 };
// What float32 may lose: nothing but rounding; the operands' mantissa beyond 10 bits; the same beyond 7 bits. It is
// leave, not an order. Every other dtype is Ieee.
enum class Precision : int32_t { Ieee, TF32, BF16 };

constexpr int kPasses = 3;
constexpr int kDTypes = 6;

inline bool is_complex(DType dtype) { return dtype == DType::Complex64 || dtype == DType::Complex128; }
// Real numbers in an element: a complex tensor is read as real and imaginary parts.
inline int64_t parts_of(DType dtype) { return is_complex(dtype) ? 2 : 1; }
inline int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
    case DType::Float16:
      return 2;
    case DType::Float32:
      return 4;
    case DType::Float64:
    case DType::Complex64:
      return 8;
    case DType::Complex128:
      return 16;
  }
  return 0;
}
// Bytes of the real type in which sums are formed: float32, or float64 for float64 and complex128.
inline int64_t accumulator_bytes(DType dtype) { return dtype == DType::Float64 || dtype == DType::Complex128 ? 8 : 4; }

// true where the result fits; sizes are multiplied and added through these two alone.
inline bool checked_mul(int64_t a, int64_t b, int64_t* result) { return !__builtin_mul_overflow(a, b, result); }
inline bool checked_add(int64_t a, int64_t b, int64_t* result) { return !__builtin_add_overflow(a, b, result); }

struct ConvProblem {
  int64_t n, c, h, w;  // input   (N, C, H, W)
  int64_t k, r, s;     // weight  (K, C/g, R, S)
  int64_t p, q;        // output  (N, K, P, Q)
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;  // an even kernel's 'same' is not symmetric
  int64_t groups;
  DType dtype;
  Precision precision;
  // Whether the operands' channels are neighbours in memory: it may decide between algorithms.
  bool channels_last = false;

  int64_t group_c() const { return c / groups; }
  int64_t group_k() const { return k / groups; }
  int64_t input_elements() const { return n * c * h * w; }
  int64_t weight_elements() const { return k * group_c() * r * s; }
  int64_t output_elements() const { return n * k * p * q; }

  // The same convolution with strides and dilations that mean something: without a second output along an axis its
  // stride may be anything beyond the input and padding, and without a second tap so may the dilation. Every distance
  // between two positions is then within the padded input, and no sum of them overflows.
  ConvProblem normalised() const {
    ConvProblem z = *this;
    const int64_t height = h + pad_top + pad_bottom, width = w + pad_left + pad_right;
    z.stride_h = stride_h < height ? stride_h : height;
    z.stride_w = stride_w < width ? stride_w : width;
    z.dilation_h = r > 1 ? dilation_h : 1;
    z.dilation_w = s > 1 ? dilation_w : 1;
    return z;
  }

  // A kernel as large as its unpadded input makes a single output: the same sums as those of a 1x1 kernel over C R S
  // channels, in every pass, without a border that is mostly padding.
  bool kernel_covers_input() const {
    const bool padded = pad_top || pad_bottom || pad_left || pad_right;
    return (r > 1 || s > 1) && h == r && w == s && p == 1 && q == 1 && !padded;
  }
  ConvProblem as_1x1() const {
    ConvProblem z = *this;
    z.c *= h * w;
    z.h = z.w = z.r = z.s = 1;
    z.stride_h = z.stride_w = z.dilation_h = z.dilation_w = 1;
    return z;
  }

  // Multiply-adds of real numbers, counted as two operations each; the same for every pass.
  double flops() const {
    double complex_factor = is_complex(dtype) ? 4.0 : 1.0;
    return 2.0 * complex_factor * double(n) * double(k) * double(p) * double(q) * double(group_c()) * double(r) *
           double(s);
  }
  // Bytes of the two operands and the result, each touched once.
  double bytes() const {
    return double(element_bytes(dtype)) *
           (double(input_elements()) + double(weight_elements()) + double(output_elements()));
  }
};

}  // namespace conv_ext
