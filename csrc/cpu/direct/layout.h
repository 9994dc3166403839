// What the plan of the direct algorithm says, and how its memory is laid out.
#pragma once

#include "../../common/roles.h"
#include "../base/taps.h"
#include "../machine.h"

namespace conv_ext {

struct DirectPlan {
  // Outputs per tile and phase; how many images lie side by side in a vector; whether the lanes of a tile run on across
  // its rows (the columns between two rows are computed and thrown away) or end with each row.
  int64_t tile_h, tile_w, images;
  bool flat;
  int64_t channel_pitch;  // elements of one packed source channel of a tile
  int64_t task_groups;    // groups per task: small ones are packed together
  int64_t task_m;         // outputs of the gemm_m dimension per task
};

// The largest register tile: rows of gemm_m by vectors of positions, which stay in registers beside the vectors of x
// and one weight: 24 + 3 + 1 of 32 (AVX-512), 12 + 3 + 1 of 16 (AVX2). Two loads in three multiply-adds is what the
// load ports sustain.
struct DirectTile {
  int gather_m, gather_v;
};
constexpr DirectTile direct_tile(const Machine& machine) {
  if (machine.registers == 32) return {8, 3};
  return machine.fuses ? DirectTile{4, 3} : DirectTile{4, 2};
}
// Vectors of a tile of so many rows, at most: fewer rows leave room for more.
constexpr int kMaxTileVectors = 6;
constexpr int gather_vectors(const Machine& machine, int rows) {
  const DirectTile tile = direct_tile(machine);
  return rows == tile.gather_m ? tile.gather_v : machine.registers == 32 ? kMaxTileVectors : 4;
}
// Products that are summed in one chain, rounded to whole channels: part of the promise of equal bits.
constexpr int kChain = 256;

// A register tile may read so many bytes past its last lane: less than its vectors.
constexpr int64_t kOverread = 512;
static_assert(kOverread >= kMaxTileVectors * machine_of(Isa::Avx512).vector_bytes);

// All sizes in real numbers: both parts of complex ones are channels.
template <class A>
struct DirectWorkspace {
  PackedTaps tables;
  A* bias;           // (groups, gemm_m)
  A* packed_weight;  // for each group and pair of phases (gemm_m / block, channels, taps, block)
};
template <class A>
inline DirectWorkspace<A> direct_workspace(const ConvProblem& z, Pass pass, Carver& memory) {
  const int64_t parts = parts_of(z.dtype);
  DirectWorkspace<A> w{};
  w.tables.lay_out(z, pass, memory);
  w.bias = memory.take<A>(z.groups, result_channels(z, pass) * parts);
  w.packed_weight = memory.take<A>(z.weight_elements(), parts * parts);
  return w;
}

template <class A>
struct DirectScratch {
  A* source;  // (groups, channels, channel_pitch)
};
template <class A>
inline DirectScratch<A> direct_scratch(const ConvProblem& z, Pass pass, const DirectPlan& own, Carver& memory) {
  const int64_t parts = parts_of(z.dtype);
  constexpr int64_t kBehind = kOverread / int64_t(sizeof(A));
  DirectScratch<A> s{};
  const int64_t channels = source_channels(z, pass) * parts;
  s.source = memory.take<A>(product(own.task_groups, channels, own.channel_pitch) + kBehind);
  return s;
}

}  // namespace conv_ext
