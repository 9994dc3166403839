// The cycles of the algorithms' counts.
#include "candidates.h"
#include "cost_table.h"

namespace conv_ext {

const char* nest_name(Nest nest) {
#define CONV_EXT_NEST(name) #name,
  constexpr const char* kNames[] = {CONV_EXT_NESTS(CONV_EXT_NEST) "Unknown", "Never"};
#undef CONV_EXT_NEST
  return kNames[int(nest)];
}

double cycles_of(const ConvProblem& z, const Machine& machine, const Work& work) {
  if (work.nest == Nest::Never) return kMostCycles;
  if (work.nest == Nest::Unknown) return kMostCycles / 2;
  const int type = is_complex(z.dtype)                                   ? 3
                   : element_bytes(z.dtype) < accumulator_bytes(z.dtype) ? 2
                   : z.dtype == DType::Float64                           ? 1
                                                                         : 0;
  // Processors that have AMX are others than those that have AVX-512 without it.
  const int table = machine.bf16_dot == Bf16Dot::Tiles ? 2 : machine.vector_bytes == 64 ? 1 : 0;
  const float(&each)[kCounts] = kCycles[table][type][int(work.nest)][z.channels_last];
  double cycles = 0;
  for (int i = 0; i < kCounts; ++i) cycles += work.count[i] * double(each[i]);
  return cycles > 0 ? cycles : kMostCycles / 2;  // a loop that has not been fitted
}

}  // namespace conv_ext
