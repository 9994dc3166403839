// Weight gradient: the input convolved with the upstream gradient.
#include "pass.h"

namespace conv_ext {

void run_weight_grad(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  run_pass<Pass::WeightGrad>(problem, plan, buffers, executor);
}

}  // namespace conv_ext
