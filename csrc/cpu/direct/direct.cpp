// The direct algorithm, for all types and passes.
#include "direct.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_direct(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    return run_direct<typename Types::T, typename Types::A, decltype(its_pass)::value>;
  });
}

}  // namespace conv_ext
