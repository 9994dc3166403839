// The list of algorithms: the one that can compute a problem in the fewest cycles, by its estimate, does. An algorithm
// is a folder and one line here; the four of the engine of products share theirs, gemm/.
//
// NAME(Enumerator, name): the folder's plan.cpp (in gemm/ plan_*.cpp) has name_declines, name_work, prepare_name and
// describe_name (candidates.h says what they do), and another source of it has select_name (library.cpp).
//
// Only plan.cpp, library.cpp and tests include this: a new line compiles these again, and no other algorithm.
#pragma once

#include <stdint.h>

#define CONV_EXT_ALGORITHMS(NAME)   \
  NAME(Depthwise, depthwise)        \
  NAME(Winograd, winograd)          \
  NAME(Grouped, grouped)            \
  NAME(ImplicitGemm, implicit_gemm) \
  NAME(Broadcast, broadcast)        \
  NAME(Panels, panels)              \
  NAME(Direct, direct)              \
  NAME(Reference, reference)

namespace conv_ext {

#define CONV_EXT_NAME(Enumerator, folder) Enumerator,
enum class Algorithm : int32_t { CONV_EXT_ALGORITHMS(CONV_EXT_NAME) };
#undef CONV_EXT_NAME

constexpr int kCandidateCount = int(Algorithm::Reference) + 1;

}  // namespace conv_ext
