// The three operators on tensors: what the dispatcher's kernels and the fast path of the Python layer both call.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../cpu/candidates.h"
#include "../cpu/kernels.h"
#include "../cuda/plan.h"
#include "tensor.h"

namespace conv_ext {

// Everything of a call but its tensors. `size`: (H, W) for input_grad, (R, S) for weight_grad, unused by forward.
template <class Int>
struct CallOf {
  List<Int> size, stride, padding, dilation;
  Int groups;
  std::string_view precision, algorithm, activation;
  const Operand* packed = nullptr;  // what `pack` made of the weight
  // Added to the result of forward before the activation.
  const std::conditional_t<std::is_same_v<Int, int64_t>, Operand, OperandOf<Int>>* residual = nullptr;
  double low = 0, high = 0;  // of activation clamp
};
using CallArguments = CallOf<int64_t>;
using TracedOperand = OperandOf<Symbol>;  // of a call that is traced: sizes may be symbols
using TracedCall = CallOf<Symbol>;

// The activation of that name (one of none, relu, clamp, silu, hardswish).
Activation activation_of(std::string_view name);

// The precision of that name (one of ieee, tf32, bf16) as far as it concerns the dtype.
Precision precision_of(DType dtype, std::string_view name);

// Checks every argument and gives the problem that they describe. first, second: input and weight (forward),
// grad_output and weight (input_grad), grad_output and input (weight_grad). Raises what the user sees.
ConvProblem validate(Pass pass, const Operand& first, const Operand& second, const Operand* bias,
                     const CallArguments& call);

// The same checks over sizes that may be symbolic; gives the size of the result.
std::array<Symbol, 4> result_size(Pass pass, const TracedOperand& first, const TracedOperand& second,
                                  const TracedOperand* bias, const TracedCall& call);

// What conv_ext's module for the fast road, a library of its own, takes from that of the operators; all else is hidden.
#pragma GCC visibility push(default)

// Validates, plans, allocates the result in the memory format that F.conv2d would choose, and runs the pass.
using RunPass = Tensor (*)(Pass pass, const Operand& first, const Operand& second, const Operand* bias,
                           const CallArguments& call);
Tensor run_cpu(Pass pass, const Operand& first, const Operand& second, const Operand* bias, const CallArguments& call);
// On CUDA: cuda.cpp, or without_cuda.cpp, which says how to build the kernels.
Tensor run_cuda(Pass pass, const Operand& first, const Operand& second, const Operand* bias, const CallArguments& call);

const char* pass_name(Pass pass);

#pragma GCC visibility pop

// What a forward makes of the weight before it multiplies, for `forward_packed` of inputs like this one, of any number
// of images: bytes that say what they are for, and what follows; none where the plan reads the weight where it lies.
Tensor pack_cpu(const Operand& input, const Operand& weight, const CallArguments& call);

// The plan's answer, or an error that gives the algorithm's own reason.
const Candidate& choose_or_throw(const PlanInput& input, std::string_view algorithm);
const CudaCandidate& choose_cuda_or_throw(const ConvProblem& problem, Pass pass, const CudaTraits& traits,
                                          std::string_view algorithm);

// The kernel library that is in use, the chosen one (instruction_sets.h) where none was loaded before; loading replaces
// it. Raises where there is none, or it does not load.
const KernelLibrary& kernel_library();
void load_kernel_library(const std::string& path);
// The same for the CUDA kernels of a build that has them.
void load_cuda_library(const std::string& path);

// For tests: every scratch block and workspace ends at a page that cannot be touched.
void set_scratch_guard(bool on);
// For tests: of the blocks of scratch and workspace that are asked for from now on, the one with this number cannot be
// had (negative: all can). What was left of the number before: negative where that block has been asked for.
int64_t fail_block(int64_t number);

}  // namespace conv_ext
