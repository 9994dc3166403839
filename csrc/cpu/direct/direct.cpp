// The direct algorithm: forward and input_grad of all types.
#include "direct.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_direct(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    constexpr Pass kPass = decltype(its_pass)::value;
    if constexpr (kPass != Pass::WeightGrad) return run_direct<typename Types::T, typename Types::A, kPass>;
    return nullptr;
  });
}

}  // namespace conv_ext
