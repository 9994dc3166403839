// What plans and kernels take a processor for: a row for each instruction set, compiled in.
//
// A plan is given the row of the library that will run (PlanInput, candidates.h), a kernel has its own as kMachine
// (base/simd.h). Registers decide about register tiles, which are functions of a row in the layout.h of each algorithm,
// so that plan and kernel have the same; caches and rates decide about blocks, and plans alone know of them. Nothing is
// read from the processor of the day. The algorithm, and for forward and input_grad the order of every sum, follow from
// no cache: numbers that they follow from are constants of their own. The fuzzers hold plans and kernels to that with
// rows whose caches are other ones.
#pragma once

#include <stdint.h>

namespace conv_ext {

// What multiplies pairs of bfloat16 numbers: nothing, a vector instruction, or tiles, which are fast enough for float32
// that is cut into parts.
enum class Bf16Dot : int32_t { None, Vectors, Tiles };

// Bytes: of the first level for data and of the second, both of one core, and of the last, which all cores share.
struct Caches {
  int64_t l1_bytes, l2_bytes, last_bytes;
};

// Of a core, in vectors, by which register tiles of one algorithm are compared.
struct Rates {
  double multiply_adds, loads;  // a cycle
  double latency;               // cycles from one multiply-add to the next of the same sum
  double l2_cycles;             // that a vector takes from the second level
};

struct Machine {
  const char* name;  // of the instruction set, and of the kernel library
  int64_t vector_bytes;
  int64_t registers;  // that hold vectors
  bool fuses;         // a multiply-add is one instruction; else the product takes a register of its own
  Bf16Dot bf16_dot;
  Caches caches;
  Rates rates;
};

// The least that servers with AVX-512 have (Skylake-SP, Zen 4), in every row, for none was measured by itself. The last
// level is that of the machine on which the thresholds of the depthwise algorithm were measured.
constexpr Caches kAssumedCaches{32 << 10, 1 << 20, 32 << 20};
// Intel's from Skylake-SP on, by its optimization manual; of the second level about half the peak: an estimate.
constexpr Rates kAssumedRates{2, 2, 4, 2};

enum class Isa : int { Baseline, Avx2, Avx512, Avx512Bf16, Amx, AmxEmulated };
constexpr int kIsas = 6;
constexpr Machine kMachines[kIsas] = {
    {"baseline", 16, 16, false, Bf16Dot::None, kAssumedCaches, kAssumedRates},  // SSE2; other processors, too
    {"avx2", 32, 16, true, Bf16Dot::None, kAssumedCaches, kAssumedRates},
    {"avx512", 64, 32, true, Bf16Dot::None, kAssumedCaches, kAssumedRates},
    {"avx512_bf16", 64, 32, true, Bf16Dot::Vectors, kAssumedCaches, kAssumedRates},
    {"amx", 64, 32, true, Bf16Dot::Tiles, kAssumedCaches, kAssumedRates},
    {"amx-emulated", 64, 32, true, Bf16Dot::Tiles, kAssumedCaches, kAssumedRates},  // for tests alone
};
constexpr const Machine& machine_of(Isa isa) { return kMachines[int(isa)]; }

// Whether a size that follows from a row is `value` in each of them.
template <class Size>
constexpr bool in_every_row(Size size, int64_t value) {
  for (const Machine& machine : kMachines)
    if (size(machine) != value) return false;
  return true;
}

// Libraries that differ from AVX-512 in products of bfloat16 alone are linked from its objects (setup.py).
constexpr bool has_vectors_of_avx512(Isa isa) {
  const Machine &one = machine_of(isa), &other = machine_of(Isa::Avx512);
  return one.vector_bytes == other.vector_bytes && one.registers == other.registers && one.fuses == other.fuses;
}
static_assert(has_vectors_of_avx512(Isa::Avx512Bf16) && has_vectors_of_avx512(Isa::Amx) &&
              has_vectors_of_avx512(Isa::AmxEmulated));

}  // namespace conv_ext
