// The implicit matrix product, all passes: what alone differs between the AVX-512 libraries, which share the rest.
#include "tiles_line.h"
#include "tiles_weight_grad.h"
#include "pairs_weight_grad.h"
#include "../pass.h"

namespace conv_ext {

#if defined(CONV_EXT_AMX)

template <class T, Pass pass>
void run_implicit_gemm(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  // bfloat16 is its own single part.
  with_extent<is_same<T, float> ? 3 : 1>(plan.own<ImplicitGemmPlan>().parts, [&](auto its_parts) {
    constexpr int parts = decltype(its_parts)::value;
    if constexpr (pass == Pass::WeightGrad) {
      run_tiles_weight_grad<T, parts>(z, plan, b, executor);
    } else {
      run_tiles_gather<T, parts>(z, pass, plan, b, executor);
    }
  });
}

#elif defined(CONV_EXT_BF16_DOT)

template <class T, Pass pass>
void run_implicit_gemm(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  if constexpr (pass == Pass::WeightGrad) {
    run_implicit_weight_grad<T>(z, plan, b, executor);
  } else {
    run_implicit_gather<T>(z, pass, plan, b, executor);
  }
}

#else

static_assert(kMachine.bf16_dot == Bf16Dot::None);
template <class T, Pass pass>
void run_implicit_gemm(const ConvProblem&, const Plan&, const Buffers&, const Executor&) {}  // no plan chooses it here

#endif

// Of bfloat16, and of float32 that may be rounded to it or is cut into parts; the plan declines the other types.
RunPlan select_implicit_gemm(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    typedef typename Types::T T;
    if constexpr (is_same<T, bfloat16> || is_same<T, float>) return run_implicit_gemm<T, decltype(its_pass)::value>;
    return nullptr;
  });
}

}  // namespace conv_ext
