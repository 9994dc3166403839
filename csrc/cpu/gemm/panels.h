// The panel algorithm: both of its parts, chosen by the pass.
#pragma once

#include "gather.h"
#include "weight_grad.h"

namespace conv_ext {

template <class T, class A, Pass pass>
void run_panels(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  if constexpr (pass == Pass::WeightGrad) {
    run_panels_grad<T, A>(problem, plan, buffers, executor);
  } else {
    run_panels_gather<A>(problem, pass, plan, buffers, executor);
  }
}

}  // namespace conv_ext
