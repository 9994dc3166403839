// The plan of the Winograd algorithm.
#pragma once

#include "plan.h"

namespace conv_ext {

const char* winograd_declines(const ConvProblem& problem, Pass pass, const IsaTraits& isa);
const char* winograd_yields(const ConvProblem& problem, Pass pass, const IsaTraits& isa);
void prepare_winograd(const ConvProblem& problem, Pass pass, const IsaTraits& isa, Plan* plan);

}  // namespace conv_ext
