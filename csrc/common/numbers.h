// The types of numbers, and the way from one to another: the sums' type is float, double or long double.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace conv_ext {

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

// Storage types of two bytes. Sums are formed in float32; a result is rounded once, to nearest even.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

template <class A, class T>
inline __attribute__((always_inline)) A widen(T t) {
  return A(t);
}
template <>
inline __attribute__((always_inline)) float widen<float, bfloat16>(bfloat16 t) {
  return float_of(uint32_t(t.bits) << 16);
}
template <>
inline __attribute__((always_inline)) double widen<double, bfloat16>(bfloat16 t) {
  return widen<float>(t);
}

template <>
inline __attribute__((always_inline)) float widen<float, float16>(float16 t) {
#if defined(__F16C__)
  return _cvtsh_ss(t.bits);
#else
  const uint32_t sign = uint32_t(t.bits & 0x8000u) << 16, rest = t.bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | (rest > 0x7c00u ? 0x400000u : 0));
  // Exact for normal and subnormal numbers: the exponent's bias is mended by a multiplication with 2^112.
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
#endif
}
template <>
inline __attribute__((always_inline)) double widen<double, float16>(float16 t) {
  return widen<float>(t);
}

template <class T, class A>
inline __attribute__((always_inline)) T narrow(A a) {
  return T(a);
}
template <>
inline __attribute__((always_inline)) bfloat16 narrow<bfloat16, float>(float a) {
  const uint32_t u = bits_of(a);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  return bfloat16{uint16_t(a != a ? (u >> 16) | 0x40u : rounded)};
}
template <>
inline __attribute__((always_inline)) float16 narrow<float16, float>(float a) {
#if defined(__F16C__)
  return float16{_cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT)};
#else
  const uint32_t u = bits_of(a), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  if (rest > 0x7f800000u) return float16{uint16_t(sign | 0x7e00u)};
  if (rest >= 0x477ff000u) return float16{uint16_t(sign | 0x7c00u)};  // rounds to 2^16 or more
  uint32_t half;
  if (rest < 0x38800000u) {
    // Subnormal: adding 1/2 lets the addition itself round to a multiple of 2^-24.
    half = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1)) >> 13;
  }
  return float16{uint16_t(sign | half)};
#endif
}
// From double through the nearest float that keeps the last bit odd where it was inexact, so that rounding twice gives
// what rounding once would (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
inline float round_to_odd(double d) {
  float f = float(d);
  if (double(f) == d || d != d || bits_of(f) % 2 == 1) return f;
  const bool away = (double(f) > d) == (d > 0);
  return float_of(bits_of(f) + (away ? -1 : 1));
}
template <>
inline bfloat16 narrow<bfloat16, double>(double a) {
  return narrow<bfloat16>(round_to_odd(a));
}
template <>
inline float16 narrow<float16, double>(double a) {
  return narrow<float16>(round_to_odd(a));
}

}  // namespace conv_ext
