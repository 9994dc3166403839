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
  Work folder##_work(const PlanInput&);            \
  void prepare_##folder(const PlanInput&, Plan*);  \
  void describe_##folder(const PlanInput&, const Plan&, Facts*);
CONV_EXT_ALGORITHMS(CONV_EXT_NAME)
#undef CONV_EXT_NAME

#define CONV_EXT_CANDIDATE(Enumerator, folder) \
  {Algorithm::Enumerator, #folder, folder##_declines, folder##_work, prepare_##folder, describe_##folder},
constexpr Candidate kInOrder[kCandidateCount] = {CONV_EXT_ALGORITHMS(CONV_EXT_CANDIDATE)};
#undef CONV_EXT_CANDIDATE
const Candidates kCandidates = {kInOrder, kCandidateCount};

namespace {

// The machine with the caches that every row has. Neither which algorithm computes a problem nor whether it can follows
// from other ones.
Machine with_usual_caches(Machine machine) {
  machine.caches = kAssumedCaches;
  return machine;
}

// Along anything but its first dimension, which may be N.
bool is_expanded(const int64_t (&sizes)[4], const int64_t (&stride)[4]) {
  for (int d = 1; d < 4; ++d)
    if (sizes[d] > 1 && stride[d] == 0) return true;
  return false;
}

// The result dense in the problem's layout. Which one it has is torch's rule, which heeds the strides of dimensions of
// size 1: an image that is taken out of a batch may have its result in another layout than the batch. An operand that
// is expanded, as the gradient of a sum is, is taken for a dense one, too.
Strides with_usual_strides(const PlanInput& input) {
  const Strides dense = dense_strides(input.problem);
  const TensorSizes sizes = sizes_of(input.problem);
  Strides strides = input.strides;
  const auto settle = [](bool is_result, const int64_t(&sizes)[4], const int64_t(&dense)[4], int64_t(&stride)[4]) {
    if (is_result || is_expanded(sizes, stride)) memcpy(stride, dense, sizeof stride);
  };
  settle(input.pass == Pass::Forward, sizes.output, dense.output, strides.output);
  settle(input.pass == Pass::InputGrad, sizes.input, dense.input, strides.input);
  settle(input.pass == Pass::WeightGrad, sizes.weight, dense.weight, strides.weight);
  return strides;
}

}  // namespace

const char* Candidate::declines(const PlanInput& input) const {
  if (algorithm == Algorithm::Reference) return nullptr;
  const char* const reason = beyond_tiles(input.problem);
  if (reason != nullptr) return reason;
  const Machine usual = with_usual_caches(input.machine);
  return cannot({input.problem, input.pass, usual, input.strides, input.keeps});
}

namespace {

// What estimates follow from.
struct Usual {
  const PlanInput& given;
  const Machine machine;
  const Strides strides;
  const bool too_large;
  explicit Usual(const PlanInput& input)
      : given(input),
        machine(with_usual_caches(input.machine)),
        strides(with_usual_strides(input)),
        too_large(beyond_tiles(input.problem) != nullptr) {}
  // Sizes beyond the limits would overflow.
  Work work_of(const Candidate& candidate) const {
    if (too_large) return {candidate.algorithm == Algorithm::Reference ? Nest::Unknown : Nest::Never, {}};
    return candidate.work({given.problem, given.pass, machine, strides, given.keeps});
  }
  double cycles_of(const Candidate& candidate) const {
    return conv_ext::cycles_of(given.problem, machine, work_of(candidate));
  }
};

}  // namespace

Work Candidate::work_of(const PlanInput& input) const { return Usual(input).work_of(*this); }
double Candidate::cycles(const PlanInput& input) const { return Usual(input).cycles_of(*this); }

Plan make_plan(const PlanInput& input, const Candidate& candidate) {
  const auto planned = [&](const Machine& machine) {
    Plan plan{};
    plan.algorithm = candidate.algorithm;
    plan.tasks = 1;
    candidate.prepare({input.problem, input.pass, machine, input.strides, input.keeps}, &plan);
    return plan;
  };
  const Plan plan = planned(input.machine);
  // What does not decline has room with the usual caches.
  const bool room = plan.scratch_bytes <= kScratchLimit && plan.workspace_bytes <= kWorkspaceLimit;
  return room ? plan : planned(with_usual_caches(input.machine));
}

const Candidate* choose(const PlanInput& input, const char* forced, const char** reason) {
  if (strcmp(forced, "auto") != 0) {
    *reason = "no algorithm has this name";
    for (const Candidate& candidate : kCandidates) {
      if (strcmp(forced, candidate.name) != 0) continue;
      *reason = candidate.declines(input);
      if (*reason == nullptr) return &candidate;
    }
    return nullptr;
  }
  // Whether it declines is asked of the cheapest alone, and then of the next: that takes longer than an estimate.
  double cycles[kCandidateCount];
  const Usual usual(input);
  for (int i = 0; i < kCandidateCount; ++i) cycles[i] = usual.cycles_of(kCandidates[i]);
  for (int asked = 0; asked < kCandidateCount; ++asked) {
    int cheapest = kCandidateCount - 1;  // the reference, which never declines
    for (int i = cheapest - 1; i >= 0; --i)
      if (cycles[i] <= cycles[cheapest]) cheapest = i;
    *reason = kCandidates[cheapest].declines(input);
    if (*reason == nullptr) return &kCandidates[cheapest];
    cycles[cheapest] = kMostCycles;
  }
  return nullptr;
}

}  // namespace conv_ext
