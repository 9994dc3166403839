// The one place where a run-time algorithm and dtype become template arguments; each pass file instantiates it once.
#pragma once

#include "reference/reference.h"
#include "direct/direct.h"
#include "panels/panels.h"
#include "winograd/winograd.h"

namespace conv_ext {

using RunPass = void (*)(const ConvProblem&, const Plan&, const Buffers&, const Executor&);

void run_forward(const ConvProblem&, const Plan&, const Buffers&, const Executor&);
void run_input_grad(const ConvProblem&, const Plan&, const Buffers&, const Executor&);
void run_weight_grad(const ConvProblem&, const Plan&, const Buffers&, const Executor&);

// In implicit_gemm.cpp: of bfloat16 tensors or of float32 ones.
RunPass select_implicit_gemm(Pass pass, bool of_bfloat16);
// In broadcast.cpp.
RunPass select_broadcast(Pass pass, DType dtype);
// In depthwise.cpp.
RunPass select_depthwise(Pass pass, DType dtype);
// In grouped.cpp.
RunPass select_grouped(Pass pass, DType dtype);

template <Pass pass, class T, class A, class Wide>
RunPass select_algorithm(Algorithm algorithm, DType dtype) {
  switch (algorithm) {
    case Algorithm::Depthwise:
      return select_depthwise(pass, dtype);
    case Algorithm::Grouped:
      return select_grouped(pass, dtype);
    case Algorithm::ImplicitGemm:
      // bfloat16, and float32 that may be rounded to it; the plan declines the other types.
      return select_implicit_gemm(pass, is_same<T, bfloat16>);
    case Algorithm::Broadcast:
      return select_broadcast(pass, dtype);
    case Algorithm::Winograd:
      if constexpr (sizeof(T) == 4 && sizeof(A) == 4) return run_winograd<T, A, pass>;
      return nullptr;
    case Algorithm::Panels:
      if constexpr (sizeof(T) == sizeof(A)) return run_panels<A, pass>;
      break;
    case Algorithm::Direct:
      return run_direct<T, A, pass>;
    case Algorithm::Reference:
      return run_reference<T, Wide, pass>;
  }
  return nullptr;
}

// Complex tensors run as real ones with two parts.
template <Pass pass>
RunPass select_pass(DType dtype, Algorithm algorithm) {
  switch (dtype) {
    case DType::Complex64:
    case DType::Float32:
      return select_algorithm<pass, float, float, double>(algorithm, dtype);
    case DType::Complex128:
    case DType::Float64:
      return select_algorithm<pass, double, double, long double>(algorithm, dtype);
    case DType::BFloat16:
      return select_algorithm<pass, bfloat16, float, double>(algorithm, dtype);
    case DType::Float16:
      return select_algorithm<pass, float16, float, double>(algorithm, dtype);
  }
  return nullptr;
}

template <Pass pass>
void run_pass(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  select_pass<pass>(problem.dtype, plan.algorithm)(problem, plan, buffers, executor);
}

}  // namespace conv_ext
