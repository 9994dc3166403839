// The implicit matrix product, all passes: what alone differs between the AVX-512 libraries, which share the rest.
#include "weight_grad.h"
#include "../pass.h"

namespace conv_ext {

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
