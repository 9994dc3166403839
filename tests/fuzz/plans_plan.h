// One problem, planned for every instruction set and capability: by choice, and by every algorithm that is forced.
#pragma once

#include <chrono>
#include <cstring>
#include <sstream>

#include "other_caches.h"
#include "plans_check.h"
#include "plans_cuda_check.h"
#include "plans_families.h"
#include "plans_isas.h"

namespace fuzz {

struct TooManySteps {};

}  // namespace fuzz

// Counted in the loops of planning, where the plan is compiled with CONV_EXT_COUNT_PLAN_STEPS (plan_steps.h). The
// most for one choice or one plan: kernels of 4,096 taps are gone through by several algorithms, some times each.
namespace conv_ext {

int64_t plan_steps = 0, most_plan_steps = 1 << 18;
void too_many_plan_steps() { throw fuzz::TooManySteps(); }

}  // namespace conv_ext

namespace fuzz {

using Clock = std::chrono::steady_clock;

// Where the planning of a problem has got to: shared with the process that watches.
struct Stage {
  const char* device = "";  // instruction set, or "cuda"
  const char* algorithm = "";
};

struct Findings {
  Stage stage;
  const char* rule = nullptr;  // the first that was broken
  Stage at;
  int64_t plans = 0, steps = 0;  // steps: the most of one plan
  int64_t histogram[512] = {};   // of the times that a choice and its plan take, 8 classes to an octave of ns

  void report(const char* what) {
    if (rule != nullptr) return;
    rule = what;
    at = stage;
  }
  void count_steps() {
    if (conv_ext::plan_steps > steps) steps = conv_ext::plan_steps;
    conv_ext::plan_steps = 0;
  }
  void time(Clock::duration duration) {
    const int64_t ns = std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
    int octave = 0;
    while (octave < 40 && (ns >> octave) > 1) ++octave;
    const int64_t eighth = octave < 3 ? 0 : (ns >> (octave - 3)) & 7;
    ++histogram[octave * 8 + eighth];
  }
};
inline double class_ns(int i) { return double(int64_t(1) << i / 8) * (1 + (i % 8 + 1) / 8.0); }

// The call's problem, in which sizes that make no odds are small (csrc/problem.h); 0.1.0 had no such thing.
template <class Problem>
Problem as_called(const Problem& z) {
  if constexpr (requires { z.normalised(); }) {
    return z.normalised();
  } else {
    return z;
  }
}

inline bool is_empty(const ConvProblem& z) {
  for (const int64_t size : {z.n, z.c, z.h, z.w, z.k, z.p, z.q})
    if (size == 0) return true;
  return false;
}

// A plan in words and numbers, to compare two versions of it.
using Words = std::vector<std::pair<std::string, std::string>>;
inline Words words_of(const conv_ext::PlanInput& input, const conv_ext::Candidate& candidate, const Plan& plan) {
  conv_ext::Facts facts;
  candidate.describe(input, plan, &facts);
  Words words;
  for (const auto& [name, value] : facts)
    words.emplace_back(name, std::holds_alternative<int64_t>(value) ? std::to_string(std::get<int64_t>(value))
                                                                    : std::get<std::string>(value));
  words.emplace_back("tasks", std::to_string(plan.tasks));
  words.emplace_back("workspace_bytes", std::to_string(plan.workspace_bytes));
  words.emplace_back("scratch_bytes", std::to_string(plan.scratch_bytes));
  return words;
}
inline Words words_of(const CudaPlan& plan) {
  Words words;
  for (const auto& [name, value] : fields(plan)) words.emplace_back(name, std::to_string(value));
  return words;
}

// The same call of a machine with other caches, or of another batch: every algorithm declines or does not as it did,
// the same one is chosen, and sums of forward and input_grad are formed in the same order.
struct SumRules {
  const char *choice, *declines, *order;
};
constexpr SumRules kCacheRules = {"the algorithm does not follow from caches",
                                  "whether an algorithm declines does not follow from caches",
                                  "the order of a sum does not follow from caches"};
constexpr SumRules kBatchRules = {"the algorithm does not follow from N",
                                  "whether an algorithm declines does not follow from N",
                                  "the order of a sum does not follow from N"};
inline void compare_sums(const conv_ext::PlanInput& input, const conv_ext::PlanInput& other, const SumRules& rules,
                         Findings* f) {
  using namespace conv_ext;
  const char* reason = nullptr;
  f->stage = {other.machine.name, "auto"};
  if (choose(other, "auto", &reason) != choose(input, "auto", &reason)) f->report(rules.choice);
  for (const Candidate& candidate : kCandidates) {
    f->stage.algorithm = candidate.name;
    const bool declines = candidate.declines(input) != nullptr;
    if (declines != (candidate.declines(other) != nullptr)) f->report(rules.declines);
    f->count_steps();
    if (declines || candidate.declines(other) != nullptr) continue;
    const Plan plan = make_plan(other, candidate);
    ++f->plans;
    f->count_steps();
    if (const char* const broken = check_plan(other.problem, other.pass, other.machine, candidate.algorithm, plan))
      f->report(broken);
    if (other.pass != Pass::WeightGrad && order_of(plan) != order_of(make_plan(input, candidate)))
      f->report(rules.order);
    f->count_steps();
  }
}
// Of one machine, with caches that follow from the problem, so that a case needs no more words.
inline void plan_with_other_caches(const ConvProblem& z, Pass pass, const conv_ext::Strides& strides, Findings* f) {
  // Blocks of weight_grad end with whole vectors, which tells where the sums are near 4 TiB of workspace.
  if (pass == Pass::WeightGrad && conv_ext::product(z.k, z.group_c(), z.r, z.s) > int64_t(1) << 34) return;
  Random random(uint64_t(z.n) * 57 + uint64_t(z.c) * 13 + uint64_t(z.h) * 7 + uint64_t(z.k) * 91 + uint64_t(z.r));
  const Machine& machine = kMachines[random.between(0, kMachineCount - 1)];
  const auto changed = [&](int64_t bytes) { return bytes * random.pick({1, 4, 8, 16, 32, 64}) / 16; };
  const conv_ext::Caches caches = machine.caches;
  const Machine other =
      with_caches(machine, {changed(caches.l1_bytes), changed(caches.l2_bytes), changed(caches.last_bytes)});
  compare_sums({z, pass, machine, strides}, {z, pass, other, strides}, kCacheRules, f);
}
// Of one machine, for a batch of another size where neither is beyond the limits of problems.
inline void plan_another_batch(const ConvProblem& z, Pass pass, const conv_ext::Strides& strides, Findings* f) {
  ConvProblem other = z;
  other.n = z.n == 1 ? 64 : 1;
  if (conv_ext::beyond_tiles(z) != nullptr || conv_ext::beyond_tiles(other) != nullptr) return;
  const Machine& machine = kMachines[uint64_t(z.c + z.h + z.k) % kMachineCount];
  compare_sums({z, pass, machine, strides}, {other, pass, machine, conv_ext::settled(other, strides)}, kBatchRules, f);
}

// The operands lie as `strides` says.
template <class See>
void plan_cpu(const ConvProblem& z, Pass pass, const conv_ext::Strides& strides, Findings* f, See see) {
  using namespace conv_ext;
  const bool empty = is_empty(z);
  for (int i = 0; i < kMachineCount; ++i) {
    const Machine& machine = kMachines[i];
    f->stage = {machine.name, "auto"};
    const PlanInput input{z, pass, machine, strides};
    const char* reason = nullptr;
    const auto begin = Clock::now();
    const Candidate* const chosen = choose(input, "auto", &reason);
    Plan plan{};
    if (chosen != nullptr && !empty) plan = make_plan(input, *chosen);
    f->time(Clock::now() - begin);
    ++f->plans;
    f->count_steps();
    if (chosen == nullptr) {
      f->report("an algorithm is chosen");
      continue;
    }
    if (!empty)
      if (const char* const broken = check_plan(z, pass, machine, chosen->algorithm, plan)) f->report(broken);
    for (const Candidate& candidate : kCandidates) {
      f->stage.algorithm = candidate.name;
      const Candidate* const forced = choose(input, candidate.name, &reason);
      f->count_steps();
      if (forced == nullptr) {
        if (reason == nullptr) f->report("an algorithm that declines has a reason");
        if (chosen == &candidate) f->report("what is chosen does not decline");
        see(machine.name, candidate.name, reason, nullptr, Words{});
        continue;
      }
      if (!(candidate.cycles(input) >= 0)) f->report("an estimate of cycles is a number");
      f->count_steps();
      if (!empty) {
        const Plan own = make_plan(input, candidate);
        ++f->plans;
        f->count_steps();
        if (const char* const broken = check_plan(z, pass, machine, candidate.algorithm, own)) f->report(broken);
        see(machine.name, candidate.name, nullptr, nullptr, words_of(input, candidate, own));
      }
    }
  }
}

// An operand's place and strides, which decide what CUDA's plan copies; its memory is not touched. They follow from the
// problem, so that a case needs no more words. Where a size is 1 the stride says nothing, and may be any.
inline conv_ext::TensorRef draw_operand(Random& random, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t sizes[4] = {n, c, h, w};
  constexpr int kOrders[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};  // the fastest first: contiguous, channels_last
  const int(&order)[4] = kOrders[random.between(0, 1)];
  conv_ext::TensorRef t{reinterpret_cast<void*>(uintptr_t(random.pick({64, 64, 66, 72, 80}))), {}};
  int64_t stride = 1;
  for (const int i : order) {
    t.stride[i] = sizes[i] == 1 && random.chance(0.5) ? random.logarithmic(INT64_MAX) : stride;
    if (random.chance(0.05)) t.stride[i] = 0;  // expanded
    int64_t next = 0;
    if (random.chance(0.1)) stride += random.between(0, 9);  // sliced
    if (!__builtin_mul_overflow(stride, sizes[i], &next)) stride = next;
  }
  return t;
}
inline conv_ext::Buffers draw_operands(const ConvProblem& z) {
  Random random(uint64_t(z.n) * 93 + uint64_t(z.c) * 31 + uint64_t(z.h) * 119 + uint64_t(z.w) * 17 + uint64_t(z.k));
  conv_ext::Buffers b{};
  b.input = draw_operand(random, z.n, z.c, z.h, z.w);
  b.weight = draw_operand(random, z.k, z.group_c(), z.r, z.s);
  b.output = draw_operand(random, z.n, z.k, z.p, z.q);
  return b;
}

// A plan of CUDA does not follow from the capability, which decides about algorithms alone.
template <class See>
void plan_cuda(const ConvProblem& z, Pass pass, Findings* f, See see) {
  using namespace conv_ext;
  const bool empty = is_empty(z);
  const Buffers operands = draw_operands(z);
  bool willing[kCudaCandidateCount] = {};
  for (const int64_t capability : kCapabilities) {
    f->stage = {"cuda", "auto"};
    const char* reason = nullptr;
    const auto begin = Clock::now();
    const CudaCandidate* const chosen = choose_cuda(z, pass, CudaTraits{capability}, "auto", &reason);
    if (chosen != nullptr && !empty) make_cuda_plan(z, pass, *chosen);
    f->time(Clock::now() - begin);
    f->count_steps();
    if (chosen != nullptr) willing[chosen - kCudaCandidates] = true;
    if (chosen == nullptr && reason == nullptr) f->report("an algorithm that declines has a reason");
  }
  for (int i = 0; i < kCudaCandidateCount; ++i) {
    const CudaCandidate& candidate = kCudaCandidates[i];
    f->stage.algorithm = candidate.name;
    const char *reason = nullptr, *yields = nullptr;
    for (const int64_t capability : {75, 80, 90}) {
      if (choose_cuda(z, pass, CudaTraits{capability}, candidate.name, &reason) == nullptr) continue;
      willing[i] = true;
      yields = candidate.yields(z, pass, CudaTraits{capability});
    }
    f->count_steps();
    if (!willing[i] || empty) {
      see("cuda", candidate.name, reason, nullptr, Words{});
      continue;
    }
    const CudaPlan plan = make_cuda_plan(z, pass, candidate), own = make_cuda_plan(z, pass, candidate, &operands);
    f->plans += 2;
    f->count_steps();
    if (plan.algorithm != CudaAlgorithm(i)) f->report("algorithms are listed in their order");
    const Buffers usual = usual_operands(z);
    for (const auto& [each, of] : {std::pair(&plan, &usual), std::pair(&own, &operands)})
      if (const char* const broken = check_cuda_plan(z, pass, *each, *of)) f->report(broken);
    ConvProblem other = z;  // an image has the same bits in every batch
    other.n = z.n == 1 ? 64 : 1;
    const bool declined = choose_cuda(other, pass, CudaTraits{90}, candidate.name, &reason) == nullptr;
    const CudaPlan changed = pass == Pass::WeightGrad || declined ? plan : make_cuda_plan(other, pass, candidate);
    if (changed.parts != plan.parts || changed.product.part_steps != plan.product.part_steps ||
        changed.product.chain_steps != plan.product.chain_steps)
      f->report("what a sum is made of does not follow from N");
    f->count_steps();
    see("cuda", candidate.name, nullptr, yields, words_of(plan));
  }
}

inline void plan_all(const Case& c, Findings* f) {
  const ConvProblem z = as_called(c.problem);
  const auto nothing = [](const auto&...) {};
  const auto counted = [&](const auto& plan) {
    try {
      conv_ext::plan_steps = 0;
      plan();
    } catch (const TooManySteps&) {
      f->report("planning takes at most 2^18 steps");
    }
  };
  const conv_ext::Strides dense = conv_ext::dense_strides(z), drawn = conv_ext::strides_of(z, draw_operands(z));
  counted([&] { plan_cpu(z, c.pass, dense, f, nothing); });
  counted([&] { plan_cpu(z, c.pass, drawn, f, nothing); });
  if (!is_empty(z)) {
    counted([&] { plan_with_other_caches(z, c.pass, dense, f); });
    if (c.pass != Pass::WeightGrad) counted([&] { plan_another_batch(z, c.pass, drawn, f); });
  }
  counted([&] { plan_cuda(z, c.pass, f, nothing); });
}

// Every plan of a case in words, to compare two versions of the plan.
inline std::string plans_in_words(const Case& c) {
  std::ostringstream text;
  const auto see = [&](const char* device, const char* algorithm, const char* declines, const char* yields,
                       const Words& words) {
    text << "  " << device << " " << algorithm << ": ";
    if (declines != nullptr) {
      text << "declines, " << declines << "\n";
      return;
    }
    if (yields != nullptr) text << "yields, " << yields << "; ";
    for (const auto& [name, value] : words)
      if (value != "0") text << name << "=" << value << " ";
    text << "\n";
  };
  Findings findings;
  const ConvProblem z = as_called(c.problem);
  plan_cpu(z, c.pass, conv_ext::dense_strides(z), &findings, see);
  plan_cuda(z, c.pass, &findings, see);
  return text.str();
}

inline std::string text_of(const Case& c) { return text_of(c.problem) + " pass=" + kPassNames[int(c.pass)]; }
inline Case case_of(const std::string& line) {
  Case c{};
  c.pass = Pass::Forward;
  c.problem = parse(line, [&](const std::string& key, const std::string& value) {
    if (key != "pass") bad_case("unknown key: " + key);
    c.pass = Pass(index_of(key, value, kPassNames, 3));
  });
  return c;
}

}  // namespace fuzz
