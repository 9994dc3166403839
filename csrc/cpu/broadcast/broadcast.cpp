// The broadcast algorithm, for float32 and float64, forward and input_grad; the plan declines the rest.
#include "broadcast.h"

#include "../pass.h"

namespace conv_ext {
namespace {

// The pass is taken at run time.
template <class A, Pass pass>
void run_broadcast_pass(const ConvProblem& problem, const Plan& plan, const Buffers& buffers,
                        const Executor& executor) {
  run_broadcast<A>(problem, pass, plan, buffers, executor);
}

}  // namespace

RunPlan select_broadcast(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    typedef typename Types::A A;
    if constexpr (is_same<typename Types::T, A> && decltype(its_pass)::value != Pass::WeightGrad)
      return run_broadcast_pass<A, decltype(its_pass)::value>;
    return nullptr;
  });
}

}  // namespace conv_ext
