// Planning ends, whatever the problem: the fuzzer of plans (tests/fuzz/plans.cpp) counts the steps of its loops and
// holds them to a limit. In every other build there is nothing to count.
//
// Use: CONV_EXT_PLAN_STEP(); as the first statement in the body of every loop of planning whose length depends on the
// problem.
#pragma once

#if defined(CONV_EXT_COUNT_PLAN_STEPS)
#include <stdint.h>

namespace conv_ext {

extern int64_t plan_steps, most_plan_steps;
void too_many_plan_steps();  // does not return

}  // namespace conv_ext
#define CONV_EXT_PLAN_STEP() \
  (++conv_ext::plan_steps > conv_ext::most_plan_steps ? conv_ext::too_many_plan_steps() : (void)0)
#else
#define CONV_EXT_PLAN_STEP() ((void)0)
#endif
