// Where a run-time pass and dtype become template arguments.
#pragma once

#include "../common/numbers.h"
#include "kernels.h"

namespace conv_ext {

using RunPlan = void (*)(const ConvProblem&, const Plan&, const Buffers&, const Executor&);

template <Pass its_pass>
struct PassOf {
  static constexpr Pass value = its_pass;
};
// The type of a tensor's real numbers, of sums of their products, and of what is wider than these. Complex tensors are
// taken for real ones with two parts.
template <class Number, class Accumulator, class Widest>
struct TypesOf {
  typedef Number T;
  typedef Accumulator A;
  typedef Widest Wide;
};

// visit(PassOf<...>())
template <class Visit>
inline RunPlan with_pass(Pass pass, Visit visit) {
  switch (pass) {
    case Pass::Forward:
      return visit(PassOf<Pass::Forward>());
    case Pass::InputGrad:
      return visit(PassOf<Pass::InputGrad>());
    case Pass::WeightGrad:
      return visit(PassOf<Pass::WeightGrad>());
  }
  return nullptr;
}

// visit(TypesOf<...>())
template <class Visit>
inline RunPlan with_types(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::Complex64:
    case DType::Float32:
      return visit(TypesOf<float, float, double>());
    case DType::Complex128:
    case DType::Float64:
      return visit(TypesOf<double, double, long double>());
    case DType::BFloat16:
      return visit(TypesOf<bfloat16, float, double>());
    case DType::Float16:
      return visit(TypesOf<float16, float, double>());
  }
  return nullptr;
}

// Both: visit(TypesOf<...>(), PassOf<...>()).
template <class Visit>
inline RunPlan with_types_and_pass(DType dtype, Pass pass, Visit visit) {
  return with_types(dtype, [&](auto types) {
    return with_pass(pass, [&](auto its_pass) -> RunPlan { return visit(types, its_pass); });
  });
}

}  // namespace conv_ext
