// What the plan of products over a packed source says, its register tiles, and where its tables, weights and sums lie.
#pragma once

#include "../base/taps.h"
#include "layout.h"

namespace conv_ext {

// Lanes are channels: a register tile of so many vectors of them, and as many outputs as leave registers for the
// operands.
constexpr int64_t kWindowV = 4;
constexpr int64_t window_outputs(const Machine& machine, int64_t vectors) {
  const int64_t registers = machine.registers - (machine.fuses ? 1 : 2);  // beside the number, and a product
  const int64_t most = (registers - vectors) / vectors;
  return most > 14 ? 14 : most;
}
// Lanes are positions: channels of a tile, at most, and vectors of positions beside so many: 24 + 3 + 1 of 32 registers
// (AVX-512), 12 + 3 + 1 of 16 (AVX2). Two loads in three multiply-adds is what the load ports sustain.
constexpr int64_t window_channels(const Machine& machine) { return machine.registers == 32 ? 8 : 4; }
constexpr int64_t kMostWindowVectors = 6;
constexpr int64_t window_vectors(const Machine& machine, int64_t channels) {
  const int64_t registers = machine.registers - (machine.fuses ? 1 : 2);
  const int64_t widest = machine.registers == 32 ? kMostWindowVectors : 4, most = registers / (channels + 1);
  return most > widest ? widest : most;
}

struct WindowsPlan {
  WeightPanels weights;            // lanes are channels of the result, or positions
  int64_t tile_h, tile_w, images;  // outputs of a tile and phase; images side by side
  bool flat;                       // lanes run on across rows: the columns between two of them are thrown away
  int64_t task_groups;             // groups per task: small ones are packed together
  int64_t tile_c;                  // channels of a group whose source is packed together
  int64_t channel_pitch;           // elements of one packed source channel of a tile
  int64_t rows;                    // of a tile, that are summed before any is written
  int64_t products;                // of the longest chain
  int64_t parts_m;                 // tasks that share out the panels of weights
  int64_t sums;                    // of a task, in its scratch
  int64_t runs;                    // of outputs that a register tile takes, in the rows of one
  bool in_place;                   // whole vectors are summed where the result lies
  bool clears;                     // the padding once a task, not with every block of channels
};

// Sums of `rows` rows of a tile: from one row to the next, and of all of them. Where lanes are positions each run of
// them ends with a whole vector. `pitch`: packed positions between two rows.
struct RowsOfSums {
  int64_t row, all;
  static RowsOfSums of(const WindowsPlan& own, int64_t rows, int64_t width, int64_t pitch, int64_t lanes) {
    const int64_t each = product(width, own.images);
    if (own.weights.along_channels) return {each, product(rows, each)};
    if (!own.flat) return {round_up(each, lanes), product(rows, round_up(each, lanes))};
    const int64_t row = product(pitch, own.images);
    return {row, round_up(product(rows - 1, row) + each, lanes)};
  }
};

// A register tile may read so many bytes past its last lane: less than its vectors.
constexpr int64_t kOverread = 512;
static_assert(kOverread >= kMostWindowVectors * machine_of(Isa::Avx512).vector_bytes);

template <class A>
struct WindowsWorkspace {
  PackedTaps tables;
  int32_t* adds_padding;  // (1)
  A* bias;                // (groups, padded_m)
  PanelsOfWeights<A> packed;
};
template <class A>
inline WindowsWorkspace<A> windows_workspace(const ConvProblem& z, Pass pass, const WindowsPlan& own, Carver& memory,
                                             void* kept = nullptr) {
  WindowsWorkspace<A> w;
  w.tables.lay_out(z, pass, memory);
  w.adds_padding = memory.take<int32_t>(1);
  w.bias = memory.take<A>(z.groups, own.weights.padded_m);
  w.packed = panels_of_weights<A>(z, own.weights, memory, kept);
  return w;
}

// Outputs that a register tile takes, and the columns of taps that lead them to the source.
struct OutputRun {
  int64_t column, image;  // the first of them, in its row or the first of several rows
  int64_t at;             // column * images + image
  int64_t count;          // of outputs, or of vectors of them where they are lanes
  Range taps;
};
template <class A>
struct WindowsScratch {
  Range* rows;      // (tile_h) of taps
  OutputRun* runs;  // (runs)
  int64_t* offset;  // (products) of a chain, in the packed source
  A* source;        // (groups, tile_c, channel_pitch)
  A* sums;          // (panels, rows, tile_w, images, width of the panel), or (panels, width, positions)
};
template <class A>
inline WindowsScratch<A> windows_scratch(const WindowsPlan& own, Carver& memory) {
  WindowsScratch<A> s;
  s.rows = memory.take<Range>(own.tile_h);
  s.runs = memory.take<OutputRun>(own.runs);
  s.offset = memory.take<int64_t>(own.products);
  s.source = memory.take<A>(product(own.task_groups, own.tile_c, own.channel_pitch) + kOverread / int64_t(sizeof(A)));
  s.sums = memory.take<A>(own.sums);
  return s;
}

}  // namespace conv_ext
