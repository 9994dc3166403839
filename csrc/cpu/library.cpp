// The one symbol of a kernel library: its instruction set's traits and its entry point.
#include "pass.h"

namespace conv_ext {
namespace {

#if defined(__AVX512BF16__)
constexpr const char* kName = "avx512_bf16";
#elif defined(__AVX512F__)
constexpr const char* kName = "avx512";
#elif defined(__AVX2__)
constexpr const char* kName = "avx2";
#else
constexpr const char* kName = "baseline";
#endif

void run(const ConvProblem& problem, Pass pass, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  constexpr RunPass kPass[kPasses] = {run_forward, run_input_grad, run_weight_grad};
  kPass[int(pass)](problem, plan, buffers, executor);
}

#if defined(__AVX512BF16__)
constexpr bool kBf16Dot = true;
#else
constexpr bool kBf16Dot = false;
#endif

constexpr KernelLibrary kLibrary = {{kName, kVectorBytes, kGatherM, kGatherV, kDotM, kDotT, kBf16Dot}, run};

}  // namespace
}  // namespace conv_ext

extern "C" __attribute__((visibility("default"))) const conv_ext::KernelLibrary* conv_ext_kernel_library() {
  return &conv_ext::kLibrary;
}
