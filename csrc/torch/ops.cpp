// The validator: from tensors to a ConvProblem. Every message of an operator stands here, for calls that run and for
// those that are traced: its functions take sizes that are numbers or symbols (sizes.h).
#include <algorithm>
#include <cctype>

#include "../common/indexing.h"
#include "operators.h"

namespace conv_ext {
namespace {

template <class Int>
using Sizes = std::array<Int, 4>;

// (1, 2), as Python prints a tuple; a List itself prints as [1, 2].
template <class Int>
std::string tuple(const List<Int>& values) {
  Text text;
  return print(text, values, '(', ')').text();
}

// Python's name of a dtype.
template <class Int>
std::string name_of(const OperandOf<Int>& operand) {
  std::string name = operand.type_name;
  for (char& c : name) c = char(std::tolower(c));
  return name;
}

template <class Int>
DType dtype_of(const OperandOf<Int>& operand) {
  if (operand.dtype < kDTypes) return DType(operand.dtype);
  throw NotImplemented("conv_ext is not implemented for " + name_of(operand) +
                       "; supported: float32, float64, bfloat16, float16, complex64, complex128");
}

struct OperandNames {
  const char *first, *second, *second_dims, *first_dims;
};
constexpr OperandNames kNames[kPasses] = {
    {"input", "weight", "(K, C/groups, R, S)", "(N, C, H, W)"},
    {"grad_output", "weight", "(K, C/groups, R, S)", "(N, K, P, Q)"},
    {"grad_output", "input", "(N, C, H, W)", "(N, K, P, Q)"},
};

template <class Int>
void check_operands(Pass pass, const OperandOf<Int>& a, const OperandOf<Int>& b, const OperandOf<Int>* bias,
                    const OperandOf<Int>* residual) {
  using Tensor = OperandOf<Int>;
  const OperandNames& names = kNames[int(pass)];
  CONV_EXT_CHECK(a.sizes.size() == 4, "Expected 4D ", names.first, " ", names.first_dims, ", but got ", names.first,
                 " of size: ", a.sizes);
  CONV_EXT_CHECK(b.sizes.size() == 4, "Expected 4D ", names.second, " ", names.second_dims, ", but got ", names.second,
                 " of size: ", b.sizes);
  const auto strided = [](const Tensor& t, const char* name) {
    CONV_EXT_CHECK(t.unlike == nullptr, "Expected a strided ", name, ", but got ", t.unlike);
  };
  strided(a, names.first);
  strided(b, names.second);
  if (bias) strided(*bias, "bias");
  if (residual) strided(*residual, "residual");
  const auto together = [&](const Tensor& t, const char* name) {
    CONV_EXT_CHECK(a.device == t.device, "Expected all tensors to be on the same device, but got ", names.first, " on ",
                   a.device, " and ", name, " on ", t.device);
  };
  together(b, names.second);
  if (bias) together(*bias, "bias");
  if (residual) together(*residual, "residual");
  const auto alike = [&](const Tensor& t, const char* name) {
    const bool same = a.dtype == t.dtype && std::string_view(a.type_name) == t.type_name;
    CONV_EXT_CHECK(same, pass == Pass::Forward ? "Input" : names.first, " type (", name_of(a), ") and ", name,
                   " type (", name_of(t), ") should be the same");
  };
  alike(b, names.second);
  if (bias) alike(*bias, "bias");
  if (residual) alike(*residual, "residual");
}

// By the numbers of their enumeration.
constexpr std::string_view kActivations[] = {"none", "relu", "clamp", "silu", "hardswish"};

// A schema's SymInt[2] does not hold callers to a length.
template <class Int>
void check_length(const char* name, List<Int> values, size_t length) {
  CONV_EXT_CHECK(values.size() == length, "expected ", name, " to be a list of ", length, " values, got ",
                 tuple(values));
}

template <class Int>
bool all_at_least(List<Int> values, int64_t least) {
  return std::all_of(values.begin(), values.end(), [&](const Int& v) { return holds_at_least(v, least); });
}

template <class Int>
void check_settings(Pass pass, const OperandOf<Int>& first, const CallOf<Int>& call) {
  CONV_EXT_CHECK(call.precision == "ieee" || call.precision == "tf32" || call.precision == "bf16",
                 "precision must be one of ieee, tf32, bf16, got ", call.precision);
  CONV_EXT_CHECK(std::find(std::begin(kActivations), std::end(kActivations), call.activation) != std::end(kActivations),
                 "activation must be one of none, relu, clamp, silu, hardswish, got ", call.activation);
  CONV_EXT_CHECK(call.activation != "clamp" || call.low <= call.high,
                 "activation clamp needs bounds with low <= high, got low=", call.low, " and high=", call.high);
  CONV_EXT_CHECK(call.activation == "none" || !is_complex(dtype_of(first)), "activation ", call.activation,
                 " is for real numbers, got ", name_of(first));
  if (pass != Pass::Forward) check_length(pass == Pass::InputGrad ? "input_size" : "kernel_size", call.size, 2);
  check_length("stride", call.stride, 2);
  check_length("padding", call.padding, 4);
  check_length("dilation", call.dilation, 2);
  CONV_EXT_CHECK(holds_at_least(call.groups, 1),
                 "non-positive groups is not supported: groups must be at least 1, got ", call.groups);
  CONV_EXT_CHECK(all_at_least(call.stride, 1), "non-positive stride is not supported: stride must be positive, got ",
                 tuple(call.stride));
  CONV_EXT_CHECK(all_at_least(call.padding, 0),
                 "negative padding is not supported: (top, bottom, left, right) must not be negative, got ",
                 tuple(call.padding));
  CONV_EXT_CHECK(all_at_least(call.dilation, 1),
                 "non-positive dilation is not supported: dilation should be greater than zero, got ",
                 tuple(call.dilation));
  CONV_EXT_CHECK(pass != Pass::InputGrad || all_at_least(call.size, 0), "input_size must not be negative, got ",
                 tuple(call.size));
}

template <class Int>
void check_channels(Pass pass, List<Int> a, List<Int> b, List<Int> weight, const Int& groups) {
  if (pass == Pass::WeightGrad) {
    CONV_EXT_CHECK(holds_equal(b[1] % groups, 0), "Given groups=", groups, ", expected input", b,
                   " to have a number of channels divisible by ", groups, ", but got ", b[1], " channels instead");
  }
  CONV_EXT_CHECK(holds_at_least(weight[0], groups), "Given groups=", groups, ", expected weight to be at least ",
                 groups, " at dimension 0, but got weight of size ", weight, " instead");
  CONV_EXT_CHECK(holds_equal(weight[0] % groups, 0), "Given groups=", groups, ", expected weight to be divisible by ",
                 groups, " at dimension 0, but got weight of size ", weight, " instead");
  CONV_EXT_CHECK(all_at_least(weight.from(2), 1), "kernel size must be positive, got ", tuple(weight.from(2)));
  if (pass == Pass::Forward) {
    Int channels = 0;
    const bool fits = checked_mul(weight[1], groups, &channels);
    const auto expected = [&] { return fits ? text_of(channels) : std::string("more than 2^63 - 1"); };
    CONV_EXT_CHECK(fits && holds_equal(a[1], channels), "Given groups=", groups, ", weight of size ", weight,
                   ", expected input", a, " to have ", expected(), " channels, but got ", a[1], " channels instead");
  } else if (pass == Pass::InputGrad) {
    CONV_EXT_CHECK(holds_equal(a[1], weight[0]), "Given weight of size ", weight, ", expected grad_output", a,
                   " to have ", weight[0], " channels, but got ", a[1], " channels instead");
  } else {
    CONV_EXT_CHECK(holds_equal(a[0], b[0]),
                   "Expected grad_output and input to have the same batch size, but got grad_output of size ", a,
                   " and input of size ", b);
  }
}

template <class Int>
void check_elements(const char* name, List<Int> sizes) {
  CONV_EXT_CHECK(elements_fit(sizes), "number of elements exceeds 2^63 - 1: ", name, " of size ", sizes);
}

// The output's extent along both axes, everything checked on the way.
template <class Int>
std::array<Int, 2> output_size(List<Int> input, List<Int> weight, const CallOf<Int>& call) {
  Int kernel[2] = {0, 0}, padded[2] = {0, 0};
  const Int* pad = call.padding.data();
  for (int i = 0; i < 2; ++i)
    CONV_EXT_CHECK(
        checked_mul(call.dilation[i], weight[2 + i] - 1, &kernel[i]) && checked_add(kernel[i], 1, &kernel[i]),
        "effective kernel size exceeds 2^63 - 1: kernel size ", tuple(weight.from(2)), ", dilation ",
        tuple(call.dilation));
  for (int i = 0; i < 2; ++i)
    CONV_EXT_CHECK(
        checked_add(pad[2 * i], pad[2 * i + 1], &padded[i]) && checked_add(padded[i], input[2 + i], &padded[i]),
        "padded input size exceeds 2^63 - 1: input size ", tuple(input.from(2)), ", padding ", tuple(call.padding));
  for (int i = 0; i < 2; ++i)
    CONV_EXT_CHECK(holds_at_least(padded[i], kernel[i]), "Calculated padded input size per channel: (", padded[0],
                   " x ", padded[1], "). Kernel size: (", kernel[0], " x ", kernel[1],
                   "). Kernel size can't be greater than actual input size");
  const auto empty = [&](int d) { return known_equal(input[d], 0); };
  CONV_EXT_CHECK(!(empty(2) || empty(3)) || empty(0) || empty(1),
                 "Only zero batch or zero channel inputs are supported, but got input shape: ", input);
  return {(padded[0] - kernel[0]) / call.stride[0] + 1, (padded[1] - kernel[1]) / call.stride[1] + 1};
}

template <class Int>
struct AllSizes {
  Sizes<Int> input, weight, output;
};

// Every rule of a call; the sizes of the three tensors that take part.
template <class Int>
AllSizes<Int> checked_sizes(Pass pass, const OperandOf<Int>& first, const OperandOf<Int>& second,
                            const OperandOf<Int>* bias, const CallOf<Int>& call) {
  check_operands<Int>(pass, first, second, bias, call.residual);
  dtype_of(first);
  check_settings(pass, first, call);

  const List<Int> a = first.sizes, b = second.sizes;
  Sizes<Int> weight, input;
  if (pass == Pass::WeightGrad) {
    weight = {a[1], b[1] / call.groups, call.size[0], call.size[1]};
  } else {
    weight = {b[0], b[1], b[2], b[3]};
  }
  check_channels<Int>(pass, a, b, weight, call.groups);
  if (bias)
    CONV_EXT_CHECK(bias->sizes.size() == 1 && holds_equal(bias->sizes[0], weight[0]), "Given weight of size ",
                   List<Int>(weight), ", expected bias to be 1-dimensional with ", weight[0],
                   " elements, but got bias of size ", bias->sizes, " instead");
  if (pass == Pass::InputGrad) {
    Int channels = 0;
    CONV_EXT_CHECK(checked_mul(weight[1], call.groups, &channels),
                   "number of input channels exceeds 2^63 - 1: weight of size ", List<Int>(weight),
                   ", groups=", call.groups);
    input = {a[0], channels, call.size[0], call.size[1]};
  } else {
    const List<Int> x = pass == Pass::Forward ? a : b;
    input = {x[0], x[1], x[2], x[3]};
  }
  const auto [p, q] = output_size<Int>(input, weight, call);
  const Sizes<Int> output{input[0], weight[0], p, q};
  check_elements<Int>("input", input);
  check_elements<Int>("output", output);
  check_elements<Int>("weight", weight);
  if (call.residual != nullptr) {
    const List<Int> sizes = call.residual->sizes;
    bool same = sizes.size() == 4;
    for (size_t i = 0; i < 4 && same; ++i) same = holds_equal(sizes[i], output[i]);
    CONV_EXT_CHECK(same, "Expected residual of the result's size ", List<Int>(output),
                   ", but got residual of size: ", sizes);
  }
  if (pass != Pass::Forward)
    CONV_EXT_CHECK(holds_equal(a[2], p) && holds_equal(a[3], q),
                   pass == Pass::InputGrad ? "input_size " : "kernel_size ", tuple(call.size),
                   " gives an output of size ", List<Int>(output), ", but got grad_output of size ", a);
  return {input, weight, output};
}

}  // namespace

const char* pass_name(Pass pass) {
  constexpr const char* kPassNames[kPasses] = {"forward", "input_grad", "weight_grad"};
  return kPassNames[int(pass)];
}

Activation activation_of(std::string_view name) {
  return Activation(std::find(std::begin(kActivations), std::end(kActivations), name) - std::begin(kActivations));
}

Precision precision_of(DType dtype, std::string_view name) {
  if (dtype != DType::Float32 || name == "ieee") return Precision::Ieee;
  return name == "tf32" ? Precision::TF32 : Precision::BF16;
}

ConvProblem validate(Pass pass, const Operand& a, const Operand& b, const Operand* bias, const CallArguments& call) {
  const auto [input, weight, output] = checked_sizes<int64_t>(pass, a, b, bias, call);
  const DType dtype = dtype_of(a);
  return ConvProblem{input[0],         input[1],        input[2],        input[3],
                     weight[0],        weight[2],       weight[3],       output[2],
                     output[3],        call.stride[0],  call.stride[1],  call.dilation[0],
                     call.dilation[1], call.padding[0], call.padding[1], call.padding[2],
                     call.padding[3],  call.groups,     dtype,           precision_of(dtype, call.precision)}
      .normalised();
}

std::array<Symbol, 4> result_size(Pass pass, const TracedOperand& a, const TracedOperand& b, const TracedOperand* bias,
                                  const TracedCall& call) {
  const auto sizes = checked_sizes<Symbol>(pass, a, b, bias, call);
  return pass == Pass::Forward ? sizes.output : pass == Pass::InputGrad ? sizes.input : sizes.weight;
}

namespace {

// Why a forced algorithm does not run: it has another name, or a reason of its own. others: those of other_tensors.
template <class Own, class Others>
[[noreturn]] void refuse(const Own& candidates, const Others& others, const char* other_tensors, Pass pass,
                         const std::string& forced, const char* reason) {
  const auto is_among = [&](const auto& list) {
    return std::any_of(std::begin(list), std::end(list), [&](const auto& c) { return forced == c.name; });
  };
  std::string names = "auto";
  for (const auto& c : candidates) names += std::string(", ") + c.name;
  const std::string whose = is_among(others) ? std::string(", which is for ") + other_tensors : "";
  CONV_EXT_CHECK(forced == "auto" || is_among(candidates), "algorithm must be one of ", names, ", got ", forced, whose);
  throw std::runtime_error(text_of("algorithm ", forced, " cannot compute this ", pass_name(pass), ": ", reason));
}

}  // namespace

const Candidate& choose_or_throw(const PlanInput& input, std::string_view algorithm) {
  const std::string forced(algorithm);
  const char* reason = nullptr;
  const Candidate* candidate = choose(input, forced.c_str(), &reason);
  if (candidate == nullptr) refuse(kCandidates, kCudaCandidates, "CUDA tensors", input.pass, forced, reason);
  return *candidate;
}

const CudaCandidate& choose_cuda_or_throw(const ConvProblem& problem, Pass pass, const CudaTraits& traits,
                                          std::string_view algorithm) {
  const std::string forced(algorithm);
  const char* reason = nullptr;
  const CudaCandidate* candidate = choose_cuda(problem, pass, traits, forced.c_str(), &reason);
  if (candidate == nullptr) refuse(kCudaCandidates, kCandidates, "CPU tensors", pass, forced, reason);
  return *candidate;
}

}  // namespace conv_ext
