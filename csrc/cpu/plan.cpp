// The plan room: which algorithm computes a problem.
#include <string.h>

#include "algorithms.h"
#include "plan_common.h"

namespace conv_ext {

const char* beyond_tiles(const ConvProblem& z) {
  const int64_t height = z.h + z.pad_top + z.pad_bottom, width = z.w + z.pad_left + z.pad_right;
  if (max_of(max_of(z.n, max_of(z.c, z.k)), max_of(height, width)) > kMostExtent)
    return "N, C, K, and the padded height and width may be 2^40 at most";
  if (product(z.n, z.c, height, width) > kMostElements || product(z.n, z.k, z.p, z.q) > kMostElements ||
      product(z.k, z.group_c(), z.r, z.s) > kMostElements)
    return "the padded input, the weight and the output may have 2^50 elements at most";
  return nullptr;
}

// In the plan.cpp of each folder; candidates.h says what they do.
#define CONV_EXT_NAME(Enumerator, folder)          \
  const char* folder##_declines(const PlanInput&); \
  const char* folder##_yields(const PlanInput&);   \
  void prepare_##folder(const PlanInput&, Plan*);  \
  void describe_##folder(const PlanInput&, const Plan&, Facts*);
CONV_EXT_ALGORITHMS(CONV_EXT_NAME)
#undef CONV_EXT_NAME

// The first that neither declines nor yields runs: the list stands in algorithms.h.
#define CONV_EXT_CANDIDATE(Enumerator, folder) \
  {Algorithm::Enumerator, #folder, folder##_declines, folder##_yields, prepare_##folder, describe_##folder},
constexpr Candidate kInOrder[kCandidateCount] = {CONV_EXT_ALGORITHMS(CONV_EXT_CANDIDATE)};
#undef CONV_EXT_CANDIDATE
const Candidates kCandidates = {kInOrder, kCandidateCount};

const char* Candidate::declines(const PlanInput& input) const {
  const char* const reason = algorithm == Algorithm::Reference ? nullptr : beyond_tiles(input.problem);
  return reason != nullptr ? reason : cannot(input);
}

const Candidate* choose(const PlanInput& input, const char* forced, const char** reason) {
  const bool any = strcmp(forced, "auto") == 0;
  *reason = "no algorithm has this name";
  for (const Candidate& candidate : kCandidates) {
    if (!any && strcmp(forced, candidate.name) != 0) continue;
    *reason = candidate.declines(input);
    if (any && *reason == nullptr) *reason = candidate.yields(input);
    if (*reason == nullptr) return &candidate;
  }
  return nullptr;
}

}  // namespace conv_ext
