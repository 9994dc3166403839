// Plans a problem for every instruction set and compute capability, by choice and with every algorithm forced.
#pragma once

#include "plans_worker.h"

namespace fuzz {

// As the operators do before they plan.
template <class Problem>
inline auto as_planned(const Problem& z, int) -> decltype(z.normalised()) {
  return z.normalised();
}
template <class Problem>
inline Problem as_planned(const Problem& z, long) {
  return z;
}

constexpr int64_t kWorthRepeating = 20000;  // nanoseconds: others have the processor at times

class Planner {
 public:
  explicit Planner(int64_t most_steps) : most_steps_(most_steps) {}

  void plan(const PlanCase& c) {
    case_ = &c;
    const ConvProblem z = as_planned(c.z, 0);
    plan_problem(z);
    // What the operators make of it where the operands' memory allows that.
    if (z.kernel_covers_input()) plan_problem(z.as_1x1());
  }

 private:
  void plan_problem(const ConvProblem& z) {
    // An operator that has nothing to compute, or nothing to sum, returns when the algorithm is chosen.
    const Pass pass = case_->pass;
    const bool no_input = z.n == 0 || z.c == 0 || z.h == 0 || z.w == 0, no_weight = z.c == 0, no_output = z.n == 0;
    const bool empty = no_input || no_weight || no_output;
    for (const IsaTraits& isa : kInstructionSets) {
      plan_cpu(z, pass, isa, "auto", empty);
      for (const conv_ext::Candidate& candidate : conv_ext::kCandidates) plan_cpu(z, pass, isa, candidate.name, empty);
    }
    const Buffers operands = draw_operands(z, case_->operands);
    for (const int64_t capability : kCapabilities) {
      plan_cuda(z, pass, {capability}, "auto", empty, operands);
      for (const conv_ext::CudaCandidate& candidate : conv_ext::kCudaCandidates)
        plan_cuda(z, pass, {capability}, candidate.name, empty, operands);
    }
  }

  void plan_cpu(const ConvProblem& z, Pass pass, const IsaTraits& isa, const char* forced, bool empty) {
    slot->place = {isa.name, forced, "choose", 0};
    const bool any = forced[0] == 'a';
    const conv_ext::Candidate* chosen = nullptr;
    Plan plan{};
    timed([&] {
      const char* reason = nullptr;
      chosen = conv_ext::choose(z, pass, isa, forced, &reason);
      if (chosen == nullptr || empty) return;
      slot->place.step = "make_plan";
      plan = conv_ext::make_plan(z, pass, isa, *chosen);
    });
    if (chosen == nullptr) {
      if (any) report("choice", "no algorithm is chosen");
      ++slot->declined;
      return;
    }
    if (empty) return;
    if (any) ++slot->chosen[0][int(plan.algorithm)];
    slot->place.step = "check";
    slot->place.algorithm = chosen->name;
    check(check_plan(z, pass, isa, plan));
  }

  void plan_cuda(const ConvProblem& z, Pass pass, const conv_ext::CudaTraits& traits, const char* forced, bool empty,
                 const Buffers& operands) {
    slot->place = {"cuda", forced, "choose", traits.capability};
    const bool any = forced[0] == 'a';
    const conv_ext::CudaCandidate* chosen = nullptr;
    CudaPlan plan{};
    timed([&] {
      const char* reason = nullptr;
      chosen = conv_ext::choose_cuda(z, pass, traits, forced, &reason);
      if (chosen == nullptr || empty) return;
      slot->place.step = "make_plan";
      plan = conv_ext::make_cuda_plan(z, pass, *chosen, &operands);
    });
    // What CUDA has no algorithm for is refused, with the reason.
    if (chosen == nullptr) {
      ++slot->declined;
      return;
    }
    if (empty) return;
    if (any) ++slot->chosen[1][int(plan.algorithm)];
    slot->place.step = "check";
    slot->place.algorithm = chosen->name;
    check(check_cuda_plan(z, pass, plan));
    // Without operands, as conv_ext.explain asks.
    check(check_cuda_plan(z, pass, conv_ext::make_cuda_plan(z, pass, *chosen)));
  }

  template <class Body>
  void timed(Body body) {
    conv_ext::counted_steps() = 0;
    int64_t begin = nanoseconds();
    body();
    int64_t time = nanoseconds() - begin;
    if (conv_ext::counted_steps() > slot->most_steps) {
      slot->most_steps = conv_ext::counted_steps();
      slot->most_steps_at = *case_;
      slot->most_steps_place = slot->place;
    }
    for (int again = 0; again < 2 && time > kWorthRepeating; ++again) {
      conv_ext::counted_steps() = 0;
      begin = nanoseconds();
      body();
      time = std::min(time, nanoseconds() - begin);
    }
    ++slot->plans;
    ++slot->times[time_step(double(time))];
    if (time > slot->slowest) {
      slot->slowest = time;
      slot->slowest_at = *case_;
      slot->slowest_place = slot->place;
    }
  }

  void check(const Findings& found) {
    if (!found.text().empty()) report(found.name(), found.text());
  }
  [[noreturn]] void report(const std::string& signature, const std::string& text) { fail(signature, text); }

  const PlanCase* case_ = nullptr;
  const int64_t most_steps_;
};

}  // namespace fuzz
