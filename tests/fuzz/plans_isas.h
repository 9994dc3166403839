// What the fuzzer of plans plans for: the traits of every kernel library, and compute capabilities of CUDA devices.
#pragma once

#include "../../csrc/cpu/plan.h"

namespace fuzz {

using conv_ext::Bf16Dot;
using conv_ext::IsaTraits;

// As the libraries themselves announce them; tests/tools/test_fuzz_plans.py compares the two.
constexpr IsaTraits kIsas[] = {
    {"baseline", 16, 4, 2, 2, 3, 2, 2, 4, Bf16Dot::None}, {"avx2", 32, 4, 3, 2, 6, 3, 3, 4, Bf16Dot::None},
    {"avx512", 64, 8, 3, 4, 6, 4, 3, 8, Bf16Dot::None},   {"avx512_bf16", 64, 8, 3, 4, 6, 4, 3, 8, Bf16Dot::Vectors},
    {"amx", 64, 8, 3, 4, 6, 4, 3, 8, Bf16Dot::Tiles},
};
constexpr int kIsaCount = int(sizeof(kIsas) / sizeof(kIsas[0]));

// 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 10.3, 12.0.
constexpr int64_t kCapabilities[] = {75, 80, 86, 89, 90, 100, 103, 120};

}  // namespace fuzz
