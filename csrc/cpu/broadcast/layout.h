// What the plan of the broadcast algorithm says, its register tile, and where its tables, weights and sums lie.
#pragma once

#include "../base/taps.h"
#include "../panels/layout.h"

namespace conv_ext {

// A register tile of `vectors` of channels, and so many outputs as leave registers for their operands.
constexpr int64_t kBroadcastV = 4;
constexpr int64_t broadcast_positions(const Machine& machine, int64_t vectors) {
  const int64_t registers = machine.registers - (machine.fuses ? 1 : 2);  // beside the number, and a product
  const int64_t most = (registers - vectors) / vectors;
  return most > 14 ? 14 : most;
}

struct BroadcastPlan {
  WeightPanels weights;
  int64_t tile_h, tile_w, images;  // outputs of a tile and phase; images side by side
  int64_t tile_c;                  // channels whose source is packed together
  int64_t channel_pitch;           // elements of one packed source channel of a tile
  int64_t rows;                    // of a tile, that are summed before any is written
  int64_t products;                // of the longest chain
  int64_t parts_m;                 // tasks that share out the panels of weights
  int64_t sums;                    // of a task, in its scratch
  bool in_place;                   // whole vectors of channels are summed where the result lies
};

template <class A>
struct BroadcastWorkspace {
  PackedTaps tables;
  int32_t* adds_padding;  // (1)
  A* bias;                // (groups, padded_m)
  A* weights;             // (groups, phases, panels, blocks), each (taps, channels, width of the panel)
};
template <class A>
inline BroadcastWorkspace<A> broadcast_workspace(const ConvProblem& z, Pass pass, const BroadcastPlan& own,
                                                 Carver& memory) {
  BroadcastWorkspace<A> w;
  w.tables.lay_out(z, pass, memory);
  w.adds_padding = memory.take<int32_t>(1);
  w.bias = memory.take<A>(z.groups, own.weights.padded_m);
  w.weights = packed_weights<A>(z, own.weights, memory);
  return w;
}

// Neighbouring outputs of a row, or of a position's images, and the columns of taps that lead them to the source.
struct OutputRun {
  int64_t column, image, count;
  Range taps;
};
template <class A>
struct BroadcastScratch {
  Range* rows;      // (tile_h) of taps
  OutputRun* runs;  // (tile_w, images) at most, of one row
  int64_t* offset;  // (products) of a chain, in the packed source
  A* source;        // (tile_c, channel_pitch)
  A* sums;          // (panels, rows, tile_w, images, width of the panel)
};
template <class A>
inline BroadcastScratch<A> broadcast_scratch(const BroadcastPlan& own, Carver& memory) {
  BroadcastScratch<A> s;
  s.rows = memory.take<Range>(own.tile_h);
  s.runs = memory.take<OutputRun>(own.tile_w, own.images);
  s.offset = memory.take<int64_t>(own.products);
  s.source = memory.take<A>(own.tile_c, own.channel_pitch);
  s.sums = memory.take<A>(own.sums);
  return s;
}

}  // namespace conv_ext
