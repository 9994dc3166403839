// The algorithm for small groups, all passes in one file: forward and input_grad have the same register tiles.
#include "weight_grad.h"
#include "../pass.h"

namespace conv_ext {

RunPlan select_grouped(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    typedef typename Types::T T;
    // The plan declines float16.
    if constexpr (!is_same<T, float16>) return run_grouped<typename Types::A, T, decltype(its_pass)::value>;
    return nullptr;
  });
}

}  // namespace conv_ext
