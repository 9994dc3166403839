// The operators' schemas, and the validator: from tensors to a ConvProblem. Every message of an operator stands here,
// for calls that run and for those that are traced: its functions take sizes that are numbers or symbols.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <sstream>

#include "../common/indexing.h"
#include "operators.h"

namespace conv_ext {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::ArrayRef;
using c10::SymBool;
using c10::SymInt;
template <class Int>
using Sizes = std::array<Int, 4>;

// An integer is an int64_t, or a SymInt that may be an expression over the sizes of a graph. These overloads are all
// that the rules need to know of the difference.
ArrayRef<int64_t> sizes_of(const Tensor& t, int64_t) { return t.sizes(); }
ArrayRef<SymInt> sizes_of(const Tensor& t, const SymInt&) { return t.sym_sizes(); }
bool equal(int64_t a, int64_t b) { return a == b; }
SymBool equal(const SymInt& a, const SymInt& b) { return a.sym_eq(b); }
bool at_least(int64_t a, int64_t b) { return a >= b; }
SymBool at_least(const SymInt& a, const SymInt& b) { return a.sym_ge(b); }
// A rule that must hold. Over symbols it becomes a guard of the graph, or an assertion in it where only a run can tell.
bool holds(bool condition) { return condition; }
bool holds(const SymBool& condition) { return condition.expect_true(__FILE__, __LINE__); }
// Whether a condition is true: not where only the run can tell.
bool known(bool condition) { return condition; }
bool known(const SymBool& condition) { return condition.guard_or_false(__FILE__, __LINE__); }

// What is symbolic is bounded already.
template <class Operation>
bool checked(const SymInt& a, const SymInt& b, SymInt* result, const Operation& operation) {
  const std::optional<int64_t> x = a.maybe_as_int(), y = b.maybe_as_int();
  if (!x || !y) {
    *result = operation(a, b);
    return true;
  }
  int64_t number = 0;
  const bool fits = operation(*x, *y, &number);
  *result = number;
  return fits;
}
struct Product {
  SymInt operator()(const SymInt& a, const SymInt& b) const { return a * b; }
  bool operator()(int64_t a, int64_t b, int64_t* result) const { return checked_mul(a, b, result); }
};
struct Sum {
  SymInt operator()(const SymInt& a, const SymInt& b) const { return a + b; }
  bool operator()(int64_t a, int64_t b, int64_t* result) const { return checked_add(a, b, result); }
};
bool checked_mul(const SymInt& a, const SymInt& b, SymInt* result) { return checked(a, b, result, Product()); }
bool checked_add(const SymInt& a, const SymInt& b, SymInt* result) { return checked(a, b, result, Sum()); }
using conv_ext::checked_add;
using conv_ext::checked_mul;

bool elements_fit(ArrayRef<int64_t> sizes) {
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return true;
  int64_t elements = 1;
  return std::all_of(sizes.begin(), sizes.end(), [&](int64_t size) { return checked_mul(elements, size, &elements); });
}
bool elements_fit(ArrayRef<SymInt> sizes) {
  const auto numbers = c10::asIntArrayRefSlowOpt(sizes);
  return !numbers || elements_fit(*numbers);
}

// (1, 2), as Python prints a tuple; an ArrayRef itself prints as [1, 2].
template <class Int>
std::string tuple(ArrayRef<Int> values) {
  std::ostringstream text("(", std::ios::ate);
  for (size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "") << values[i];
  return text.str() + ")";
}

// Python's name of a dtype.
std::string name_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kComplexFloat:
      return "complex64";
    case at::kComplexDouble:
      return "complex128";
    case at::kComplexHalf:
      return "complex32";
    case at::kByte:
      return "uint8";
    case at::kChar:
      return "int8";
    case at::kShort:
      return "int16";
    case at::kInt:
      return "int32";
    case at::kLong:
      return "int64";
    case at::kBool:
      return "bool";
    default:
      break;
  }
  std::string name = c10::toString(type);
  for (char& c : name) c = char(std::tolower(c));
  return name;
}

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::Float32;
    case at::kDouble:
      return DType::Float64;
    case at::kBFloat16:
      return DType::BFloat16;
    case at::kHalf:
      return DType::Float16;
    case at::kComplexFloat:
      return DType::Complex64;
    case at::kComplexDouble:
      return DType::Complex128;
    default:
      break;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, "conv_ext is not implemented for ", name_of(type),
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

void check_operands(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                    const Tensor* residual) {
  const OperandNames& names = kNames[int(pass)];
  TORCH_CHECK(a.dim() == 4, "Expected 4D ", names.first, " ", names.first_dims, ", but got ", names.first,
              " of size: ", a.sizes());
  TORCH_CHECK(b.dim() == 4, "Expected 4D ", names.second, " ", names.second_dims, ", but got ", names.second,
              " of size: ", b.sizes());
  const auto strided = [](const Tensor& t, const char* name) {
    TORCH_CHECK(t.layout() == at::kStrided && !t.is_quantized(), "Expected a strided ", name, ", but got ",
                t.is_quantized() ? "a quantized tensor" : "layout ", t.is_quantized() ? at::kStrided : t.layout());
  };
  strided(a, names.first);
  strided(b, names.second);
  if (bias) strided(*bias, "bias");
  if (residual) strided(*residual, "residual");
  const auto together = [&](const Tensor& t, const char* name) {
    TORCH_CHECK(a.device() == t.device(), "Expected all tensors to be on the same device, but got ", names.first,
                " on ", a.device(), " and ", name, " on ", t.device());
  };
  together(b, names.second);
  if (bias) together(*bias, "bias");
  if (residual) together(*residual, "residual");
  const auto alike = [&](const Tensor& t, const char* name) {
    TORCH_CHECK(a.scalar_type() == t.scalar_type(), pass == Pass::Forward ? "Input" : names.first, " type (",
                name_of(a.scalar_type()), ") and ", name, " type (", name_of(t.scalar_type()), ") should be the same");
  };
  alike(b, names.second);
  if (bias) alike(*bias, "bias");
  if (residual) alike(*residual, "residual");
}

// By the numbers of their enumeration.
constexpr std::string_view kActivations[] = {"none", "relu", "clamp", "silu", "hardswish"};

// A schema's SymInt[2] does not hold callers to a length.
template <class Int>
void check_length(const char* name, ArrayRef<Int> values, size_t length) {
  TORCH_CHECK(values.size() == length, "expected ", name, " to be a list of ", length, " values, got ", tuple(values));
}

template <class Int>
bool all_at_least(ArrayRef<Int> values, int64_t least) {
  return std::all_of(values.begin(), values.end(), [&](const Int& v) { return holds(at_least(v, least)); });
}

template <class Int>
void check_settings(Pass pass, at::ScalarType type, const CallOf<Int>& call) {
  TORCH_CHECK(call.precision == "ieee" || call.precision == "tf32" || call.precision == "bf16",
              "precision must be one of ieee, tf32, bf16, got ", call.precision);
  TORCH_CHECK(std::find(std::begin(kActivations), std::end(kActivations), call.activation) != std::end(kActivations),
              "activation must be one of none, relu, clamp, silu, hardswish, got ", call.activation);
  TORCH_CHECK(call.activation != "clamp" || call.low <= call.high,
              "activation clamp needs bounds with low <= high, got low=", call.low, " and high=", call.high);
  TORCH_CHECK(call.activation == "none" || !at::isComplexType(type), "activation ", call.activation,
              " is for real numbers, got ", name_of(type));
  if (pass != Pass::Forward) check_length(pass == Pass::InputGrad ? "input_size" : "kernel_size", call.size, 2);
  check_length("stride", call.stride, 2);
  check_length("padding", call.padding, 4);
  check_length("dilation", call.dilation, 2);
  TORCH_CHECK(holds(at_least(call.groups, 1)), "non-positive groups is not supported: groups must be at least 1, got ",
              call.groups);
  TORCH_CHECK(all_at_least(call.stride, 1), "non-positive stride is not supported: stride must be positive, got ",
              tuple(call.stride));
  TORCH_CHECK(all_at_least(call.padding, 0),
              "negative padding is not supported: (top, bottom, left, right) must not be negative, got ",
              tuple(call.padding));
  TORCH_CHECK(all_at_least(call.dilation, 1),
              "non-positive dilation is not supported: dilation should be greater than zero, got ",
              tuple(call.dilation));
  TORCH_CHECK(pass != Pass::InputGrad || all_at_least(call.size, 0), "input_size must not be negative, got ",
              tuple(call.size));
}

template <class Int>
void check_channels(Pass pass, ArrayRef<Int> a, ArrayRef<Int> b, ArrayRef<Int> weight, const Int& groups) {
  if (pass == Pass::WeightGrad) {
    TORCH_CHECK(holds(equal(b[1] % groups, 0)), "Given groups=", groups, ", expected input", b,
                " to have a number of channels divisible by ", groups, ", but got ", b[1], " channels instead");
  }
  TORCH_CHECK(holds(at_least(weight[0], groups)), "Given groups=", groups, ", expected weight to be at least ", groups,
              " at dimension 0, but got weight of size ", weight, " instead");
  TORCH_CHECK(holds(equal(weight[0] % groups, 0)), "Given groups=", groups, ", expected weight to be divisible by ",
              groups, " at dimension 0, but got weight of size ", weight, " instead");
  TORCH_CHECK(all_at_least(weight.slice(2), 1), "kernel size must be positive, got ", tuple(weight.slice(2)));
  if (pass == Pass::Forward) {
    Int channels = 0;
    const bool fits = checked_mul(weight[1], groups, &channels);
    const auto expected = [&] {
      return fits ? (std::ostringstream() << channels).str() : std::string("more than 2^63 - 1");
    };
    TORCH_CHECK(fits && holds(equal(a[1], channels)), "Given groups=", groups, ", weight of size ", weight,
                ", expected input", a, " to have ", expected(), " channels, but got ", a[1], " channels instead");
  } else if (pass == Pass::InputGrad) {
    TORCH_CHECK(holds(equal(a[1], weight[0])), "Given weight of size ", weight, ", expected grad_output", a,
                " to have ", weight[0], " channels, but got ", a[1], " channels instead");
  } else {
    TORCH_CHECK(holds(equal(a[0], b[0])),
                "Expected grad_output and input to have the same batch size, but got grad_output of size ", a,
                " and input of size ", b);
  }
}

template <class Int>
void check_elements(const char* name, ArrayRef<Int> sizes) {
  TORCH_CHECK(elements_fit(sizes), "number of elements exceeds 2^63 - 1: ", name, " of size ", sizes);
}

// The output's extent along both axes, everything checked on the way.
template <class Int>
std::array<Int, 2> output_size(ArrayRef<Int> input, ArrayRef<Int> weight, const CallOf<Int>& call) {
  Int kernel[2] = {0, 0}, padded[2] = {0, 0};
  const Int* pad = call.padding.data();
  for (int i = 0; i < 2; ++i)
    TORCH_CHECK(checked_mul(call.dilation[i], weight[2 + i] - 1, &kernel[i]) && checked_add(kernel[i], 1, &kernel[i]),
                "effective kernel size exceeds 2^63 - 1: kernel size ", tuple(weight.slice(2)), ", dilation ",
                tuple(call.dilation));
  for (int i = 0; i < 2; ++i)
    TORCH_CHECK(checked_add(pad[2 * i], pad[2 * i + 1], &padded[i]) && checked_add(padded[i], input[2 + i], &padded[i]),
                "padded input size exceeds 2^63 - 1: input size ", tuple(input.slice(2)), ", padding ",
                tuple(call.padding));
  for (int i = 0; i < 2; ++i)
    TORCH_CHECK(holds(at_least(padded[i], kernel[i])), "Calculated padded input size per channel: (", padded[0], " x ",
                padded[1], "). Kernel size: (", kernel[0], " x ", kernel[1],
                "). Kernel size can't be greater than actual input size");
  const auto empty = [&](int d) { return known(equal(input[d], 0)); };
  TORCH_CHECK(!(empty(2) || empty(3)) || empty(0) || empty(1),
              "Only zero batch or zero channel inputs are supported, but got input shape: ", input);
  return {(padded[0] - kernel[0]) / call.stride[0] + 1, (padded[1] - kernel[1]) / call.stride[1] + 1};
}

template <class Int>
struct AllSizes {
  Sizes<Int> input, weight, output;
};

// Every rule of a call; the sizes of the three tensors that take part.
template <class Int>
AllSizes<Int> checked_sizes(Pass pass, const Tensor& first, const Tensor& second, const std::optional<Tensor>& bias,
                            const CallOf<Int>& call) {
  check_operands(pass, first, second, bias, call.residual);
  dtype_of(first.scalar_type());
  check_settings(pass, first.scalar_type(), call);

  const ArrayRef<Int> a = sizes_of(first, Int(0)), b = sizes_of(second, Int(0));
  Sizes<Int> weight, input;
  if (pass == Pass::WeightGrad) {
    weight = {a[1], b[1] / call.groups, call.size[0], call.size[1]};
  } else {
    weight = {b[0], b[1], b[2], b[3]};
  }
  check_channels<Int>(pass, a, b, weight, call.groups);
  if (bias)
    TORCH_CHECK(bias->dim() == 1 && holds(equal(sizes_of(*bias, Int(0))[0], weight[0])), "Given weight of size ",
                ArrayRef<Int>(weight), ", expected bias to be 1-dimensional with ", weight[0],
                " elements, but got bias of size ", sizes_of(*bias, Int(0)), " instead");
  if (pass == Pass::InputGrad) {
    Int channels = 0;
    TORCH_CHECK(checked_mul(weight[1], call.groups, &channels),
                "number of input channels exceeds 2^63 - 1: weight of size ", ArrayRef<Int>(weight),
                ", groups=", call.groups);
    input = {a[0], channels, call.size[0], call.size[1]};
  } else {
    const ArrayRef<Int> x = pass == Pass::Forward ? a : b;
    input = {x[0], x[1], x[2], x[3]};
  }
  const auto [p, q] = output_size<Int>(input, weight, call);
  const Sizes<Int> output{input[0], weight[0], p, q};
  check_elements<Int>("input", input);
  check_elements<Int>("output", output);
  check_elements<Int>("weight", weight);
  if (call.residual != nullptr) {
    const ArrayRef<Int> sizes = sizes_of(*call.residual, Int(0));
    bool same = sizes.size() == 4;
    for (size_t i = 0; i < 4 && same; ++i) same = holds(equal(sizes[i], output[i]));
    TORCH_CHECK(same, "Expected residual of the result's size ", ArrayRef<Int>(output),
                ", but got residual of size: ", sizes);
  }
  if (pass != Pass::Forward)
    TORCH_CHECK(holds(equal(a[2], p)) && holds(equal(a[3], q)),
                pass == Pass::InputGrad ? "input_size " : "kernel_size ", tuple(call.size), " gives an output of size ",
                ArrayRef<Int>(output), ", but got grad_output of size ", a);
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

ConvProblem validate(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                     const CallArguments& call) {
  const auto [input, weight, output] = checked_sizes(pass, a, b, bias, call);
  const DType dtype = dtype_of(a.scalar_type());
  return ConvProblem{input[0],         input[1],        input[2],        input[3],
                     weight[0],        weight[2],       weight[3],       output[2],
                     output[3],        call.stride[0],  call.stride[1],  call.dilation[0],
                     call.dilation[1], call.padding[0], call.padding[1], call.padding[2],
                     call.padding[3],  call.groups,     dtype,           precision_of(dtype, call.precision)}
      .normalised();
}

std::vector<SymInt> result_size(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                                const SymbolicCall& call) {
  const auto sizes = checked_sizes(pass, a, b, bias, call);
  const auto& result = pass == Pass::Forward ? sizes.output : pass == Pass::InputGrad ? sizes.input : sizes.weight;
  return {result.begin(), result.end()};
}

namespace {

// Why a forced algorithm does not run: it has another name, or a reason of its own. others: those of other_tensors.
template <class List, class Others>
[[noreturn]] void refuse(const List& candidates, const Others& others, const char* other_tensors, Pass pass,
                         const std::string& forced, const char* reason) {
  const auto is_among = [&](const auto& list) {
    return std::any_of(std::begin(list), std::end(list), [&](const auto& c) { return forced == c.name; });
  };
  std::string names = "auto";
  for (const auto& c : candidates) names += std::string(", ") + c.name;
  const std::string whose = is_among(others) ? std::string(", which is for ") + other_tensors : "";
  TORCH_CHECK(forced == "auto" || is_among(candidates), "algorithm must be one of ", names, ", got ", forced, whose);
  TORCH_CHECK(false, "algorithm ", forced, " cannot compute this ", pass_name(pass), ": ", reason);
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

TORCH_LIBRARY(conv_ext, library) {
  library.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, "
      "SymInt groups, str precision=\"ieee\", str algorithm=\"auto\", str activation=\"none\", "
      "Tensor? residual=None, float low=0, float high=0) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "forward_packed(Tensor input, Tensor weight, Tensor packed, Tensor? bias, SymInt[2] stride, SymInt[4] padding, "
      "SymInt[2] dilation, SymInt groups, str precision=\"ieee\", str algorithm=\"auto\", str activation=\"none\", "
      "Tensor? residual=None, float low=0, float high=0) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "pack(Tensor weight, Tensor input, int[2] stride, int[4] padding, int[2] dilation, int groups, "
      "str precision=\"ieee\", str algorithm=\"auto\") -> Tensor");
  library.def(
      "input_grad(Tensor grad_output, Tensor weight, SymInt[2] input_size, SymInt[2] stride, SymInt[4] padding, "
      "SymInt[2] dilation, SymInt groups, str precision=\"ieee\", str algorithm=\"auto\") -> Tensor",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "weight_grad(Tensor grad_output, Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[4] padding, "
      "SymInt[2] dilation, SymInt groups, str precision=\"ieee\", str algorithm=\"auto\") -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

}  // namespace conv_ext
