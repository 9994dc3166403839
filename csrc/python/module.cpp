// conv_ext._C: build information, instruction sets and plans for Python, and the fast functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "../common/merge.h"
#include "../torch/fastcall.h"
#include "../torch/old_glibc.h"
#include "../torch/operators.h"

namespace py = pybind11;

namespace conv_ext {
namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["python"] = PY_VERSION;
  info["compiler"] = __VERSION__;
  info["cplusplus"] = __cplusplus;
  return info;
}

Pass pass_named(const std::string& name) {
  for (const Pass pass : {Pass::Forward, Pass::InputGrad, Pass::WeightGrad})
    if (name == pass_name(pass)) return pass;
  throw py::value_error("pass must be forward, input_grad or weight_grad, got " + name);
}

using SymInts = std::vector<c10::SymInt>;

SymInts result_size_of(const std::string& name, const at::Tensor& first, const at::Tensor& second,
                       const std::optional<at::Tensor>& bias, const SymInts& size, const SymInts& stride,
                       const SymInts& padding, const SymInts& dilation, const c10::SymInt& groups,
                       const std::string& precision, const std::string& activation,
                       const std::optional<at::Tensor>& residual, double low, double high) {
  return result_size(pass_named(name), first, second, bias,
                     {size, stride, padding, dilation, groups, precision, "auto", activation, nullptr,
                      residual ? &*residual : nullptr, low, high});
}

// The three tensors as explain() knows them: how they lie, without memory.
Buffers buffers_without_memory(const ConvProblem& z, const std::vector<int64_t>& input_stride,
                               const std::vector<int64_t>& weight_stride) {
  const Strides dense = dense_strides(z);
  Buffers buffers{};
  for (int d = 0; d < 4; ++d) {
    buffers.input.stride[d] = input_stride.empty() ? dense.input[d] : input_stride[d];
    buffers.weight.stride[d] = weight_stride.empty() ? dense.weight[d] : weight_stride[d];
    buffers.output.stride[d] = dense.output[d];
  }
  return buffers;
}

py::object text_or_none(const char* text) { return text ? py::object(py::str(text)) : py::none(); }

// Who could compute the problem, in the order of the list: (name, reason or None, whether it can be forced, cycles that
// it is estimated to take or None where nothing is known of them).
py::list candidates_of(const PlanInput& input) {
  py::list list;
  for (const Candidate& candidate : kCandidates) {
    const char* const reason = candidate.declines(input);
    const double cycles = candidate.cycles(input);
    // Nothing: it is taken wherever it can be, as bfloat16 is by AMX.
    const bool known = reason == nullptr && cycles > 0 && cycles < kMostCycles / 2;
    list.append(py::make_tuple(candidate.name, text_or_none(reason), reason == nullptr,
                               known ? py::object(py::float_(cycles)) : py::none()));
  }
  return list;
}
// On CUDA the first that neither declines nor yields runs.
py::list cuda_candidates_of(const ConvProblem& problem, Pass pass, const CudaTraits& traits) {
  py::list list;
  for (const CudaCandidate& candidate : kCudaCandidates) {
    const char* reason = candidate.declines(problem, pass, traits);
    const bool possible = reason == nullptr;
    if (possible) reason = candidate.yields(problem, pass, traits);
    list.append(py::make_tuple(candidate.name, text_or_none(reason), possible, py::none()));
  }
  return list;
}

// What the estimates count, for who fits their cycles: name: (loops, counts).
py::dict works_of(const PlanInput& input) {
  py::dict dict;
  for (const Candidate& candidate : kCandidates) {
    const Work work = candidate.work_of(input);
    if (work.nest == Nest::Never) continue;
    dict[candidate.name] = py::make_tuple(nest_name(work.nest), std::vector<double>(work.count, work.count + kCounts));
  }
  return dict;
}

bool is_empty(const ConvProblem& z) {
  return z.input_elements() == 0 || z.weight_elements() == 0 || z.output_elements() == 0;
}

py::dict dict_of(const Facts& facts) {
  py::dict dict;
  for (const auto& [name, value] : facts) dict[name] = py::cast(value);
  return dict;
}

py::dict describe(Pass pass, ConvProblem problem, Buffers buffers, const std::string& algorithm) {
  const bool merged = merge_kernel_into_channels(&problem, &buffers);
  const Machine& machine = kernel_library().machine;
  const Strides strides = strides_of(problem, buffers);
  const PlanInput input{problem, pass, machine, strides};
  const Candidate& chosen = choose_or_throw(input, algorithm);
  const bool empty = is_empty(problem);
  const Plan plan = empty ? Plan{} : make_plan(input, chosen);
  Facts facts;
  if (!empty) chosen.describe(input, plan, &facts);
  py::dict text;
  text["pass"] = pass_name(pass);
  text["algorithm"] = chosen.name;
  text["isa"] = machine.name;
  text["candidates"] = candidates_of(input);
  text["works"] = works_of(input);
  text["flops"] = problem.flops();
  text["bytes"] = problem.bytes();
  text["as_1x1"] = merged;
  text["channels_last"] = problem.channels_last;
  text["tiles"] = dict_of(facts);
  text["tasks"] = empty ? 0 : plan.tasks;
  text["workspace_bytes"] = plan.workspace_bytes;
  text["scratch_bytes"] = plan.scratch_bytes;
  return text;
}

// The same for a CUDA device of that compute capability (90: 9.0), which need not be there.
py::dict describe_cuda(Pass pass, const ConvProblem& given, const std::string& algorithm, int64_t capability) {
  const bool covers = given.kernel_covers_input();
  const ConvProblem problem = covers ? given.as_1x1() : given;
  const CudaTraits traits{capability};
  const CudaCandidate& chosen = choose_cuda_or_throw(problem, pass, traits, algorithm);
  const bool empty = is_empty(problem);
  const CudaPlan plan = empty ? CudaPlan{} : make_cuda_plan(problem, pass, chosen);
  py::dict text;
  text["pass"] = pass_name(pass);
  text["algorithm"] = chosen.name;
  text["isa"] = "sm_" + std::to_string(capability);
  text["candidates"] = cuda_candidates_of(problem, pass, traits);
  text["works"] = py::dict();
  text["flops"] = problem.flops();
  text["bytes"] = problem.bytes();
  text["as_1x1"] = covers;
  text["channels_last"] = given.channels_last;
  text["tiles"] = dict_of(empty ? Facts() : describe_cuda_plan(pass, plan));
  text["tasks"] = plan.blocks;
  text["workspace_bytes"] = plan.workspace_bytes;
  text["scratch_bytes"] = 0;
  return text;
}

// Sizes must come from a call that the validator has passed.
py::dict plan_of(const std::string& name, const std::string& dtype, std::vector<int64_t> input,
                 std::vector<int64_t> weight, std::vector<int64_t> output, std::vector<int64_t> stride,
                 std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                 const std::string& algorithm, const std::string& precision, bool channels_last, int64_t capability,
                 std::vector<int64_t> input_stride, std::vector<int64_t> weight_stride) {
  constexpr const char* kDTypeNames[kDTypes] = {"float32", "float64", "bfloat16", "float16", "complex64", "complex128"};
  int index = 0;
  while (index < kDTypes && dtype != kDTypeNames[index]) ++index;
  if (index == kDTypes) throw py::value_error("dtype is not one that conv_ext computes: " + dtype);
  if (input.size() != 4 || weight.size() != 4 || output.size() != 4 || stride.size() != 2 || padding.size() != 4 ||
      dilation.size() != 2)
    throw py::value_error("plan takes three 4-D sizes, and 2, 4 and 2 ints of stride, padding and dilation");
  if (input_stride.size() % 4 != 0 || input_stride.size() > 4 || weight_stride.size() != input_stride.size())
    throw py::value_error("plan takes four strides each of input and weight, or none");
  ConvProblem problem{input[0],   input[1],    input[2],    input[3],     weight[0],
                      weight[2],  weight[3],   output[2],   output[3],    stride[0],
                      stride[1],  dilation[0], dilation[1], padding[0],   padding[1],
                      padding[2], padding[3],  groups,      DType(index), precision_of(DType(index), precision)};
  problem.channels_last = channels_last;
  problem = problem.normalised();
  if (capability > 0) return describe_cuda(pass_named(name), problem, algorithm, capability);
  const Buffers buffers = buffers_without_memory(problem, input_stride, weight_stride);
  const TensorSizes sizes = sizes_of(problem);
  problem.channels_last =
      is_channels_last(sizes.input, buffers.input.stride) || is_channels_last(sizes.weight, buffers.weight.stride);
  return describe(pass_named(name), problem, buffers, algorithm);
}

}  // namespace
}  // namespace conv_ext

PYBIND11_MODULE(_C, module) {
  using namespace conv_ext;
  module.doc() = "The compiled part of conv_ext. Import conv_ext instead: it checks the build and loads the kernels.";
  module.def("build_info", build_info, "What this module was compiled with.");
  module.def("known_isas", known_instruction_sets, "Instruction sets that there are, the best first.");
  module.def("supported_isas", supported_instruction_sets, "Those that this processor can run.");
  module.def("available_isas", available_instruction_sets, "Those of them that this build holds.");
  module.def("load_chosen_kernel_library", load_chosen_kernel_library,
             "Loads the best that is available, or the one that CONV_EXT_ISA names; RuntimeError where there is none.");
  module.def("load_kernel_library", load_kernel_library, py::arg("path"));
  module.def("load_cuda_library", load_cuda_library, py::arg("path"));
  module.def("isa", [] { return kernel_library().machine.name; }, "The instruction set of the loaded kernel library.");
  module.def("set_scratch_guard", set_scratch_guard, py::arg("on"),
             "For tests: every scratch block and workspace ends at a page that cannot be touched.");
  module.def("fail_block", fail_block, py::arg("number"),
             "For tests: of the blocks of scratch and workspace that are asked for from now on, the one with this "
             "number cannot be had (negative: all can). Returns what was left of the last number: negative once it was "
             "reached.");
  module.def(
      "result_size", torch::wrap_pybind_function(result_size_of), py::arg("pass_name"), py::arg("first"),
      py::arg("second"), py::arg("bias"), py::arg("size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("precision"), py::arg("activation") = "none", py::arg("residual") = py::none(),
      py::arg("low") = 0.0, py::arg("high") = 0.0,
      "Checks a call of an operator, whose sizes may be symbolic, and gives the size of its result. size: (H, W) "
      "for input_grad, (R, S) for weight_grad, () for forward.");
  module.def("plan", plan_of, py::arg("pass_name"), py::arg("dtype"), py::arg("input"), py::arg("weight"),
             py::arg("output"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
             py::arg("algorithm") = "auto", py::arg("precision") = "ieee", py::arg("channels_last") = false,
             py::arg("capability") = 0, py::arg("input_stride") = std::vector<int64_t>(),
             py::arg("weight_stride") = std::vector<int64_t>(),
             "How one pass of a validated problem would be computed: on this processor, or with a capability (90: 9.0) "
             "on a CUDA device.");
  add_fast_functions(module.ptr());
}
