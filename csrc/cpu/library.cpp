// The one symbol of a kernel library: its row of machine.h and its entry point.
#include "../common/witness.h"
#include "algorithms.h"
#include "base/simd.h"
#include "pass.h"

namespace conv_ext {

// In the folder of each algorithm: its code for a pass and a dtype; nullptr for a dtype that its plan declines.
#define CONV_EXT_NAME(Enumerator, folder) RunPlan select_##folder(Pass pass, DType dtype);
CONV_EXT_ALGORITHMS(CONV_EXT_NAME)
#undef CONV_EXT_NAME

#if defined(CONV_EXT_WITNESS)
Witness witness{};
#endif

namespace {

void run(const ConvProblem& problem, Pass pass, const Plan& plan, const Buffers& buffers, const Executor& executor) {
#define CONV_EXT_NAME(Enumerator, folder) select_##folder,
  constexpr RunPlan (*kSelect[])(Pass, DType) = {CONV_EXT_ALGORITHMS(CONV_EXT_NAME)};
#undef CONV_EXT_NAME
#if defined(CONV_EXT_WITNESS)
  witness = {buffers.workspace, buffers.kept, 0, 0, 0, nullptr};
#endif
  kSelect[int(plan.algorithm)](pass, problem.dtype)(problem, plan, buffers, executor);
}

constexpr KernelLibrary kLibrary = {kMachine, run};

}  // namespace
}  // namespace conv_ext

extern "C" __attribute__((visibility("default"))) const conv_ext::KernelLibrary* conv_ext_kernel_library() {
  return &conv_ext::kLibrary;
}

#if defined(CONV_EXT_WITNESS)
extern "C" __attribute__((visibility("default"))) const conv_ext::Witness* conv_ext_witness() {
  return &conv_ext::witness;
}
#endif
