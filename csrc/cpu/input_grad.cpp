// Input gradient: the full convolution of the padded upstream gradient with the rotated kernel.
#include "pass.h"

namespace conv_ext {

void run_input_grad(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  run_pass<Pass::InputGrad>(problem, plan, buffers, executor);
}

}  // namespace conv_ext
