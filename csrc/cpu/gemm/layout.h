// Weights as panels, and the chains of products, for all of the engine but pairs of bfloat16; what the plan of the
// panel algorithm says, and where its tables, weights, panels and sums lie.
#pragma once

#include "../base/taps.h"
#include "../machine.h"

namespace conv_ext {

// The register tile of all three passes: the widest panel, in vectors, and the most rows beside one of so many: 24 + 4
// + 1 of 32 registers with six rows of four (AVX-512), 12 + 3 + 1 of 16 with four of three (AVX2). At most eight rows:
// each takes an address register.
constexpr int panel_vectors(const Machine& machine) { return machine.registers == 32 ? 4 : machine.fuses ? 3 : 2; }
constexpr int panel_rows(const Machine& machine, int vectors) {
  return machine.registers < 32 ? 4 : vectors == 4 ? 6 : 8;
}
constexpr int most_panel_rows(const Machine& machine) { return panel_rows(machine, 1); }
// The widest panel beside the most rows.
constexpr int panel_vectors_of_most_rows(const Machine& machine) {
  return panel_vectors(machine) < 3 ? panel_vectors(machine) : 3;
}

// ---- forward and input_grad

constexpr int64_t kFewChannels = 32;  // of a group's result: vectors run along them whatever the layout

// The products of an output are summed in chains, one for each block of channels and taps: part of the promise of equal
// bits. A panel of three vectors so long is 36 KiB with AVX-512.
constexpr int64_t kPanelProducts = 192;                // of a chain, where a channel has no more taps than that
constexpr int64_t kMostProducts = 2 * kPanelProducts;  // of the longest chain
struct ChainCuts {
  int64_t channels, taps;  // into how many parts each of them is cut
  int64_t count() const { return product(channels, taps); }
  // Products of the longest block.
  int64_t longest(int64_t all_channels, int64_t all_taps) const {
    return ceil_div(all_channels, channels) * ceil_div(all_taps, taps);
  }
};
// Of so many elements' channels, each of which has products with all its parts.
inline ChainCuts chain_cuts(int64_t channels, int64_t taps, int64_t parts = 1) {
  const int64_t cut_taps = max_of(1, ceil_div(taps * parts, kPanelProducts));
  return {cut_taps > 1 ? channels : max_of(1, ceil_div(product(channels, taps, parts), kPanelProducts)), cut_taps};
}

// The same where whole runs of channels are wanted: taps are cut first.
inline ChainCuts chains_of_taps(int64_t channels, int64_t taps) {
  if (channels > kPanelProducts) return {ceil_div(channels, kPanelProducts), max_of(1, taps)};
  const int64_t together = kPanelProducts / max_of(1, channels);  // taps
  return {1, max_of(1, ceil_div(taps, together))};
}

// What is cut into chains: channels, and taps where these are many, of weights that are read where they lie; of packed
// ones taps, and channels where these are many (the source is read in place), or channels alone (it is packed).
enum class ChainsOf : int32_t { Channels, Taps, ChannelsAlone };

// How the weights of a group are cut into panels, and how their packing is shared out (plan_weights.h).
struct WeightPanels {
  // What the lanes of a vector are: neighbouring channels of the result, whose weights are packed as panels of vectors,
  // or neighbouring positions, whose source becomes panels while the weights are read where they lie.
  bool along_channels;
  ChainsOf chains;
  bool taps_are_neighbours;  // in memory, with other channels further away: they are turned round by whole vectors
  int64_t joined_taps;       // taps of a row that are read as channels, being their neighbours in memory; else 1
  int64_t channels;          // of a group's source, each of them as often as taps are joined
  int64_t parts;             // real numbers of an element, which are counted as channels
  int64_t unit;              // of a panel's channels: a vector; where lanes are positions, an element
  int64_t panels;            // of a group: vectors of channels; where lanes are positions, a few rows each
  int64_t panel_channels;    // channels of the widest panel, with those that fill up its last vector
  int64_t padded_m;          // channels of a group's result, with those that fill up the last vector
  int64_t panels_per_task, packing_tasks;  // of the loop that packs
  bool meets_padding;                      // some products are of padding: whether all weights are finite matters
  bool kept;                               // they are packed where other calls find them, not in the workspace

  bool packed() const { return chains != ChainsOf::Channels; }
  ChainCuts blocks(int64_t taps) const {
    if (chains == ChainsOf::Taps) return chains_of_taps(channels, taps);
    ChainCuts b = chain_cuts(channels / parts, taps, parts);
    if (chains == ChainsOf::ChannelsAlone) b.taps = 1;
    return b;
  }
};
template <class A>
struct PanelsOfWeights {
  int32_t* not_finite;  // (1) one of the weights is not, and products of the padding show it
  A* weights;           // (groups, phases, panels, blocks), each (taps, channels, width of the panel)
};
template <class A>
inline PanelsOfWeights<A> panels_of_weights(const ConvProblem& z, const WeightPanels& w, Carver& memory) {
  PanelsOfWeights<A> p;
  p.not_finite = memory.take<int32_t>(1);
  p.weights = memory.take<A>(w.packed() ? z.groups : 0, w.padded_m, w.channels, product(z.r, z.s) / w.joined_taps);
  return p;
}
// Where they lie in a call: `kept` is the memory that is kept.
template <class A>
inline PanelsOfWeights<A> panels_of_weights(const ConvProblem& z, const WeightPanels& w, Carver& memory, void* kept) {
  Carver other(kept);
  return panels_of_weights<A>(z, w, w.kept ? other : memory);
}

// Lines of memory that are prefetched for what comes next, at most.
constexpr int64_t kLinesAhead = 4096;

struct PanelsGatherPlan {
  WeightPanels weights;
  bool one_row;         // the rows of an image follow one another, and are taken for one row
  bool prefetches;      // along positions: what comes next is prefetched
  int64_t unit;         // positions (or vectors of positions) of a register tile, at most
  int64_t block;        // of a task, which has whole register tiles
  int64_t blocks;       // tasks that share out the positions of a phase
  int64_t parts_m;      // tasks that share out the panels of weights
  int64_t task_rows;    // along positions: rows of weights of a task, at most
  int64_t panel_lanes;  // along positions: positions of the widest panel
  int64_t products;     // along positions: of the longest block of any phase
  int64_t sums;         // of a task, in its scratch
  int64_t zeros;        // along channels: elements over which the channels of a position spread
};

template <class A>
struct PanelsGatherWorkspace {
  TapTable taps;
  int32_t* adds_padding;  // (1)
  PanelsOfWeights<A> packed;
};
template <class A>
inline PanelsGatherWorkspace<A> panels_gather_workspace(const ConvProblem& z, Pass pass, const PanelsGatherPlan& own,
                                                        Carver& memory, void* kept = nullptr) {
  PanelsGatherWorkspace<A> w;
  w.taps.lay_out(z, pass, memory);
  w.adds_padding = memory.take<int32_t>(1);
  w.packed = panels_of_weights<A>(z, own.weights, memory, kept);
  return w;
}

// Of a task whose vectors run along channels.
template <class A>
struct AlongChannelsScratch {
  int64_t* offset;      // (taps) of a block, from a position's source to the tap's
  const A** source;     // tile by tile (taps, positions), or (positions) where the phase reads no padding
  Range* reads;         // (tiles) taps that do not read padding alone
  A* sums;              // (positions, panel_channels)
  A* bias;              // (panel_channels)
  int32_t* next_lines;  // bytes from the results of a register tile to those of the next one, line by line
  A* zeros;             // read in place of the padding
  A* windows;           // joined taps some of which lie in the padding: (positions, taps, channels)
};
template <class A>
inline AlongChannelsScratch<A> along_channels_scratch(const ConvProblem& z, const PanelsGatherPlan& own,
                                                      Carver& memory) {
  const WeightPanels& w = own.weights;
  const int64_t taps = product(z.r, z.s) / w.joined_taps;
  AlongChannelsScratch<A> s;
  s.offset = memory.take<int64_t>(taps);
  s.source = memory.take<const A*>(own.block, taps);
  s.reads = memory.take<Range>(own.block);
  s.sums = memory.take<A>(own.sums);
  s.bias = memory.take<A>(w.panel_channels);
  s.next_lines = memory.take<int32_t>(kMostProducts);
  s.zeros = memory.take<A>(own.zeros);
  s.windows = memory.take<A>(w.joined_taps > 1 ? own.block : 0, taps, w.channels);
  return s;
}

// Lines of memory, as bytes after some place, that are prefetched one by one while a tile is computed. Behind them lie
// as many zeros as a tile has products.
struct LinesAhead {
  int32_t* offset;  // (kLinesAhead + kMostProducts)
  int64_t count;

  // Every line of a run, as far as there is room.
  void add_run(int64_t first, int64_t bytes) {
    if (first + bytes > INT32_MAX) return;
    for (int64_t at = 0; at < bytes && count < kLinesAhead; at += 64) offset[count++] = int32_t(first + at);
    if (count < kLinesAhead) offset[count++] = int32_t(first + bytes - 1);
  }
  void finish() {
    for (int64_t i = 0; i < kMostProducts; ++i) offset[count + i] = 0;
  }
};
inline LinesAhead no_lines_ahead(Carver& memory) { return {memory.take<int32_t>(kLinesAhead + kMostProducts), 0}; }

// Of a task whose vectors run along positions.
template <class A>
struct AlongPositionsScratch {
  int64_t* offset;           // (taps) of a block, in the weights
  const A** rows;            // (task_rows) of weights
  A* panel;                  // (products, panel_lanes)
  A* sums;                   // (task_rows, positions)
  LinesAhead reads, writes;  // of a panel: what is read, and where the results belong
};
template <class A>
inline AlongPositionsScratch<A> along_positions_scratch(const ConvProblem& z, const PanelsGatherPlan& own,
                                                        Carver& memory) {
  AlongPositionsScratch<A> s;
  s.offset = memory.take<int64_t>(z.r, z.s);
  s.rows = memory.take<const A*>(own.task_rows);
  s.panel = memory.take<A>(own.products, own.panel_lanes);
  s.sums = memory.take<A>(own.sums);
  s.reads = no_lines_ahead(memory);
  s.writes = no_lines_ahead(memory);
  return s;
}

// ---- weight_grad

// What the lanes of a vector are: output or input channels of a group, or positions of the output.
enum class GradLanes : int32_t { OutputChannels, InputChannels, Positions };

// The register tile whose lanes are positions: rows of K by those of (C/g, R S).
struct GradTile {
  int k, rows;
};
constexpr GradTile grad_tile(const Machine& machine) {
  if (machine.registers == 32) return {4, 6};
  return machine.fuses ? GradTile{2, 6} : GradTile{2, 3};
}

// The register tile whose operands both lie position by position: vectors of one by scalars of the other.
struct OuterTile {
  int vectors, rows;
};
constexpr OuterTile outer_tile(const Machine& machine) {
  return machine.registers == 32 ? OuterTile{2, 12} : OuterTile{2, 6};
}

// Both parts of complex numbers are channels here: what counts "numbers" counts them one by one.
struct PanelsGradPlan {
  GradLanes lanes_are;
  int64_t tile_h, tile_w, batch;       // outputs of a tile, of so many images
  int64_t images;                      // of them side by side, in neighbouring lanes; the others follow one another
  int64_t image_pitch, channel_pitch;  // elements of an image in a packed channel, and of the channel
  int64_t grad_pitch;                  // lanes are positions: elements of one packed row of the upstream gradient
  int64_t task_groups;                 // groups of a task: of several small ones each is taken whole
  int64_t tile_k, tile_c;              // block of (K/g, C/g) per task
  int64_t splits;                      // into how many parts, added in order, the reduction is cut
  int64_t panel_vectors;               // lanes are channels: of the widest panel
  bool in_place;                       // the operand whose channels are not lanes is read where it lies
  bool outer;                          // ... and so can the other one: the channels of both are neighbours in memory
  bool lanes_in_place;                 // it is, too
  bool taps_first;  // the rows of a block are (taps, channels), as channels_last weights are; else (channels, taps)
  bool prefetches;  // what the next tile reads is prefetched
  int64_t lanes;    // of a block and group: numbers of one operand; in vectors, with what fills up the last one
  int64_t rows;     // of a block and group: numbers of the other operand
};

// Sums of one block in one part of the reduction.
inline int64_t panels_grad_block(const ConvProblem& z, const PanelsGradPlan& own) {
  return product(own.task_groups, own.lanes, own.rows, z.r, z.s);
}
template <class A>
struct PanelsGradWorkspace {
  PackedTaps tables;
  A* sums;  // (splits, blocks), each (panels, rows, width of the panel), or (groups, lanes, rows)
};
template <class A>
inline PanelsGradWorkspace<A> panels_grad_workspace(const ConvProblem& z, const PanelsGradPlan& own, int64_t tasks,
                                                    Carver& memory) {
  PanelsGradWorkspace<A> w;
  w.tables.lay_out(z, Pass::WeightGrad, memory);
  w.sums = memory.take<A>(tasks, panels_grad_block(z, own));
  return w;
}

template <class A>
struct PanelsGradScratch {
  const A** row;        // (rows, taps) of a block's first group, or (taps, rows)
  int64_t* offset;      // (rows of a tile), of both operands where both are read in place
  LinesAhead ahead[2];  // of the operand that is packed as lanes, and of the other one
  A* lanes;             // panel by panel (positions, width of the panel), or (groups, lanes, tile_h, grad_pitch)
  A* rows;              // (groups, rows, channel_pitch)
};
template <class A>
inline PanelsGradScratch<A> panels_grad_scratch(const ConvProblem& z, const PanelsGradPlan& own, Carver& memory) {
  // Lanes that are positions are read in whole vectors: less than one behind the last row.
  constexpr int64_t kBehind = machine_of(Isa::Avx512).vector_bytes / int64_t(sizeof(A));
  const bool positions = own.lanes_are == GradLanes::Positions;
  PanelsGradScratch<A> s;
  s.row = memory.take<const A*>(own.rows, z.r, z.s);
  s.offset = memory.take<int64_t>(positions ? 0 : own.batch, own.tile_h, own.outer ? 2 : 1);
  for (LinesAhead& lines : s.ahead) lines = own.prefetches ? no_lines_ahead(memory) : LinesAhead{nullptr, 0};
  s.lanes = memory.take<A>(product(own.lanes_in_place ? 0 : own.task_groups, own.lanes), own.tile_h,
                           positions ? own.grad_pitch : product(own.batch, own.tile_w));
  s.rows = memory.take<A>(own.in_place ? 0 : product(own.task_groups, own.rows, own.channel_pitch) + kBehind);
  return s;
}

struct PanelsPlan {
  union {
    PanelsGatherPlan gather;  // forward, input_grad
    PanelsGradPlan grad;      // weight_grad
  };
};

}  // namespace conv_ext
