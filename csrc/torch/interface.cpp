// What Python asks of the operators beside calling them, as functions in C: conv_ext/_C.py has them by ctypes, whatever
// the Python. A function that returns nothing (nullptr) or a negative number has failed; conv_ext_error says how.
#include <string.h>

#include <cmath>

#include "../common/merge.h"
#include "instruction_sets.h"
#include "operators.h"

#define CONV_EXT_C extern "C" __attribute__((visibility("default")))

namespace conv_ext {
namespace {

enum class Failure : int32_t { Runtime, NotImplemented, Value, Keeper };
struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

thread_local std::string error_text, answer;
thread_local Failure failure;

// work(), or `failed` with the error where it lies for conv_ext_error.
template <class Result, class Work>
Result guarded(Result failed, const Work& work) {
  try {
    return work();
  } catch (const KeeperFailed&) {
    failure = Failure::Keeper;
    error_text = "a symbol could not be computed";
  } catch (const ValueError& error) {
    failure = Failure::Value;
    error_text = error.what();
  } catch (const NotImplemented& error) {
    failure = Failure::NotImplemented;
    error_text = error.what();
  } catch (const std::exception& error) {
    failure = Failure::Runtime;
    error_text = error.what();
  }
  return failed;
}

Pass pass_named(std::string_view name) {
  for (const Pass pass : {Pass::Forward, Pass::InputGrad, Pass::WeightGrad})
    if (name == pass_name(pass)) return pass;
  throw ValueError(text_of("pass must be forward, input_grad or weight_grad, got ", name));
}

// ---- JSON

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}
std::string json(const char* text) { return text ? quoted(text) : "null"; }
std::string json(const std::string& text) { return quoted(text); }
std::string json(bool value) { return value ? "true" : "false"; }
std::string json(int64_t value) { return std::to_string(value); }
std::string json(double value) {
  if (!std::isfinite(value))
    return value != value ? "NaN" : value > 0 ? "Infinity" : "-Infinity";  // as Python's reader
  char text[32];
  snprintf(text, sizeof text, "%.17g", value);
  return text;
}
template <class Texts>
std::string listed(const Texts& values, const char* brackets) {
  std::string out(1, brackets[0]);
  for (const std::string& value : values) out += (out.size() > 1 ? ", " : "") + value;
  return out + brackets[1];
}
std::string listed(std::initializer_list<std::string> values, const char* brackets) {
  return listed<std::initializer_list<std::string>>(values, brackets);
}
// An object that is written entry by entry.
class Object {
 public:
  template <class Value>
  Object& add(const char* name, const Value& value) {
    return add_json(name, json(value));
  }
  Object& add_json(const char* name, const std::string& value) {
    entries_.push_back(quoted(name) + ": " + value);
    return *this;
  }
  std::string text() const { return listed(entries_, "{}"); }

 private:
  std::vector<std::string> entries_;
};

// ---- plans

// The three tensors as explain() knows them: how they lie, without memory.
Buffers buffers_without_memory(const ConvProblem& z, const int64_t* input_stride, const int64_t* weight_stride) {
  const Strides dense = dense_strides(z);
  Buffers buffers{};
  for (int d = 0; d < 4; ++d) {
    buffers.input.stride[d] = input_stride ? input_stride[d] : dense.input[d];
    buffers.weight.stride[d] = weight_stride ? weight_stride[d] : dense.weight[d];
    buffers.output.stride[d] = dense.output[d];
  }
  return buffers;
}

// Who could compute the problem, in the order of the list: [name, reason or null, whether it can be forced, cycles that
// it is estimated to take or null where nothing is known of them].
std::string candidates_of(const PlanInput& input) {
  std::vector<std::string> list;
  for (const Candidate& candidate : kCandidates) {
    const char* const reason = candidate.declines(input);
    const double cycles = candidate.cycles(input);
    // Nothing: it is taken wherever it can be, as bfloat16 is by AMX.
    const bool known = reason == nullptr && cycles > 0 && cycles < kMostCycles / 2;
    list.push_back(listed(
        {json(candidate.name), json(reason), json(reason == nullptr), known ? json(cycles) : std::string("null")},
        "[]"));
  }
  return listed(list, "[]");
}
// On CUDA the first that neither declines nor yields runs.
std::string cuda_candidates_of(const ConvProblem& problem, Pass pass, const CudaTraits& traits) {
  std::vector<std::string> list;
  for (const CudaCandidate& candidate : kCudaCandidates) {
    const char* reason = candidate.declines(problem, pass, traits);
    const bool possible = reason == nullptr;
    if (possible) reason = candidate.yields(problem, pass, traits);
    list.push_back(listed({json(candidate.name), json(reason), json(possible), "null"}, "[]"));
  }
  return listed(list, "[]");
}

// What the estimates count, for who fits their cycles: name: [loops, counts].
std::string works_of(const PlanInput& input) {
  Object works;
  for (const Candidate& candidate : kCandidates) {
    const Work work = candidate.work_of(input);
    if (work.nest == Nest::Never) continue;
    std::vector<std::string> counts;
    for (const double count : work.count) counts.push_back(json(count));
    works.add_json(candidate.name, listed({json(nest_name(work.nest)), listed(counts, "[]")}, "[]"));
  }
  return works.text();
}

std::string object_of(const Facts& facts) {
  Object object;
  for (const auto& [name, value] : facts) std::visit([&, n = name](const auto& v) { object.add(n, v); }, value);
  return object.text();
}

bool is_empty(const ConvProblem& z) {
  return z.input_elements() == 0 || z.weight_elements() == 0 || z.output_elements() == 0;
}

// What both devices say of a problem.
Object described(Pass pass, const ConvProblem& problem, const char* algorithm, const std::string& isa, bool as_1x1,
                 bool channels_last) {
  Object object;  // not copied: that would ask for a newer C++ library
  object.add("pass", pass_name(pass))
      .add("algorithm", algorithm)
      .add("isa", isa)
      .add("flops", problem.flops())
      .add("bytes", problem.bytes())
      .add("as_1x1", as_1x1)
      .add("channels_last", channels_last);
  return object;
}

std::string describe(Pass pass, ConvProblem problem, Buffers buffers, const char* algorithm) {
  const bool merged = merge_kernel_into_channels(&problem, &buffers);
  const Machine& machine = kernel_library().machine;
  const Strides strides = strides_of(problem, buffers);
  const PlanInput input{problem, pass, machine, strides};
  const Candidate& chosen = choose_or_throw(input, algorithm);
  const bool empty = is_empty(problem);
  const Plan plan = empty ? Plan{} : make_plan(input, chosen);
  Facts facts;
  if (!empty) chosen.describe(input, plan, &facts);
  return described(pass, problem, chosen.name, machine.name, merged, problem.channels_last)
      .add_json("candidates", candidates_of(input))
      .add_json("works", works_of(input))
      .add_json("tiles", object_of(facts))
      .add("tasks", empty ? int64_t(0) : int64_t(plan.tasks))
      .add("workspace_bytes", int64_t(plan.workspace_bytes))
      .add("scratch_bytes", int64_t(plan.scratch_bytes))
      .text();
}

// The same for a CUDA device of that compute capability (90: 9.0), which need not be there.
std::string describe_cuda(Pass pass, const ConvProblem& given, const char* algorithm, int64_t capability) {
  const bool covers = given.kernel_covers_input();
  const ConvProblem problem = covers ? given.as_1x1() : given;
  const CudaTraits traits{capability};
  const CudaCandidate& chosen = choose_cuda_or_throw(problem, pass, traits, algorithm);
  const bool empty = is_empty(problem);
  const CudaPlan plan = empty ? CudaPlan{} : make_cuda_plan(problem, pass, chosen);
  return described(pass, problem, chosen.name, "sm_" + std::to_string(capability), covers, given.channels_last)
      .add_json("candidates", cuda_candidates_of(problem, pass, traits))
      .add_json("works", "{}")
      .add_json("tiles", object_of(empty ? Facts() : describe_cuda_plan(pass, plan)))
      .add("tasks", int64_t(plan.blocks))
      .add("workspace_bytes", int64_t(plan.workspace_bytes))
      .add("scratch_bytes", int64_t(0))
      .text();
}

// ---- calls as Python hands them over (the classes of these names in conv_ext/_C.py have the same fields)

struct PlanCall {
  const char *pass, *dtype, *algorithm, *precision;
  int64_t input[4], weight[4], output[4], stride[2], padding[4], dilation[2], groups;
  const int64_t *input_stride, *weight_stride;  // of four numbers; nullptr: dense
  int64_t channels_last, capability;
};

struct TracedTensor {
  const Symbol* sizes;
  int64_t dims;
  const char *dtype, *device, *unlike;
};
struct TracedList {
  const Symbol* values;
  int64_t count;
  operator List<Symbol>() const { return {values, size_t(count)}; }
};
struct TracedArguments {
  const char *pass, *precision, *activation;
  TracedTensor first, second;
  const TracedTensor *bias, *residual;
  TracedList size, stride, padding, dilation;
  Symbol groups;
  double low, high;
};

std::string plan_of(const PlanCall& call) {
  int count, index = 0;
  const TorchType* const types = torch_types(&count);
  while (index < kDTypes && strcmp(call.dtype, types[index].name) != 0) ++index;
  if (index == kDTypes) throw ValueError(text_of("dtype is not one that conv_ext computes: ", call.dtype));
  const auto* input = call.input;
  ConvProblem problem{input[0],         input[1],        input[2],        input[3],
                      call.weight[0],   call.weight[2],  call.weight[3],  call.output[2],
                      call.output[3],   call.stride[0],  call.stride[1],  call.dilation[0],
                      call.dilation[1], call.padding[0], call.padding[1], call.padding[2],
                      call.padding[3],  call.groups,     DType(index),    precision_of(DType(index), call.precision)};
  problem.channels_last = call.channels_last != 0;
  problem = problem.normalised();
  const Pass pass = pass_named(call.pass);
  if (call.capability > 0) return describe_cuda(pass, problem, call.algorithm, call.capability);
  const Buffers buffers = buffers_without_memory(problem, call.input_stride, call.weight_stride);
  const TensorSizes sizes = sizes_of(problem);
  problem.channels_last =
      is_channels_last(sizes.input, buffers.input.stride) || is_channels_last(sizes.weight, buffers.weight.stride);
  return describe(pass, problem, buffers, call.algorithm);
}

TracedOperand traced(const TracedTensor& tensor) {
  TracedOperand operand{{tensor.sizes, size_t(tensor.dims)}, tensor.dtype, 0, {}, tensor.unlike};
  int count;
  const TorchType* const types = torch_types(&count);
  while (operand.dtype < count && strcmp(types[operand.dtype].name, tensor.dtype) != 0) ++operand.dtype;
  uint32_t type = 0;
  check_torch(torch_parse_device_string(tensor.device, &type, &operand.device.index), "read the name of a device");
  operand.device.type = int32_t(type);
  return operand;
}

std::array<Symbol, 4> traced_size(const TracedArguments& call) {
  std::optional<TracedOperand> bias, residual;
  if (call.bias) bias = traced(*call.bias);
  if (call.residual) residual = traced(*call.residual);
  return result_size(pass_named(call.pass), traced(call.first), traced(call.second), bias ? &*bias : nullptr,
                     {call.size, call.stride, call.padding, call.dilation, call.groups, call.precision, "auto",
                      call.activation, nullptr, residual ? &*residual : nullptr, call.low, call.high});
}

std::string told(std::string_view what) {
  if (what == "known_isas") return joined(known_isas());
  if (what == "supported_isas") return joined(supported_isas());
  if (what == "available_isas") return available_isas().empty() ? "" : joined(available_isas());
  if (what == "isa") return kernel_library().machine.name;
  if (what == "compiler") return __VERSION__;
  throw ValueError(text_of("nothing is known of ", what));
}

}  // namespace
}  // namespace conv_ext

using namespace conv_ext;

CONV_EXT_C const char* conv_ext_error(int32_t* kind) {
  *kind = int32_t(failure);
  return error_text.c_str();
}

// Names with ", " between them, or one.
CONV_EXT_C const char* conv_ext_tell(const char* what) {
  return guarded<const char*>(nullptr, [&] { return (answer = told(what)).c_str(); });
}

// Loads the kernel library or the CUDA kernels of that path; without one the best kernel library that is available, or
// the one that CONV_EXT_ISA names.
CONV_EXT_C int32_t conv_ext_load(int32_t cuda, const char* path) {
  return guarded(-1, [&] {
    cuda ? load_cuda_library(path) : load_kernel_library(path ? path : chosen_library());
    return 0;
  });
}

// How one pass of a validated problem would be computed, on this processor or on a CUDA device: JSON.
CONV_EXT_C const char* conv_ext_plan(const PlanCall* call) {
  return guarded<const char*>(nullptr, [&] { return (answer = plan_of(*call)).c_str(); });
}

// Checks a call whose sizes may be symbolic, and gives the size of its result.
CONV_EXT_C int32_t conv_ext_result_size(const TracedArguments* call, const SymbolKeeper* keeper, Symbol* result) {
  const SymbolKeeper* const before = symbol_keeper;  // a keeper's answer may ask this function
  symbol_keeper = keeper;
  const int32_t status = guarded(-1, [&] {
    const std::array<Symbol, 4> size = traced_size(*call);
    for (size_t i = 0; i < 4; ++i) result[i] = size[i];
    return 0;
  });
  symbol_keeper = before;
  return status;
}

CONV_EXT_C void conv_ext_set_scratch_guard(int32_t on) { set_scratch_guard(on != 0); }
CONV_EXT_C int64_t conv_ext_fail_block(int64_t number) { return fail_block(number); }
