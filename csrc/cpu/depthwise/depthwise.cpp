// The depthwise algorithm, all passes in one file: their register tiles are the same.
#include "depthwise.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_depthwise(Pass pass, DType dtype) {
  if (is_complex(dtype)) return nullptr;
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    return run_depthwise<typename Types::T, typename Types::A, decltype(its_pass)::value>;
  });
}

}  // namespace conv_ext
