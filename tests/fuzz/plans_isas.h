// What the fuzzer of plans plans for: the machines of the kernel libraries, and compute capabilities of CUDA devices.
#pragma once

#include "../../csrc/cpu/machine.h"

namespace fuzz {

using conv_ext::kMachines;
// All but the last: emulated tiles are planned as real ones are.
constexpr int kMachineCount = conv_ext::kIsas - 1;

// 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 10.3, 12.0.
constexpr int64_t kCapabilities[] = {75, 80, 86, 89, 90, 100, 103, 120};

}  // namespace fuzz
