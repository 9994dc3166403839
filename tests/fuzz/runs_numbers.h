// The numbers that tensors hold: conversions of every dtype, of this driver's own, and the kinds of data that are
// drawn.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "runs_case.h"

namespace fuzz {

// One real number of a dtype in memory, at any address. Complex tensors are read as pairs of these.
struct Float32 {
  using Wide = double;  // the oracle's sums
  static constexpr int bytes = 4;
  static double read(const char* p) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
  }
  static void write(char* p, double value) {
    const float v = float(value);
    std::memcpy(p, &v, 4);
  }
};
struct Float64 {
  using Wide = long double;
  static constexpr int bytes = 8;
  static double read(const char* p) {
    double v;
    std::memcpy(&v, p, 8);
    return v;
  }
  static void write(char* p, double value) { std::memcpy(p, &value, 8); }
};
struct BFloat16 {
  using Wide = double;
  static constexpr int bytes = 2;
  static double read(const char* p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    const uint32_t bits = uint32_t(half) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
  }
  // To the nearest, ties to even. Only what is exact as a float32 comes here, so that nothing is rounded twice.
  static void write(char* p, double value) {
    const float v = float(value);
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint16_t half = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    std::memcpy(p, &half, 2);
  }
};
struct Float16 {
  using Wide = double;
  static constexpr int bytes = 2;
  static double read(const char* p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    double v;
    if (exponent == 31) {
      v = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
    } else {
      // 2^(exponent - 25), or 2^-24 for subnormal numbers.
      const uint64_t bits = uint64_t(1023 - 24 + (exponent ? exponent - 1 : 0)) << 52;
      std::memcpy(&v, &bits, 8);
      v *= exponent ? mantissa + 1024 : mantissa;
    }
    return half & 0x8000 ? -v : v;
  }
  static void write(char* p, double value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::fabs(value);
    uint16_t half;
    if (size != size) {
      half = 0x7e00;
    } else if (size >= 65520) {
      half = 0x7c00;
    } else if (size == 0) {
      half = 0;
    } else {
      int exponent = 0;
      std::frexp(size, &exponent);
      const int unit = std::max(exponent - 11, -24);  // of the last place
      const double places = std::nearbyint(std::ldexp(size, -unit));
      half = uint16_t(places + (unit > -24 ? (unit + 24) * 1024 : 0));
    }
    half |= sign;
    std::memcpy(p, &half, 2);
  }
};

// Calls body(type) for the real type that a dtype's elements are made of.
template <class Body>
inline auto with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::Float32:
    case DType::Complex64:
      return body(Float32{});
    case DType::BFloat16:
      return body(BFloat16{});
    case DType::Float16:
      return body(Float16{});
    default:
      return body(Float64{});
  }
}

struct DTypeFacts {
  double unit;         // largest relative rounding error of a sum: 2^-24, 2^-53
  double output_unit;  // of the conversion of a finished sum, 0 where there is none
  double largest, smallest_normal, smallest;
};
inline DTypeFacts facts_of(DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
      return {0x1p-24, 0x1p-8, 0x1.fep127, 0x1p-126, 0x1p-133};
    case DType::Float16:
      return {0x1p-24, 0x1p-11, 65504, 0x1p-14, 0x1p-24};
    case DType::Float32:
    case DType::Complex64:
      return {0x1p-24, 0, std::numeric_limits<float>::max(), 0x1p-126, 0x1p-149};
    default:
      return {0x1p-53, 0, std::numeric_limits<double>::max(), 0x1p-1022, 0x1p-1074};
  }
}

// The numbers of one tensor. `range`: of wide data, the part of the binary exponents that this tensor takes, 0 to 1;
// `rare`: of special data, one number in so many is not finite.
class Numbers {
 public:
  Numbers(Data data, DType dtype, uint64_t seed, double range, uint64_t rare)
      : data_(data), dtype_(dtype), random_(seed), range_(range), rare_(rare) {}
  double draw() {
    switch (data_) {
      case Data::Integers:
        return double(int64_t(random_.bits() % 7) - 3);
      case Data::Signed:
        return rounded(2 * random_.uniform() - 1);
      case Data::Positive:
        return rounded(random_.uniform());
      case Data::Special:
        return special();
      case Data::Wide:
        return wide();
    }
    return 0;
  }

 private:
  bool is_double() const { return dtype_ == DType::Float64 || dtype_ == DType::Complex128; }
  double rounded(double value) const {
    if (is_double()) return value;
    // Rounded twice, by way of float32, is as good a number as any.
    char memory[8];
    return with_type(dtype_, [&](auto type) {
      type.write(memory, double(float(value)));
      return double(type.read(memory));
    });
  }
  // Mostly small integers, some zeros of either sign, subnormal numbers, and a few that are not finite.
  double special() {
    const double sign = random_.bits() & 1 ? 1 : -1;
    if (random_.bits() % rare_ == 0)
      return random_.chance(0.4) ? std::numeric_limits<double>::quiet_NaN()
                                 : sign * std::numeric_limits<double>::infinity();
    const uint64_t choice = random_.bits() % 16;
    if (choice < 3) return sign * 0.0;
    if (choice < 5) return sign * facts_of(dtype_).smallest * double(random_.between(1, 9));
    return double(random_.between(-3, 3));
  }
  // All binary exponents alike, from the smallest subnormal number on. The largest are so far below the dtype's largest
  // that sums of two thousand products with numbers up to 1 are finite (of float16: of a few hundred).
  double wide() {
    const double sign = random_.bits() & 1 ? 1 : -1, mantissa = (1 + random_.uniform()) / 2;
    const bool half = dtype_ == DType::Float16;
    const double high = half ? 6 : is_double() ? 1010 : 116, low = half ? -23 : is_double() ? -1060 : -148;
    const int exponent = int(std::lround(range_ * (low + (high - low) * random_.uniform())));
    return rounded(std::ldexp(sign * mantissa, exponent));
  }

  Data data_;
  DType dtype_;
  Random random_;
  double range_;
  uint64_t rare_;
};

}  // namespace fuzz
