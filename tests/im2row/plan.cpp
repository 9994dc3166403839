// Plans of im2row: what each output reads is written down as a row, and multiplied with the rows of the weights.
#include "layout.h"
#include "../plan_common.h"

namespace conv_ext {

void prepare_im2row(const PlanInput& input, Plan* plan) {
  const ConvProblem& z = input.problem;
  Im2rowPlan& own = plan->own<Im2rowPlan>();
  // Enough tasks for an even load; which of them computes an output changes nothing about its sum.
  own.rows = max_of(1, product(z.n, z.groups, z.p) / kEnoughTasks);
  plan->tasks = product(z.n, z.groups, ceil_div(z.p, own.rows));
  count_memory(z.dtype, plan,
               [&](auto number, Carver&, Carver& scratch) { im2row_scratch<decltype(number)>(z, scratch); });
}

const char* im2row_declines(const PlanInput& input) {
  if (input.pass != Pass::Forward) return "it is for forward";
  if (is_complex(input.problem.dtype)) return "it is for real numbers";
  return memory_declines(input, prepare_im2row, "what an output reads exceeds 16 MiB of scratch for each thread");
}

// Nobody has measured it, so that it runs where it is forced.
Work im2row_work(const PlanInput&) { return {Nest::Unknown, {}}; }

void describe_im2row(const PlanInput&, const Plan& plan, Facts* facts) {
  add_facts(facts, {{"rows", plan.own<Im2rowPlan>().rows}});
}

}  // namespace conv_ext
