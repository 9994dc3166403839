// The operators' schemas, and the validator: from tensors to a ConvProblem. Every message a user can see stands here;
// conv_ext/checks.py is its twin over symbolic sizes.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <sstream>

#include "../common/indexing.h"
#include "operators.h"

namespace conv_ext {
namespace {

using at::IntArrayRef;
using at::Tensor;
using Sizes = std::array<int64_t, 4>;

// (1, 2), as Python prints a tuple; at::IntArrayRef itself prints as [1, 2].
std::string tuple(IntArrayRef values) {
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

void check_operands(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
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
  const auto together = [&](const Tensor& t, const char* name) {
    TORCH_CHECK(a.device() == t.device(), "Expected all tensors to be on the same device, but got ", names.first,
                " on ", a.device(), " and ", name, " on ", t.device());
  };
  together(b, names.second);
  if (bias) together(*bias, "bias");
  const auto alike = [&](const Tensor& t, const char* name) {
    TORCH_CHECK(a.scalar_type() == t.scalar_type(), pass == Pass::Forward ? "Input" : names.first, " type (",
                name_of(a.scalar_type()), ") and ", name, " type (", name_of(t.scalar_type()), ") should be the same");
  };
  alike(b, names.second);
  if (bias) alike(*bias, "bias");
}

void check_settings(Pass pass, at::ScalarType type, const CallArguments& call) {
  TORCH_CHECK(call.precision == "ieee" || call.precision == "tf32" || call.precision == "bf16",
              "precision must be one of ieee, tf32, bf16, got ", call.precision);
  TORCH_CHECK(call.activation == "none" || call.activation == "relu", "activation must be one of none, relu, got ",
              call.activation);
  TORCH_CHECK(call.activation == "none" || !at::isComplexType(type), "activation ", call.activation,
              " is for real numbers, got ", name_of(type));
  // A schema's SymInt[2] does not hold callers to a length.
  const auto check_length = [](const char* name, IntArrayRef values, size_t length) {
    TORCH_CHECK(values.size() == length, "expected ", name, " to be a list of ", length, " values, got ",
                tuple(values));
  };
  if (pass != Pass::Forward) check_length(pass == Pass::InputGrad ? "input_size" : "kernel_size", call.size, 2);
  check_length("stride", call.stride, 2);
  check_length("padding", call.padding, 4);
  check_length("dilation", call.dilation, 2);
  TORCH_CHECK(call.groups >= 1, "non-positive groups is not supported: groups must be at least 1, got ", call.groups);
  TORCH_CHECK(call.stride[0] >= 1 && call.stride[1] >= 1,
              "non-positive stride is not supported: stride must be positive, got ", tuple(call.stride));
  TORCH_CHECK(std::all_of(call.padding.begin(), call.padding.end(), [](int64_t v) { return v >= 0; }),
              "negative padding is not supported: (top, bottom, left, right) must not be negative, got ",
              tuple(call.padding));
  TORCH_CHECK(call.dilation[0] >= 1 && call.dilation[1] >= 1,
              "non-positive dilation is not supported: dilation should be greater than zero, got ",
              tuple(call.dilation));
  TORCH_CHECK(pass != Pass::InputGrad || (call.size[0] >= 0 && call.size[1] >= 0),
              "input_size must not be negative, got ", tuple(call.size));
}

void check_channels(Pass pass, const Tensor& a, const Tensor& b, const Sizes& weight, int64_t groups) {
  if (pass == Pass::WeightGrad) {
    TORCH_CHECK(b.size(1) % groups == 0, "Given groups=", groups, ", expected input", b.sizes(),
                " to have a number of channels divisible by ", groups, ", but got ", b.size(1), " channels instead");
  }
  TORCH_CHECK(weight[0] >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
              " at dimension 0, but got weight of size ", IntArrayRef(weight), " instead");
  TORCH_CHECK(weight[0] % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
              " at dimension 0, but got weight of size ", IntArrayRef(weight), " instead");
  TORCH_CHECK(weight[2] >= 1 && weight[3] >= 1, "kernel size must be positive, got ",
              tuple(IntArrayRef(weight).slice(2)));
  if (pass == Pass::Forward) {
    int64_t channels = 0;
    const bool fits = checked_mul(weight[1], groups, &channels);
    TORCH_CHECK(fits && a.size(1) == channels, "Given groups=", groups, ", weight of size ", IntArrayRef(weight),
                ", expected input", a.sizes(), " to have ", fits ? std::to_string(channels) : "more than 2^63 - 1",
                " channels, but got ", a.size(1), " channels instead");
  } else if (pass == Pass::InputGrad) {
    TORCH_CHECK(a.size(1) == weight[0], "Given weight of size ", IntArrayRef(weight), ", expected grad_output",
                a.sizes(), " to have ", weight[0], " channels, but got ", a.size(1), " channels instead");
  } else {
    TORCH_CHECK(a.size(0) == b.size(0),
                "Expected grad_output and input to have the same batch size, but got grad_output of size ", a.sizes(),
                " and input of size ", b.sizes());
  }
}

void check_elements(const char* name, IntArrayRef sizes) {
  int64_t elements = 1;
  bool fits = true;
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return;
  for (int64_t size : sizes) fits = fits && checked_mul(elements, size, &elements);
  TORCH_CHECK(fits, "number of elements exceeds 2^63 - 1: ", name, " of size ", sizes);
}

// The output's extent along both axes, everything checked on the way.
std::array<int64_t, 2> output_size(const Sizes& input, const Sizes& weight, const CallArguments& call) {
  int64_t kernel[2], padded[2];
  const int64_t* pad = call.padding.data();
  for (int i = 0; i < 2; ++i)
    TORCH_CHECK(checked_mul(call.dilation[i], weight[2 + i] - 1, &kernel[i]) && checked_add(kernel[i], 1, &kernel[i]),
                "effective kernel size exceeds 2^63 - 1: kernel size ", tuple(IntArrayRef(weight).slice(2)),
                ", dilation ", tuple(call.dilation));
  for (int i = 0; i < 2; ++i)
    TORCH_CHECK(checked_add(pad[2 * i], pad[2 * i + 1], &padded[i]) && checked_add(padded[i], input[2 + i], &padded[i]),
                "padded input size exceeds 2^63 - 1: input size ", tuple(IntArrayRef(input).slice(2)), ", padding ",
                tuple(call.padding));
  TORCH_CHECK(kernel[0] <= padded[0] && kernel[1] <= padded[1], "Calculated padded input size per channel: (",
              padded[0], " x ", padded[1], "). Kernel size: (", kernel[0], " x ", kernel[1],
              "). Kernel size can't be greater than actual input size");
  TORCH_CHECK((input[2] > 0 && input[3] > 0) || input[0] == 0 || input[1] == 0,
              "Only zero batch or zero channel inputs are supported, but got input shape: ", IntArrayRef(input));
  return {(padded[0] - kernel[0]) / call.stride[0] + 1, (padded[1] - kernel[1]) / call.stride[1] + 1};
}

}  // namespace

const char* pass_name(Pass pass) {
  constexpr const char* kPassNames[kPasses] = {"forward", "input_grad", "weight_grad"};
  return kPassNames[int(pass)];
}

Precision precision_of(DType dtype, std::string_view name) {
  if (dtype != DType::Float32 || name == "ieee") return Precision::Ieee;
  return name == "tf32" ? Precision::TF32 : Precision::BF16;
}

ConvProblem validate(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                     const CallArguments& call) {
  check_operands(pass, a, b, bias);
  const DType dtype = dtype_of(a.scalar_type());
  check_settings(pass, a.scalar_type(), call);

  Sizes weight{}, input{};
  if (pass == Pass::WeightGrad) {
    weight = {a.size(1), b.size(1) / call.groups, call.size[0], call.size[1]};
  } else {
    weight = {b.size(0), b.size(1), b.size(2), b.size(3)};
  }
  check_channels(pass, a, b, weight, call.groups);
  if (bias)
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight[0], "Given weight of size ", IntArrayRef(weight),
                ", expected bias to be 1-dimensional with ", weight[0], " elements, but got bias of size ",
                bias->sizes(), " instead");
  if (pass == Pass::InputGrad) {
    int64_t channels = 0;
    TORCH_CHECK(checked_mul(weight[1], call.groups, &channels),
                "number of input channels exceeds 2^63 - 1: weight of size ", IntArrayRef(weight),
                ", groups=", call.groups);
    input = {a.size(0), channels, call.size[0], call.size[1]};
  } else {
    const Tensor& x = pass == Pass::Forward ? a : b;
    input = {x.size(0), x.size(1), x.size(2), x.size(3)};
  }
  const auto [p, q] = output_size(input, weight, call);
  const Sizes output{input[0], weight[0], p, q};
  check_elements("input", input);
  check_elements("output", output);
  check_elements("weight", weight);
  if (pass != Pass::Forward)
    TORCH_CHECK(a.sizes() == IntArrayRef(output), pass == Pass::InputGrad ? "input_size " : "kernel_size ",
                tuple(call.size), " gives an output of size ", IntArrayRef(output), ", but got grad_output of size ",
                a.sizes());

  return ConvProblem{input[0],
                     input[1],
                     input[2],
                     input[3],
                     weight[0],
                     weight[2],
                     weight[3],
                     p,
                     q,
                     call.stride[0],
                     call.stride[1],
                     call.dilation[0],
                     call.dilation[1],
                     call.padding[0],
                     call.padding[1],
                     call.padding[2],
                     call.padding[3],
                     call.groups,
                     dtype,
                     precision_of(dtype, call.precision)}
      .normalised();
}

namespace {

// Why a forced algorithm does not run: it has another name, or a reason of its own.
template <class Candidates>
[[noreturn]] void refuse(const Candidates& candidates, Pass pass, const std::string& forced, const char* reason) {
  std::string names = "auto";
  bool known = forced == "auto";
  for (const auto& c : candidates) {
    names += std::string(", ") + c.name;
    known = known || forced == c.name;
  }
  TORCH_CHECK(known, "algorithm must be one of ", names, ", got ", forced);
  TORCH_CHECK(false, "algorithm ", forced, " cannot compute this ", pass_name(pass), ": ", reason);
}

}  // namespace

const Candidate& choose_or_throw(const PlanInput& input, std::string_view algorithm) {
  const std::string forced(algorithm);
  const char* reason = nullptr;
  const Candidate* candidate = choose(input, forced.c_str(), &reason);
  if (candidate == nullptr) refuse(kCandidates, input.pass, forced, reason);
  return *candidate;
}

const CudaCandidate& choose_cuda_or_throw(const ConvProblem& problem, Pass pass, const CudaTraits& traits,
                                          std::string_view algorithm) {
  const std::string forced(algorithm);
  const char* reason = nullptr;
  const CudaCandidate* candidate = choose_cuda(problem, pass, traits, forced.c_str(), &reason);
  if (candidate == nullptr) refuse(kCudaCandidates, pass, forced, reason);
  return *candidate;
}

TORCH_LIBRARY(conv_ext, library) {
  library.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, "
      "SymInt groups, str precision=\"ieee\", str algorithm=\"auto\", str activation=\"none\") -> Tensor",
      {at::Tag::pt2_compliant_tag});
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
