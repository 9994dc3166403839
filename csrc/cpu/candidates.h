// The choice of an algorithm, with reasons. The list is in algorithms.h; start reading at `choose` in plan.cpp.
#pragma once

#include "../common/buffers.h"
#include "../common/facts.h"
#include "costs.h"
#include "plan.h"

namespace conv_ext {

// All that a plan may depend on. The machine is the row of the library that runs it; the strides are settled
// (common/buffers.h).
struct PlanInput {
  const ConvProblem& problem;
  Pass pass;
  const Machine& machine;
  const Strides& strides;
  bool keeps = false;  // a forward's weights are packed where other calls find them, in a format that is that of any N
};

// Why a problem is so large that no plan with tiles is made for it; nullptr where it is not.
const char* beyond_tiles(const ConvProblem& problem);

struct Candidate {
  Algorithm algorithm;
  const char* name;
  // Why it cannot compute the problem; nullptr where it can. One predicate for dispatch, explain() and the error.
  const char* declines(const PlanInput& input) const;
  const char* (*cannot)(const PlanInput&);
  // What it would do, of a problem that it can compute, and how long that is estimated to take (costs.h). A forced
  // algorithm is not asked.
  Work work_of(const PlanInput& input) const;
  double cycles(const PlanInput& input) const;
  Work (*work)(const PlanInput&);
  void (*prepare)(const PlanInput&, Plan*);
  void (*describe)(const PlanInput&, const Plan&, Facts*);
};

// All of them, in the order of algorithms.h.
struct Candidates {
  const Candidate* first;
  int count;
  const Candidate* begin() const { return first; }
  const Candidate* end() const { return first + count; }
  const Candidate& operator[](int index) const { return first[index]; }
};
extern const Candidates kCandidates;

constexpr int64_t kScratchLimit = int64_t(16) << 20;  // bytes a thread may use for its packed tile

// The one that takes the fewest cycles of those that do not decline, of equals the first. `forced` names one instead
// ("auto": none): nullptr is then returned, with the reason in *reason, where it declines or the name is unknown.
const Candidate* choose(const PlanInput& input, const char* forced, const char** reason);

// An empty problem is not planned: nothing runs.
Plan make_plan(const PlanInput& input, const Candidate& candidate);

}  // namespace conv_ext
