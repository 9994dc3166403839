// Runs one case on one kernel library, by choice and by every algorithm that does not decline, and says what is wrong.
#pragma once

#include <functional>

#include "../../csrc/common/merge.h"
#include "other_caches.h"
#include "runs_epilogue.h"
#include "runs_expected.h"
#include "runs_tasks.h"

namespace fuzz {

using conv_ext::Algorithm;
using conv_ext::Buffers;
using conv_ext::Candidate;
using conv_ext::PackedWeights;
using conv_ext::Plan;

// Called once for each algorithm that ran: its place among the candidates, and whether it was chosen.
using Counter = std::function<void(const Case&, int isa, Pass, int candidate, bool chosen)>;

template <class Type>
class Checker {
 public:
  using W = typename Type::Wide;

  Checker(const Case& c, Stage* stage) : case_(c), z_(c.z), stage_(stage) {
    parts_ = conv_ext::is_complex(z_.dtype) ? 2 : 1;
    const int64_t sizes[3][4] = {
        {z_.n, z_.c, z_.h, z_.w}, {z_.k, z_.c / z_.groups, z_.r, z_.s}, {z_.n, z_.k, z_.p, z_.q}};
    for (int t = 0; t < 3; ++t) {
      std::copy(sizes[t], sizes[t] + 4, sizes_[t]);
      operand_[t] = fill(t, sizes[t]);
    }
    if (c.bias_stride >= 0) fill_bias();
    if (c.adds) fill_residual();
  }

  void check(const std::vector<Library>& libraries, const Counter& count, std::vector<Failure>* failures) {
    for (int pass = 0; pass < conv_ext::kPasses; ++pass) {
      if (!case_.pass.empty() && case_.pass != kPassNames[pass]) continue;
      stage_->pass = pass;
      stage_->algorithm = kPreparing;
      check_pass(Pass(pass), libraries, count, failures);
    }
    for (int t = 0; t < 3; ++t)
      if (std::memcmp(memory(t).begin(), saved_[t].data(), saved_[t].size()) != 0)
        failures->push_back({"operand-changed", "", "", "", "a kernel wrote to tensor " + std::to_string(t)});
    if (case_.adds && std::memcmp(memory(kResidual).begin(), saved_residual_.data(), saved_residual_.size()) != 0)
      failures->push_back({"operand-changed", "", "", "", "a kernel wrote to the residual"});
  }

 private:
  // Kept from case to case: three operands, the bias, the result, the workspace, packed weights and the residual.
  static Arena& memory(int which) {
    static Arena arenas[8];
    return arenas[which];
  }
  static Tasks& tasks() {
    static Tasks kept;
    return kept;
  }
  static constexpr int kBias = 3, kResult = 4, kWorkspace = 5, kKept = 6, kResidual = 7;

  int64_t element_bytes() const { return Type::bytes * parts_; }
  static int64_t extent(const int64_t sizes[4], const int64_t stride[4]) {
    int64_t last = 0;
    for (int d = 0; d < 4; ++d) last += (sizes[d] - 1) * stride[d];
    return last + 1;
  }
  template <class Visit>
  static void for_each_element(const int64_t sizes[4], const int64_t stride[4], Visit visit) {
    size_t at = 0;
    for (int64_t a = 0; a < sizes[0]; ++a)
      for (int64_t b = 0; b < sizes[1]; ++b)
        for (int64_t c = 0; c < sizes[2]; ++c) {
          const int64_t line = a * stride[0] + b * stride[1] + c * stride[2];
          for (int64_t d = 0; d < sizes[3]; ++d, ++at) visit(at, line + d * stride[3]);
        }
  }
  // The same by lines of neighbours in the logical order: visit(first, its place, count, stride).
  template <class Visit>
  static void for_each_line(const int64_t sizes[4], const int64_t stride[4], Visit visit) {
    const bool joined = stride[2] == sizes[3] * stride[3];
    const int64_t count = joined ? sizes[2] * sizes[3] : sizes[3];
    size_t at = 0;
    for (int64_t a = 0; a < sizes[0]; ++a)
      for (int64_t b = 0; b < sizes[1]; ++b)
        for (int64_t c = 0; c < (joined ? 1 : sizes[2]); ++c, at += size_t(count))
          visit(at, a * stride[0] + b * stride[1] + c * stride[2], count, stride[3]);
  }
  double range_of(int tensor) const {
    const uint64_t which = case_.seed % 4;
    return which == 3 ? 0.5 : which == uint64_t(tensor) ? 1.0 : 0.0;
  }

  Operand<W> fill(int t, const int64_t sizes[4]) {
    case_.layout[t].strides(sizes, false, stride_[t]);
    const int64_t elements = extent(sizes, stride_[t]);
    char* const data = memory(t).place(elements * element_bytes(), case_.layout[t].at_begin, case_.layout[t].shift);
    memory(t).fill();
    Operand<W> operand;
    const int64_t count = sizes[0] * sizes[1] * sizes[2] * sizes[3];
    Numbers numbers(case_.data, z_.dtype, case_.seed * 8 + uint64_t(t), range_of(t),
                    uint64_t(std::max<int64_t>(16, count / 3)));
    for_each_element(sizes, stride_[t], [&](size_t, int64_t at) {
      for (int part = 0; part < parts_; ++part)
        Type::write(data + at * element_bytes() + part * Type::bytes, numbers.draw());
    });
    // Read back, so that elements that share memory have the number that was written last.
    for (int part = 0; part < parts_; ++part) {
      Plane<W>& plane = operand.part[part];
      plane.resize(size_t(count));
      for_each_element(sizes, stride_[t], [&](size_t i, int64_t at) {
        const double value = Type::read(data + at * element_bytes() + part * Type::bytes);
        plane[i] = value;
        operand.all_finite = operand.all_finite && std::isfinite(value);
      });
    }
    saved_[t].assign(data, data + elements * element_bytes());
    return operand;
  }
  void fill_bias() {
    char* const data =
        memory(kBias).place(((z_.k - 1) * case_.bias_stride + 1) * element_bytes(), false, case_.layout[1].shift);
    memory(kBias).fill();
    Numbers numbers(case_.data, z_.dtype, case_.seed * 8 + 7, 0, uint64_t(std::max<int64_t>(16, z_.k)));
    for (int64_t k = 0; k < z_.k; ++k)
      for (int part = 0; part < parts_; ++part)
        Type::write(data + k * case_.bias_stride * element_bytes() + part * Type::bytes, numbers.draw());
    for (int part = 0; part < parts_; ++part)
      for (int64_t k = 0; k < z_.k; ++k)
        bias_[part].push_back(Type::read(data + k * case_.bias_stride * element_bytes() + part * Type::bytes));
  }

  void fill_residual() {
    case_.residual.strides(sizes_[2], false, residual_stride_);
    const int64_t elements = extent(sizes_[2], residual_stride_);
    char* const data =
        memory(kResidual).place(elements * element_bytes(), case_.residual.at_begin, case_.residual.shift);
    memory(kResidual).fill();
    Numbers numbers(case_.data, z_.dtype, case_.seed * 8 + 6, 0, uint64_t(std::max<int64_t>(16, elements / 3)));
    for_each_element(sizes_[2], residual_stride_, [&](size_t, int64_t at) {
      for (int part = 0; part < parts_; ++part)
        Type::write(data + at * element_bytes() + part * Type::bytes, numbers.draw());
    });
    saved_residual_.assign(data, data + elements * element_bytes());
  }

  void check_pass(Pass pass, const std::vector<Library>& libraries, const Counter& count,
                  std::vector<Failure>* failures) {
    const int result = result_of(pass);
    const bool bias = pass == Pass::Forward && case_.bias_stride >= 0;
    Expected<W> expected(case_, pass, operand_[0], operand_[1], operand_[2], bias ? bias_ : nullptr);
    const Layout& layout = case_.layout[result];
    layout.strides(sizes_[result], true, result_stride_);
    memory(kResult).place(extent(sizes_[result], result_stride_) * element_bytes(), layout.at_begin, layout.shift);
    memory(kResult).fill();
    Buffers buffers{};
    conv_ext::TensorRef* const tensors[3] = {&buffers.input, &buffers.weight, &buffers.output};
    for (int t = 0; t < 3; ++t) {
      tensors[t]->data = memory(t == result ? kResult : t).begin();
      std::copy_n(t == result ? result_stride_ : stride_[t], 4, tensors[t]->stride);
    }
    if (bias) {
      buffers.bias = memory(kBias).begin();
      buffers.bias_stride = case_.bias_stride;
    }
    if (pass == Pass::Forward && case_.relu) buffers.epilogue.activation = conv_ext::Activation::Relu;
    for (size_t isa = 0; isa < libraries.size(); ++isa) {
      if (!case_.isa.empty() && case_.isa != libraries[isa].name) continue;
      stage_->isa = int(isa);
      check_library(pass, int(isa), libraries[isa], buffers, &expected, count, failures);
    }
  }

  void check_library(Pass pass, int isa, const Library& library, const Buffers& buffers, Expected<W>* expected,
                     const Counter& count, std::vector<Failure>* failures) {
    ConvProblem problem = z_.normalised();  // as the operators do
    Buffers merged = buffers;
    const bool adds_zeros = conv_ext::merge_kernel_into_channels(&problem, &merged) && pass == Pass::InputGrad;
    const auto fail = [&](const char* kind, const char* algorithm, const std::string& message) {
      failures->push_back({kind, library.name, kPassNames[int(pass)], algorithm, message});
      memory(kResult).fill();
    };
    const char* reason = nullptr;
    stage_->algorithm = kChoosing;
    ++stage_->steps;
    const conv_ext::Strides strides = conv_ext::strides_of(problem, merged);
    const conv_ext::PlanInput input{problem, pass, library.kernels->machine, strides};
    const Machine other = other_machine(library);
    const conv_ext::PlanInput with_others{problem, pass, other, strides};
    const Candidate* chosen = conv_ext::choose(input, "auto", &reason);
    if (chosen == nullptr) return fail("none-chosen", "auto", "every algorithm declines");
    if (case_.l1 && conv_ext::choose(with_others, "auto", &reason) != chosen)
      fail("caches", "auto", "another algorithm is chosen with other caches");
    for (int i = 0; i < conv_ext::kCandidateCount; ++i) {
      const Candidate& candidate = conv_ext::kCandidates[i];
      if (!case_.algorithm.empty() && case_.algorithm != candidate.name) continue;
      // The reference is slow: where it has much to do and is not the one that is chosen it is left out.
      if (candidate.algorithm == Algorithm::Reference && &candidate != chosen && problem.flops() > kSlow &&
          case_.algorithm.empty())
        continue;
      stage_->algorithm = i;
      ++stage_->steps;
      const bool declines = candidate.declines(input) != nullptr;
      if (case_.l1 && declines != (candidate.declines(with_others) != nullptr))
        fail("caches", candidate.name, "whether it declines follows from the caches");
      if (declines) continue;
      count(case_, isa, pass, i, &candidate == chosen);
      const auto bad = [&](const char* kind, const std::string& message) { fail(kind, candidate.name, message); };
      check_algorithm({pass, library, candidate, adds_zeros ? &buffers : nullptr}, problem, merged, expected, bad);
    }
  }

  // What stays the same from run to run of an algorithm. `unmerged`: of the input gradient of a kernel that was merged,
  // what it was before; else nullptr.
  struct Call {
    Pass pass;
    const Library& library;
    const Candidate& candidate;
    const Buffers* unmerged;
  };
  // Plans and runs a problem; false where the plan was no plan or the run did not keep to it.
  template <class Bad>
  bool run_plan(const Call& call, const Machine& machine, const ConvProblem& z, const Buffers& b, Tasks::Order order,
                int workers, const Bad& bad) {
    const conv_ext::Strides strides = conv_ext::strides_of(z, b);
    const conv_ext::PlanInput input{z, call.pass, machine, strides, b.packed != PackedWeights::OfCall};
    const Plan plan = conv_ext::make_plan(input, call.candidate);
    if (plan.tasks < 1 || plan.workspace_bytes < 0 || plan.workspace_bytes > kMostWorkspace || plan.scratch_bytes < 0 ||
        plan.scratch_bytes > conv_ext::kScratchLimit) {
      bad("plan", "tasks " + std::to_string(plan.tasks) + ", workspace " + std::to_string(plan.workspace_bytes) +
                      ", scratch " + std::to_string(plan.scratch_bytes));
      return false;
    }
    Buffers with = b;
    if (plan.workspace_bytes > 0) {
      with.workspace = memory(kWorkspace).place_aligned(plan.workspace_bytes);
      memory(kWorkspace).fill();
    }
    tasks().begin(order, workers, plan, case_.seed);
    call.library.kernels->run(z, call.pass, plan, with, tasks().executor());
    if (call.unmerged != nullptr && b.packed != PackedWeights::Make) {
      ConvProblem whole = z_.normalised();
      Buffers of_whole = *call.unmerged;
      whole.n = z.n;
      of_whole.input.data = b.input.data;
      of_whole.output.data = b.output.data;
      conv_ext::add_zeros_around_gradient(z, b, whole, of_whole);
    }
    if (tasks().used_scratch > plan.scratch_bytes) {
      bad("scratch", "asks for " + std::to_string(tasks().used_scratch) + " bytes of scratch, planned are " +
                         std::to_string(plan.scratch_bytes));
      return false;
    }
    if (b.packed == PackedWeights::Make) return memory(kKept).margins_intact() && memory(kResult).margins_intact();
    if (const std::string other = unlike_plan(input, call.library, call.candidate, plan); !other.empty()) {
      bad("unplanned", other);
      return false;
    }
    if (!tasks().margins_intact() || !memory(kResult).margins_intact() ||
        (plan.workspace_bytes > 0 && !memory(kWorkspace).margins_intact())) {
      bad("beside", "bytes beside the result, the workspace or the scratch were written");
      return false;
    }
    return true;
  }

  template <class Bad>
  void check_algorithm(const Call& call, const ConvProblem& problem, const Buffers& buffers, Expected<W>* expected,
                       const Bad& bad) {
    const auto& [pass, library, candidate, unmerged] = call;
    const Gate gate = candidate.algorithm == Algorithm::Winograd       ? Gate::Winograd
                      : candidate.algorithm == Algorithm::ImplicitGemm ? Gate::Dot
                                                                       : Gate::Plain;
    const Machine& machine = library.kernels->machine;
    const auto run = [&](const ConvProblem& z, const Buffers& b, Tasks::Order order, int workers) {
      return run_plan(call, machine, z, b, order, workers, bad);
    };
    if (!run(problem, buffers, Tasks::Order::InTurn, 1)) return;
    const bool again = case_.shuffled || case_.threads || case_.cut_end || case_.l1;
    const bool finishes = pass == Pass::Forward && !case_.relu && (case_.adds || case_.activation != Behind::None);
    if (again || finishes) collect(&first_);
    std::string message = compare(expected, gate);
    if (!message.empty()) return bad("wrong", message);
    if (!memory(kResult).is_filled()) return bad("gaps", "bytes between the result's elements were written");
    if (finishes && !check_epilogue(call, problem, buffers, run, bad)) return;
    if (!again) return;
    // The same bits again, whoever computes what.
    const auto same = [&](const char* kind, int64_t begin, int64_t end) {
      message = compare_bits(begin, end);
      if (!message.empty()) bad(kind, message);
      return message.empty();
    };
    const int64_t all = sizes_[result_of(pass)][0];
    if (case_.shuffled && !(run(problem, buffers, Tasks::Order::Shuffled, case_.shuffled) && same("order", 0, all)))
      return;
    for (int workers : {2, 3, 7})
      if (workers <= case_.threads &&
          !(run(problem, buffers, Tasks::Order::Threads, workers) && same("threads", 0, all)))
        return;
    if (pass != Pass::WeightGrad && !check_kept(call, problem, buffers, run, same, bad)) return;
    // With other caches, which parts the sums of weight_grad are cut into may be another matter.
    if (case_.l1) {
      if (!run_plan(call, other_machine(library), problem, buffers, Tasks::Order::InTurn, 1, bad)) return;
      if (pass != Pass::WeightGrad && !same("caches", 0, all)) return;
      if (pass == Pass::WeightGrad && !(message = compare(expected, gate)).empty()) return bad("caches", message);
    }
    if (case_.cut_end && case_.cut_end <= z_.n && pass != Pass::WeightGrad) {
      ConvProblem fewer = problem;
      fewer.n = case_.cut_end - case_.cut_begin;
      Buffers part = buffers;
      for (conv_ext::TensorRef* t : {&part.input, &part.output})
        t->data = static_cast<char*>(t->data) + case_.cut_begin * t->stride[0] * element_bytes();
      const conv_ext::Strides strides = conv_ext::strides_of(fewer, part);
      if (candidate.declines({fewer, pass, machine, strides}) != nullptr)
        return bad("cut", "declines a part of the batch");
      if (run(fewer, part, Tasks::Order::InTurn, 1)) same("cut", case_.cut_begin, case_.cut_end);
    }
  }
  // The same with an epilogue: what it makes of the bits of the first run, in turn and on threads.
  template <class Run, class Bad>
  bool check_epilogue(const Call& call, const ConvProblem& problem, const Buffers& buffers, const Run& run,
                      const Bad& bad) {
    Buffers with = buffers;
    static_assert(int(conv_ext::Activation::HardSwish) == int(Behind::HardSwish));
    with.epilogue.activation = conv_ext::Activation(int(case_.activation));
    with.epilogue.low = kClampLow;
    with.epilogue.high = kClampHigh;
    if (case_.adds) {
      with.epilogue.residual.data = memory(kResidual).begin();
      std::copy_n(residual_stride_, 4, with.epilogue.residual.stride);
    }
    for (int workers : {1, 3}) {
      if (workers > 1 && case_.threads < workers) break;
      if (!run(problem, with, workers > 1 ? Tasks::Order::Threads : Tasks::Order::InTurn, workers)) return false;
      const std::string message = compare_finished(call.candidate.algorithm == Algorithm::Reference);
      if (!message.empty()) return bad("epilogue", message), false;
      if (!memory(kResult).is_filled()) return bad("gaps", "an epilogue wrote between the result's elements"), false;
    }
    return true;
  }
  // Compares with what the epilogue makes of the first run's result, and fills each element again. wider: the algorithm
  // computes it in wider numbers.
  std::string compare_finished(bool wider) {
    std::vector<double> residual;
    if (case_.adds)
      for_each_element(sizes_[2], residual_stride_, [&](size_t, int64_t at) {
        for (int part = 0; part < parts_; ++part)
          residual.push_back(Type::read(memory(kResidual).begin() + at * element_bytes() + part * Type::bytes));
      });
    char* const data = memory(kResult).begin();
    std::string message;
    for_each_element(result_sizes(), result_stride_, [&](size_t i, int64_t at) {
      char* const element = data + at * element_bytes();
      for (int part = 0; part < parts_; ++part) {
        const size_t number = i * size_t(parts_) + size_t(part);
        const double got = Type::read(element + part * Type::bytes);
        const double wanted = finished<Type>(case_, first_[number], case_.adds ? &residual[number] : nullptr);
        if (close_to(case_, got, wanted, wider) || !message.empty()) continue;
        char text[128];
        std::snprintf(text, sizeof(text), "element %ld is %.9g, wanted %.9g of %.9g", long(i), got, wanted,
                      first_[number]);
        message = text;
      }
      std::memset(element, kFill, size_t(element_bytes()));
    });
    return message;
  }
  // Weights that are packed once, for a batch of another size, and used by this one: the same bits.
  template <class Run, class Same, class Bad>
  bool check_kept(const Call& call, const ConvProblem& problem, const Buffers& buffers, const Run& run,
                  const Same& same, const Bad& bad) {
    ConvProblem other = problem;
    other.n = problem.n == 1 ? 5 : 1;
    Buffers with = buffers;
    const conv_ext::Strides strides = conv_ext::strides_of(problem, buffers);
    const auto plan_of = [&](const ConvProblem& z) {
      return conv_ext::make_plan({z, call.pass, call.library.kernels->machine, strides, true}, call.candidate);
    };
    const Plan plan = plan_of(problem), maker = plan_of(other);
    if (plan.kept_bytes != maker.kept_bytes || !std::equal(plan.kept_format, plan.kept_format + 4, maker.kept_format)) {
      bad("kept", "the format of packed weights follows from N");
      return false;
    }
    if (plan.kept_bytes == 0) return true;
    if (plan.kept_bytes > kMostWorkspace) return true;
    with.kept = memory(kKept).place_aligned(plan.kept_bytes);
    memory(kKept).fill();
    with.packed = PackedWeights::Make;
    if (!run(other, with, Tasks::Order::InTurn, 1)) return false;
    with.packed = PackedWeights::Kept;
    if (!memory(kKept).margins_intact()) {
      bad("kept", "bytes beside packed weights were written");
      return false;
    }
    return run(problem, with, Tasks::Order::InTurn, 1) && same("kept", 0, sizes_[result_of(call.pass)][0]);
  }
  // What is planned is what ran: the loop that multiplies, the bytes that were handed out of either block, and the
  // variant, which is one of the words that explain() has for the plan. Empty where all that is so.
  std::string unlike_plan(const conv_ext::PlanInput& input, const Library& library, const Candidate& candidate,
                          const Plan& plan) {
    if (tasks().planned_loops == 0)
      return "no loop of " + std::to_string(plan.tasks) + " tasks with " + std::to_string(plan.scratch_bytes) +
             " bytes of scratch, as planned; the longest had " + std::to_string(tasks().most_tasks);
    if (library.witness == nullptr) return "";
    const conv_ext::Witness& seen = *library.witness;
    // Of an algorithm whose own objects were compiled without it nothing is known.
    if (seen.workspace_bytes == 0 && seen.scratch_bytes == 0 && seen.variant == nullptr) return "";
    const auto differs = [](const char* what, int64_t handed_out, int64_t planned) {
      return std::to_string(handed_out) + " bytes of " + what + " were handed out, planned are " +
             std::to_string(planned);
    };
    if (seen.workspace_bytes != plan.workspace_bytes)
      return differs("workspace", seen.workspace_bytes, plan.workspace_bytes);
    if (seen.kept_bytes != plan.kept_bytes) return differs("packed weights", seen.kept_bytes, plan.kept_bytes);
    if (seen.scratch_bytes != plan.scratch_bytes) return differs("scratch", seen.scratch_bytes, plan.scratch_bytes);
    if (seen.variant == nullptr) return "";
    conv_ext::Facts facts;
    candidate.describe(input, plan, &facts);
    std::string words;
    for (const auto& [name, value] : facts) {
      const std::string* const text = std::get_if<std::string>(&value);
      if (text != nullptr && *text == seen.variant) return "";
      if (text != nullptr) words += std::string(name) + " " + *text + ", ";
    }
    return "the kernel runs the variant \"" + std::string(seen.variant) + "\", the plan says " + words;
  }
  // The library's, but for the caches of the case.
  Machine other_machine(const Library& library) const {
    return with_caches(library.kernels->machine, {case_.l1 << 10, case_.l2 << 10, case_.last << 10});
  }
  static int result_of(Pass pass) { return pass == Pass::Forward ? 2 : pass == Pass::InputGrad ? 0 : 1; }

  // Compares the result with what is expected, and fills each element again: what is left is what must not be written.
  std::string compare(Expected<W>* expected, Gate gate) {
    const int64_t* sizes = expected->sizes();
    const W* value[2] = {};
    const double* bound[2] = {};
    for (int part = 0; part < parts_; ++part) {
      value[part] = expected->value(gate, part).data();
      bound[part] = expected->bound(gate, part).data();
    }
    char* const data = memory(kResult).begin();
    int64_t wrong = 0;
    std::string first;
    const auto check_line = [&](size_t i, int64_t at, int64_t count, int64_t stride) {
      char* const line = data + at * element_bytes();
      const int64_t apart = stride * element_bytes();
      for (int part = 0; part < parts_; ++part) {
        const W* const v = value[part] + i;
        const double* const b = bound[part] + i;
        const auto good = [&](int64_t j) {
          return std::fabs(Type::read(line + j * apart + part * Type::bytes) - v[j]) <= b[j];
        };
        bool all_good = true;
        for (int64_t j = 0; j < count; ++j) all_good &= good(j);
        for (int64_t j = 0; j < count && !all_good; ++j) {
          const W got = Type::read(line + j * apart + part * Type::bytes);
          if (good(j) || acceptable(got, v[j], *expected, gate, part, i + size_t(j), b[j])) continue;
          if (wrong++ == 0) first = describe(sizes, i + size_t(j), part, got, v[j], *expected, b[j]);
        }
        for (int64_t j = 0; j < count; ++j) std::memset(line + j * apart + part * Type::bytes, kFill, Type::bytes);
      }
    };
    for_each_line(sizes, result_stride_, check_line);
    return wrong ? std::to_string(wrong) + " wrong; " + first : "";
  }
  // What an inequality does not say: numbers that are not finite.
  static bool acceptable(W got, W wanted, const Expected<W>& expected, Gate gate, int part, size_t at, double bound) {
    if (wanted != wanted) return got != got;
    if (!std::isfinite(wanted)) return got == wanted || (got != got && expected.may_lose_infinity(gate));
    if (std::isfinite(got)) return false;
    return !expected.exact(Gate::Plain) && expected.may_overflow(part, at, bound);
  }
  static std::string describe(const int64_t sizes[4], size_t at, int part, W got, W wanted, const Expected<W>& expected,
                              double bound) {
    char text[256];
    const int64_t i = int64_t(at), d = i % sizes[3], c = i / sizes[3] % sizes[2],
                  b = i / sizes[3] / sizes[2] % sizes[1], a = i / sizes[3] / sizes[2] / sizes[1];
    std::snprintf(text, sizeof(text),
                  "at (%ld,%ld,%ld,%ld)%s got %.9Lg, wanted %.9Lg, error %.3Lg, bound %.3g, A %.3g, L %ld", long(a),
                  long(b), long(c), long(d), part ? " imaginary" : "", (long double)got, (long double)wanted,
                  std::fabs((long double)(got - wanted)), bound, expected.magnitude(part, at), long(expected.length()));
    return text;
  }

  void collect(std::vector<double>* into) {
    into->clear();
    const char* const data = memory(kResult).begin();
    for_each_element(result_sizes(), result_stride_, [&](size_t, int64_t at) {
      for (int part = 0; part < parts_; ++part)
        into->push_back(Type::read(data + at * element_bytes() + part * Type::bytes));
    });
  }
  const int64_t* result_sizes() const { return sizes_[result_of(Pass(stage_->pass.load()))]; }
  // The result, images begin ... end of it, against the first run's; and fills it again.
  std::string compare_bits(int64_t begin, int64_t end) {
    const int64_t* whole = result_sizes();
    const int64_t sizes[4] = {end - begin, whole[1], whole[2], whole[3]};
    const int64_t per_image = whole[1] * whole[2] * whole[3];
    char* const data = memory(kResult).begin() + begin * result_stride_[0] * element_bytes();
    std::string message;
    for_each_element(sizes, result_stride_, [&](size_t i, int64_t at) {
      char* const element = data + at * element_bytes();
      for (int part = 0; part < parts_; ++part) {
        const double got = Type::read(element + part * Type::bytes),
                     wanted = first_[(size_t(begin * per_image) + i) * size_t(parts_) + size_t(part)];
        if ((got == wanted && std::signbit(got) == std::signbit(wanted)) || (got != got && wanted != wanted)) continue;
        if (message.empty()) {
          char text[128];
          std::snprintf(text, sizeof(text), "element %ld is %.9g, was %.9g", long(i), got, wanted);
          message = text;
        }
      }
      std::memset(element, kFill, size_t(element_bytes()));
    });
    if (message.empty() && !memory(kResult).is_filled()) message = "bytes beside these elements were written";
    return message;
  }

  static constexpr double kSlow = 12e3;
  static constexpr int64_t kMostWorkspace = int64_t(1) << 30;

  const Case& case_;
  const ConvProblem& z_;
  Stage* const stage_;
  int parts_;
  int64_t sizes_[3][4], stride_[3][4], result_stride_[4], residual_stride_[4];
  Operand<W> operand_[3];
  Plane<W> bias_[2];
  std::vector<char> saved_[3], saved_residual_;
  std::vector<double> first_;
};

inline void check_case(const Case& c, const std::vector<Library>& libraries, Stage* stage, const Counter& count,
                       std::vector<Failure>* failures) {
  stage->algorithm = kPreparing;
  ++stage->steps;
  with_type(c.z.dtype, [&](auto type) { Checker<decltype(type)>(c, stage).check(libraries, count, failures); });
}

}  // namespace fuzz
