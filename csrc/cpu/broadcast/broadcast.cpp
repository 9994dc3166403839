// The broadcast algorithm, which takes its pass at run time, for both of its types.
#include "broadcast.h"

#include "../pass.h"

namespace conv_ext {

template <class A, Pass pass>
void run_broadcast_pass(const ConvProblem& problem, const Plan& plan, const Buffers& buffers,
                        const Executor& executor) {
  run_broadcast<A>(problem, pass, plan, buffers, executor);
}

template <class A>
RunPass broadcast_of(Pass pass) {
  return pass == Pass::Forward ? run_broadcast_pass<A, Pass::Forward> : run_broadcast_pass<A, Pass::InputGrad>;
}

RunPass select_broadcast(Pass pass, DType dtype) {
  return dtype == DType::Float64 ? broadcast_of<double>(pass) : broadcast_of<float>(pass);
}

}  // namespace conv_ext
