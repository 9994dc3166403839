// The reference, for all types and passes.
#include "reference.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_reference(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    return run_reference<typename Types::T, typename Types::Wide, decltype(its_pass)::value>;
  });
}

}  // namespace conv_ext
