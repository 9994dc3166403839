// conv_ext._C: build information, instruction sets and plans for Python, and the fast functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../torch/fastcall.h"
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

// Asks Linux for the tiles' registers, which a process has on request only.
bool tiles_are_allowed() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// Instruction sets that this processor and its operating system can run, the best first.
std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && tiles_are_allowed())
    names.push_back("amx");
  if (bf16) names.push_back("avx512_bf16");
  if (avx512) names.push_back("avx512");
  if (avx2) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

Pass pass_named(const std::string& name) {
  for (const Pass pass : {Pass::Forward, Pass::InputGrad, Pass::WeightGrad})
    if (name == pass_name(pass)) return pass;
  throw py::value_error("pass must be forward, input_grad or weight_grad, got " + name);
}

py::dict describe(Pass pass, const ConvProblem& given, const std::string& algorithm) {
  const bool covers = given.kernel_covers_input();
  const ConvProblem problem = covers ? given.as_1x1() : given;
  const IsaTraits& isa = kernel_library().isa;
  const Candidate& chosen = choose_or_throw(problem, pass, isa, algorithm);
  py::list candidates;
  for (const Candidate& candidate : kCandidates) {
    const char* reason = candidate.declines(problem, pass, isa);
    const bool possible = reason == nullptr;
    if (possible) reason = candidate.yields(problem, pass, isa);
    candidates.append(py::make_tuple(candidate.name, reason ? py::object(py::str(reason)) : py::none(), possible));
  }
  py::dict text;
  text["pass"] = pass_name(pass);
  text["algorithm"] = chosen.name;
  text["isa"] = isa.name;
  text["candidates"] = candidates;
  text["flops"] = problem.flops();
  text["bytes"] = problem.bytes();
  py::dict tiles;
  const bool empty = problem.input_elements() == 0 || problem.weight_elements() == 0 || problem.output_elements() == 0;
  const Plan plan = empty ? Plan{} : make_plan(problem, pass, isa, chosen);
  const auto blocks_of_weight_grad = [&] {
    tiles["K/g"] = plan.tile_k;
    tiles["C/g"] = plan.tile_c;
    tiles["splits"] = plan.splits;
  };
  if (!empty && (chosen.algorithm == Algorithm::Depthwise || chosen.algorithm == Algorithm::Grouped)) {
    tiles["rows"] = plan.tile_h;
    tiles["columns"] = plan.tile_w;
    if (pass == Pass::WeightGrad) tiles["splits"] = plan.splits;
  }
  if (!empty && chosen.algorithm == Algorithm::Winograd) {
    const std::string outputs = std::to_string(plan.outputs), filter = std::to_string(plan.filter);
    tiles["transform"] = "F(" + outputs + "x" + outputs + ", " + filter + "x" + filter + ")";
    tiles["rows"] = plan.tile_h * plan.outputs;
    tiles["columns"] = plan.tile_w * plan.outputs;
    tiles["images"] = plan.images;
    if (pass == Pass::WeightGrad) {
      blocks_of_weight_grad();
    } else {
      tiles["first"] = plan.weights_first ? "weights" : "source";
    }
  }
  if (!empty && chosen.algorithm == Algorithm::Broadcast) {
    tiles["rows"] = plan.tile_h;
    tiles["columns"] = plan.tile_w;
    tiles["images"] = plan.images;
  }
  if (!empty && chosen.algorithm == Algorithm::Panels && pass == Pass::WeightGrad) {
    tiles["rows"] = plan.tile_h;
    tiles["columns"] = plan.tile_w;
    blocks_of_weight_grad();
  }
  if (!empty && (chosen.algorithm == Algorithm::Direct || chosen.algorithm == Algorithm::ImplicitGemm)) {
    tiles["rows"] = plan.tile_h;
    tiles["columns"] = plan.tile_w;
    tiles["images"] = plan.images;
    if (pass == Pass::WeightGrad) {
      blocks_of_weight_grad();
    } else {
      tiles["channels"] = plan.task_m;
      if (chosen.algorithm == Algorithm::Direct) tiles["lanes"] = plan.flat ? "across rows" : "within rows";
    }
  }
  text["as_1x1"] = covers;
  text["tiles"] = tiles;
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
  py::list candidates;
  for (const CudaCandidate& candidate : kCudaCandidates) {
    const char* reason = candidate.declines(problem, pass, traits);
    const bool possible = reason == nullptr;
    if (possible) reason = candidate.yields(problem, pass, traits);
    candidates.append(py::make_tuple(candidate.name, reason ? py::object(py::str(reason)) : py::none(), possible));
  }
  const bool empty = problem.input_elements() == 0 || problem.weight_elements() == 0 || problem.output_elements() == 0;
  const CudaPlan plan = empty ? CudaPlan{} : make_cuda_plan(problem, pass, chosen);
  py::dict tiles, text;
  for (const CudaFact& fact : empty ? std::vector<CudaFact>() : describe_cuda_plan(pass, plan))
    tiles[fact.name] = fact.word.empty() ? py::object(py::int_(fact.number)) : py::object(py::str(fact.word));
  text["pass"] = pass_name(pass);
  text["algorithm"] = chosen.name;
  text["isa"] = "sm_" + std::to_string(capability);
  text["candidates"] = candidates;
  text["flops"] = problem.flops();
  text["bytes"] = problem.bytes();
  text["as_1x1"] = covers;
  text["tiles"] = tiles;
  text["tasks"] = plan.blocks;
  text["workspace_bytes"] = plan.workspace_bytes;
  text["scratch_bytes"] = 0;
  return text;
}

// Sizes must come from a call that the validator has passed.
py::dict plan_of(const std::string& name, const std::string& dtype, std::vector<int64_t> input,
                 std::vector<int64_t> weight, std::vector<int64_t> output, std::vector<int64_t> stride,
                 std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                 const std::string& algorithm, const std::string& precision, bool channels_last, int64_t capability) {
  constexpr const char* kDTypeNames[kDTypes] = {"float32", "float64", "bfloat16", "float16", "complex64", "complex128"};
  int index = 0;
  while (index < kDTypes && dtype != kDTypeNames[index]) ++index;
  if (index == kDTypes) throw py::value_error("dtype is not one that conv_ext computes: " + dtype);
  if (input.size() != 4 || weight.size() != 4 || output.size() != 4 || stride.size() != 2 || padding.size() != 4 ||
      dilation.size() != 2)
    throw py::value_error("plan takes three 4-D sizes, and 2, 4 and 2 ints of stride, padding and dilation");
  ConvProblem problem{input[0],   input[1],    input[2],    input[3],     weight[0],
                      weight[2],  weight[3],   output[2],   output[3],    stride[0],
                      stride[1],  dilation[0], dilation[1], padding[0],   padding[1],
                      padding[2], padding[3],  groups,      DType(index), precision_of(DType(index), precision)};
  problem.channels_last = channels_last;
  problem = problem.normalised();
  return capability > 0 ? describe_cuda(pass_named(name), problem, algorithm, capability)
                        : describe(pass_named(name), problem, algorithm);
}

}  // namespace
}  // namespace conv_ext

PYBIND11_MODULE(_C, module) {
  using namespace conv_ext;
  module.doc() = "The compiled part of conv_ext. Import conv_ext instead: it checks the build and loads the kernels.";
  module.def("build_info", build_info, "What this module was compiled with.");
  module.def("supported_isas", supported_isas, "Instruction sets that this processor can run, the best first.");
  module.def("load_kernel_library", load_kernel_library, py::arg("path"));
  module.def("isa", [] { return kernel_library().isa.name; }, "The instruction set of the loaded kernel library.");
  module.def("set_scratch_guard", set_scratch_guard, py::arg("on"),
             "For tests: every scratch block and workspace ends at a page that cannot be touched.");
  module.def("fail_block", fail_block, py::arg("number"),
             "For tests: of the blocks of scratch and workspace that are asked for from now on, the one with this "
             "number cannot be had (negative: all can). Returns what was left of the last number: negative once it was "
             "reached.");
  module.def("plan", plan_of, py::arg("pass_name"), py::arg("dtype"), py::arg("input"), py::arg("weight"),
             py::arg("output"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
             py::arg("algorithm") = "auto", py::arg("precision") = "ieee", py::arg("channels_last") = false,
             py::arg("capability") = 0,
             "How one pass of a validated problem would be computed: on this processor, or with a capability (90: 9.0) "
             "on a CUDA device.");
  add_fast_functions(module.ptr());
}
