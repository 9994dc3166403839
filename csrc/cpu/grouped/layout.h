// How the algorithm for small groups cuts channels into vectors and maps into windows: shared by the plan and the
// kernel.
#pragma once

#include "../base/taps.h"
#include "../machine.h"
#include "../../common/carver.h"
#include "../../common/roles.h"

namespace conv_ext {

struct GroupedPlan {
  int64_t tile_h, tile_w;  // outputs of a window
  int64_t task_groups;     // units of a task
  int64_t splits;          // weight_grad: into how many parts, added in order, the reduction is cut
  bool kept;               // the packed weights lie where other calls find them, not in the workspace
};

// The register tiles. forward, input_grad: rows and columns of outputs, 24 sums, 3 weights, an index and a source of 32
// registers (AVX-512); 8 sums of 16. weight_grad: channels, and outputs whose gradients are loaded together.
struct GroupedTile {
  int rows, columns, channels, outputs;
};
constexpr GroupedTile grouped_tile(const Machine& machine) {
  return machine.registers == 32 ? GroupedTile{3, 8, 8, 4} : GroupedTile{2, 4, 4, 2};
}

// The lanes of a vector are channels of the result: of several whole groups where these are small, else of one group.
struct GroupUnits {
  int64_t result, source;  // channels of a group
  int64_t together;        // groups of a unit
  int64_t units, vectors;  // vectors of the result in a unit
  int64_t blocks;          // vectors of the source in a unit
  bool several() const { return together > 1; }
};
inline GroupUnits group_units(const ConvProblem& z, Pass pass, int64_t lanes) {
  GroupUnits u;
  u.result = max_of(1, result_channels(z, pass));
  u.source = max_of(1, source_channels(z, pass));
  u.together = max_of(1, min_of(z.groups, lanes / max_of(u.result, u.source)));
  u.units = ceil_div(z.groups, u.together);
  u.vectors = ceil_div(u.together * u.result, lanes);
  u.blocks = ceil_div(u.together * u.source, lanes);
  return u;
}

// Rows that so many rows of outputs read, the first of which belongs to phase 0.
inline int64_t window_rows(const Axis& vertical, const Reach& down, int64_t outputs) {
  return down.extent(ceil_div(outputs, vertical.output_step()));
}

// Some taps of a few rows, whose products are summed in one chain.
struct GroupChain {
  int64_t width;     // neighbouring taps of a row
  int64_t segments;  // rows
  int64_t offset;    // index of the first segment's offset
  int64_t tap;       // index of the first segment's first tap; packed weights are in this order
};
constexpr int64_t kGroupChain = 256;  // products of a chain, or those of one row: part of the promise of equal bits

template <class A>
inline A* grouped_weights(const ConvProblem& z, Pass pass, int64_t lanes, Carver& memory) {
  const GroupUnits units = group_units(z, pass, lanes);
  return memory.take<A>(product(units.units, units.vectors), z.r * z.s, units.source, lanes);
}

template <class A>
struct GroupedWorkspace {
  GroupChain* chain;     // (at most R S)
  int64_t* offset;       // (at most R S) place in the window of a segment's first tap
  int64_t* tap;          // (R S) r * S + s
  int64_t* chain_begin;  // (phases + 1)
  A* biases;             // forward, input_grad: (units, vectors, kLanes)
  A* packed_weight;      // forward, input_grad: (units, vectors, R S, channels of the source, kLanes)
  A* sums;               // weight_grad: (splits, units, vectors, R S, C/g, kLanes)
};
template <class A>
inline GroupedWorkspace<A> grouped_workspace(const ConvProblem& z, Pass pass, const GroupedPlan& own, int64_t lanes,
                                             Carver& memory) {
  const GroupUnits units = group_units(z, pass, lanes);
  const int64_t taps = z.r * z.s, vectors = product(units.units, units.vectors);
  const int64_t phases = product(vertical_axis(z, pass).phases(), horizontal_axis(z, pass).phases());
  GroupedWorkspace<A> w{};
  w.chain = memory.take<GroupChain>(taps);
  w.offset = memory.take<int64_t>(taps);
  w.tap = memory.take<int64_t>(taps);
  w.chain_begin = memory.take<int64_t>(phases + 1);
  if (pass == Pass::WeightGrad) {
    w.sums = memory.take<A>(own.splits, vectors, taps, units.source, lanes);
  } else {
    w.biases = memory.take<A>(vectors, lanes);
    if (!own.kept) w.packed_weight = grouped_weights<A>(z, pass, lanes, memory);
  }
  return w;
}

template <class A>
struct GroupedScratch {
  A* window;  // (blocks, rows, columns, kLanes) of the source
  A* block;   // (tile_h, columns, kLanes) of the result, or of the upstream gradient, turned round in whole squares
};
template <class A>
inline GroupedScratch<A> grouped_scratch(const ConvProblem& z, Pass pass, const GroupedPlan& own, int64_t lanes,
                                         Carver& memory) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  GroupedScratch<A> s{};
  s.window = memory.take<A>(group_units(z, pass, lanes).blocks, window_rows(vertical, reach_of(vertical), own.tile_h),
                            reach_of(horizontal).extent(horizontal.longest_count()), lanes);
  s.block = memory.take<A>(product(own.tile_h, horizontal.output) + lanes, lanes);
  return s;
}

}  // namespace conv_ext
