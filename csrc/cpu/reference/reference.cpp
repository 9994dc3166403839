// The reference, for all types and passes.
#include "reference.h"

#include "../pass.h"

namespace conv_ext {

template <class T, class Wide, Pass pass>
void run_reference(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const Reference<T, Wide> reference(z, b);
  parallel_for(executor, plan.tasks, 0, [&](int64_t plane, void*) { reference.template compute_plane<pass>(plane); });
}

RunPlan select_reference(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    return run_reference<typename Types::T, typename Types::Wide, decltype(its_pass)::value>;
  });
}

}  // namespace conv_ext
