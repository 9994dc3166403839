// Forward: the input convolved with the weight, y = x * w + bias.
#include "pass.h"

namespace conv_ext {

void run_forward(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  run_pass<Pass::Forward>(problem, plan, buffers, executor);
}

}  // namespace conv_ext
