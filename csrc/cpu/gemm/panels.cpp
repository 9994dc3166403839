// The panel algorithm, for float32 and float64; the plan declines the other types.
#include "panels.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_panels(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    typedef typename Types::A A;
    if constexpr (is_same<typename Types::T, A>) return run_panels<A, decltype(its_pass)::value>;
    return nullptr;
  });
}

}  // namespace conv_ext
