// The panel algorithm: weight_grad of every type, forward and input_grad of float32 and float64.
#include "panels.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_panels(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    typedef typename Types::T T;
    typedef typename Types::A A;
    constexpr Pass kPass = decltype(its_pass)::value;
    if constexpr (kPass == Pass::WeightGrad || is_same<T, A>) return run_panels<T, A, kPass>;
    return nullptr;
  });
}

}  // namespace conv_ext
