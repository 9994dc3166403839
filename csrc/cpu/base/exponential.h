// The exponential function of vectors.
#pragma once

#include "simd.h"

namespace conv_ext {

constexpr double factorial(int k) { return k > 1 ? k * factorial(k - 1) : 1; }

template <class A>
struct ExponentialOf;
// ln 2 as a sum of two numbers; the first one has so few bits that products with small integers are exact.
template <>
struct ExponentialOf<float> {
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f, kFurthest = 150, kRound = 0x1.8p23f;
};
template <>
struct ExponentialOf<double> {
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33, kFurthest = 1400,
                          kRound = 0x1.8p52;
};

// exp(x) as value * first * second, the last two being powers of two: with another factor before them, neither the
// product with the first power nor, where the result is a normal number, that with both loses anything.
template <class A>
struct Exponential {
  Vec<A> value, first, second;

  // factor * exp(x), within 2 units in the last place, rounded once more where it is not a normal number.
  Vec<A> times(Vec<A> factor) const { return value * factor * first * second; }
};

// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) is Taylor's polynomial, whose rest is below half a unit. Where |x| is
// larger than kFurthest, exp(x) is 0 or Inf, and so is what is computed instead. NaN for NaN.
template <class A>
inline __attribute__((always_inline)) Exponential<A> exponential(Vec<A> x) {
  typedef ExponentialOf<A> Its;
  typedef Vec<typename IntegerOf<A>::type> Integers;
  const Vec<A> furthest = splat(Its::kFurthest), round = splat(Its::kRound);
  x = select<A>(x > furthest, furthest, select<A>(x < -furthest, -furthest, x));
  const Vec<A> shifted = x * splat(A(1.4426950408889634)) + round, n = shifted - round;  // the nearest integer
  const Vec<A> r = (x - n * splat(Its::kLn2High)) - n * splat(Its::kLn2Low);
  Vec<A> sum = splat(A(1 / factorial(Its::kTerms)));
#pragma GCC unroll 16
  for (int k = Its::kTerms - 1; k >= 0; --k) sum = sum * r + splat(A(1 / factorial(k)));
  const Integers whole = (Integers)shifted - (Integers)round, half = whole >> 1;
  const auto power = [](Integers e) __attribute__((always_inline)) {
    return (Vec<A>)((e + Its::kBias) << Its::kMantissa);
  };
  return {sum, power(half), power(whole - half)};
}

// x / (1 + exp(-x)); where x is negative x exp(x) / (1 + exp(x)), which does not overflow, but NaN for -Inf, as the
// formula has it.
template <class A>
inline __attribute__((always_inline)) Vec<A> silu(Vec<A> x) {
  const Vec<A> one = splat(A(1)), zero{};
  const auto negative = x < zero;
  const Exponential<A> e = exponential<A>(select<A>(negative, x, -x));
  const Vec<A> tail = select<A>(x < -splat(ExponentialOf<A>::kFurthest), x * zero, e.times(x));
  return select<A>(negative, tail, x) / (one + e.times(one));
}

}  // namespace conv_ext
