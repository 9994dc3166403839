// What an epilogue makes of a result, number by number: in the arithmetic of the sums' type, rounded as the result is.
#pragma once

#include <cmath>

#include "runs_case.h"
#include "runs_numbers.h"

namespace fuzz {

// The activation of a number, by A's own operations.
template <class A>
A activated(Behind activation, A v, A low, A high) {
  switch (activation) {
    case Behind::None:
      return v;
    case Behind::Relu:
      return v < 0 ? A(0) : v;
    case Behind::Clamp:
      return v < low ? low : v > high ? high : v;
    case Behind::Silu:
      return A((long double)(v) / (1 + std::exp(-(long double)(v))));
    case Behind::HardSwish:
      return v * (v < -3 ? A(0) : v > 3 ? A(6) : v + 3) / 6;
  }
  return v;
}

// The number that an element of a result becomes. Type: of the result; residual: nullptr where there is none.
template <class Type>
double finished(const Case& c, double value, const double* residual) {
  const auto held = [](double number) {
    char memory[8];
    Type::write(memory, number);
    return double(Type::read(memory));
  };
  if (residual != nullptr) value = held(value + *residual);
  const bool wide = c.z.dtype == DType::Float64 || c.z.dtype == DType::Complex128;
  const double low = kClampLow, high = kClampHigh;
  return held(wide ? activated<double>(c.activation, value, low, high)
                   : double(activated<float>(c.activation, float(value), float(low), float(high))));
}

// Whether a kernel's number will do: the same bits, but those of a NaN; of silu, whose exponential may be another, and
// of what is computed in wider numbers, a few units in the last place.
inline bool close_to(const Case& c, double got, double wanted, bool wider) {
  if (got != got || wanted != wanted) return got != got && wanted != wanted;
  if (got == wanted && std::signbit(got) == std::signbit(wanted)) return true;
  if (!(c.activation == Behind::Silu || wider) || !std::isfinite(wanted)) return false;
  const DTypeFacts facts = facts_of(c.z.dtype);
  const double unit = facts.output_unit > 0 ? 2 * facts.output_unit : 6 * facts.unit;
  return std::fabs(got - wanted) <= std::max(unit * std::fabs(wanted), 2 * double(facts.smallest));
}

}  // namespace fuzz
