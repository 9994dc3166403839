// Plans of the reference: it computes everything, and has no tiles.
#include "../plan_common.h"

namespace conv_ext {

const char* reference_declines(const PlanInput&) { return nullptr; }
const char* reference_yields(const PlanInput&) { return nullptr; }
void prepare_reference(const PlanInput& input, Plan* plan) {
  const ConvProblem& z = input.problem;
  plan->tasks = input.pass == Pass::Forward ? z.n * z.k : input.pass == Pass::InputGrad ? z.n * z.c : z.k * z.group_c();
}
void describe_reference(const PlanInput&, const Plan&, Facts*) {}

}  // namespace conv_ext
