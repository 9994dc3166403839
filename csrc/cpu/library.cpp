// The one symbol of a kernel library: its instruction set's traits and its entry point.
#include "panels/tile.h"
#include "base/tile.h"
#include "implicit_gemm/dot_bf16.h"
#include "pass.h"

namespace conv_ext {

#if defined(CONV_EXT_WITNESS)
Witness witness{};
#endif

namespace {

#if defined(CONV_EXT_AMX_EMULATED)
constexpr const char* kName = "amx-emulated";
#elif defined(__AMX_BF16__)
constexpr const char* kName = "amx";
#elif defined(__AVX512BF16__)
constexpr const char* kName = "avx512_bf16";
#elif defined(__AVX512F__)
constexpr const char* kName = "avx512";
#elif defined(__AVX2__)
constexpr const char* kName = "avx2";
#else
constexpr const char* kName = "baseline";
#endif

void run(const ConvProblem& problem, Pass pass, const Plan& plan, const Buffers& buffers, const Executor& executor) {
#define CONV_EXT_NAME(Enumerator, folder) select_##folder,
  constexpr RunPlan (*kSelect[])(Pass, DType) = {CONV_EXT_ALGORITHMS(CONV_EXT_NAME)};
#undef CONV_EXT_NAME
#if defined(CONV_EXT_WITNESS)
  witness = {buffers.workspace, 0, 0, nullptr};
#endif
  kSelect[int(plan.algorithm)](pass, problem.dtype)(problem, plan, buffers, executor);
}

#if defined(CONV_EXT_AMX)
constexpr Bf16Dot kBf16Dot = Bf16Dot::Tiles;
#elif defined(CONV_EXT_BF16_DOT)
constexpr Bf16Dot kBf16Dot = Bf16Dot::Vectors;
#else
constexpr Bf16Dot kBf16Dot = Bf16Dot::None;
#endif

constexpr KernelLibrary kLibrary = {
    {kName, kVectorBytes, kGatherM, kGatherV, kDotM, kDotT, kPanelV, kPanelP, kPanelRows, kBf16Dot}, run};

}  // namespace
}  // namespace conv_ext

extern "C" __attribute__((visibility("default"))) const conv_ext::KernelLibrary* conv_ext_kernel_library() {
  return &conv_ext::kLibrary;
}

#if defined(CONV_EXT_WITNESS)
extern "C" __attribute__((visibility("default"))) const conv_ext::Witness* conv_ext_witness() {
  return &conv_ext::witness;
}
#endif
