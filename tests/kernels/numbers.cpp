// Every bfloat16 and float16 to float and double and back, and what lies between two neighbours, against values that
// are computed from the formats' definition.
#include <cmath>
#include <cstdio>
#include <limits>

#include "numbers.h"  // of csrc/common, or a copy with an error

namespace {

using namespace conv_ext;

long checks = 0, wrong = 0;
void expect(bool holds, const char* what, unsigned bits) {
  ++checks;
  if (!holds && ++wrong <= 5) std::printf("%s: %04x\n", what, bits);
}

template <class T, int exponent_bits, int mantissa_bits>
struct Format {
  static constexpr unsigned kInfinity = ((1u << exponent_bits) - 1) << mantissa_bits, kSign = 0x8000u;
  static constexpr int kLowest = 2 - (1 << (exponent_bits - 1)) - mantissa_bits;  // exponent of the smallest number

  static bool is_nan(unsigned bits) { return (bits & ~kSign) > kInfinity; }
  // Of a number that is not NaN; what is one beyond the largest is a number here, too, that of the next place.
  static double value(unsigned bits) {
    const unsigned rest = bits & ~kSign, mantissa = rest & ((1u << mantissa_bits) - 1),
                   exponent = rest >> mantissa_bits;
    const double size = exponent == 0 ? std::ldexp(mantissa, kLowest)
                                      : std::ldexp(mantissa + (1u << mantissa_bits), kLowest + int(exponent) - 1);
    return bits & kSign ? -size : size;
  }
  static double number(unsigned bits) {
    if (is_nan(bits)) return std::numeric_limits<double>::quiet_NaN();
    if ((bits & ~kSign) < kInfinity) return value(bits);
    return bits & kSign ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
  }

  template <class A>
  static void round_trip(unsigned bits) {
    const T stored{uint16_t(bits)};
    const A wide = widen<A>(stored);
    expect(is_nan(bits) ? std::isnan(wide) : double(wide) == number(bits), "widen", bits);
    expect(std::signbit(wide) == bool(bits & kSign), "the sign of widen", bits);
    const unsigned back = narrow<T>(wide).bits;
    expect(is_nan(bits) ? is_nan(back) && (back & kSign) == (bits & kSign) : back == bits, "narrow(widen)", bits);
  }
  // What lies between the numbers `bits` and bits + 1, both finite or the second infinite: to the nearest, ties to
  // even.
  template <class A>
  static void rounding(unsigned bits, unsigned sign) {
    const A low = A(value(bits)), high = A(value(bits + 1)), middle = A((value(bits) + value(bits + 1)) / 2);
    const A factor = sign ? A(-1) : A(1);
    const auto rounds_to = [&](A number, unsigned to, const char* what) {
      expect(narrow<T>(factor * number).bits == (to | sign), what, bits | sign);
    };
    rounds_to(middle, bits + bits % 2, "a tie");
    rounds_to(std::nextafter(middle, low), bits, "below a tie");
    rounds_to(std::nextafter(middle, high), bits + 1, "above a tie");
    rounds_to(std::nextafter(low, high), bits, "above a number");
    rounds_to(std::nextafter(high, low), bits + 1, "below a number");
  }
  static void check() {
    for (unsigned bits = 0; bits < 0x10000u; ++bits) {
      round_trip<float>(bits);
      round_trip<double>(bits);
      if ((bits & ~kSign) >= kInfinity) continue;
      // Beyond the largest of bfloat16 float ends as well.
      if (exponent_bits < 8 || (bits & ~kSign) + 1 < kInfinity) rounding<float>(bits & ~kSign, bits & kSign);
      rounding<double>(bits & ~kSign, bits & kSign);
    }
  }
};

}  // namespace

int main() {
  Format<bfloat16, 8, 7>::check();
  Format<float16, 5, 10>::check();
  std::printf("%ld checks, %ld wrong\n", checks, wrong);
  return wrong > 0;
}
