// Plans of the reference: it computes everything, and has no tiles.
#include "../candidates.h"
#include "reference.h"

namespace conv_ext {

const char* reference_declines(const PlanInput&) { return nullptr; }
Work reference_work(const PlanInput&) { return {Nest::Unknown, {}}; }
void prepare_reference(const PlanInput& input, Plan* plan) { plan->tasks = planes_of(input.problem, input.pass); }
void describe_reference(const PlanInput&, const Plan&, Facts*) {}

}  // namespace conv_ext
