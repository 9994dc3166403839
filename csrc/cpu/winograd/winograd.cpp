// The Winograd algorithm, for float32; the plan declines the other types.
#include "winograd.h"

#include "../pass.h"

namespace conv_ext {

RunPlan select_winograd(Pass pass, DType) {
  return with_pass(pass,
                   [](auto its_pass) -> RunPlan { return run_winograd<float, float, decltype(its_pass)::value>; });
}

}  // namespace conv_ext
