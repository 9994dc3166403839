// Products over a packed source, for all types; the plans decline what these do not compute.
#include "windows.h"

#include "../pass.h"

namespace conv_ext {

// The pass is no template argument: nothing in the inner loops depends on it.
template <class T, class A, bool along_channels, Pass pass>
void run_windows_of(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  run_windows<T, A, along_channels>(problem, pass, plan, buffers, executor);
}

RunPlan select_broadcast(Pass pass, DType dtype) {
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    if constexpr (decltype(its_pass)::value != Pass::WeightGrad)
      return run_windows_of<typename Types::T, typename Types::A, true, decltype(its_pass)::value>;
    return nullptr;
  });
}

RunPlan select_panels(Pass pass, DType dtype);

// Its weight_grad is that of panels.
RunPlan select_direct(Pass pass, DType dtype) {
  if (pass == Pass::WeightGrad) return select_panels(pass, dtype);
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    if constexpr (decltype(its_pass)::value != Pass::WeightGrad)
      return run_windows_of<typename Types::T, typename Types::A, false, decltype(its_pass)::value>;
    return nullptr;
  });
}

}  // namespace conv_ext
