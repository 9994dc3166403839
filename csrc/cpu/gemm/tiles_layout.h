// Where the matrix product in AMX tiles packs its operands: what the plan counts, and the kernel is given.
//
//   source       [c/32][part][position][32]
//   weights      [panel of 32 outputs][phase][c/32][tap][part][2][16 pairs][16 outputs][2]
//   both exchanged, where positions are lanes
//   weight_grad  gradient [k/32][32 positions][part][2][16 k][32], input [c/16][part][position][16][2]
//
// Pairs are (i, i + 16) of 32 channels or positions, so that numbers are split and paired without a shuffle.
#pragma once

#include "pairs_layout.h"

namespace conv_ext {

constexpr int kTileEdge = 32;                   // positions, channels and outputs of a block of two by two tiles
constexpr int64_t kTileBytes = 1024;            // 16 rows of 32 bfloat16 numbers
constexpr int64_t kStepBytes = 2 * kTileBytes;  // of one part of an operand of a step

// The taps in a tile's packed source, and where their weights are in a panel.
struct TileTables {
  PackedTaps taps;
  int64_t *slot, *slot_step;  // (R S) of tap r * S + s: steps before its first one and between blocks of 32 channels;
                              // slot -1: it touches no output

  void lay_out(const ConvProblem& z, Pass pass, Carver& memory) {
    taps.lay_out(z, pass, memory);
    slot = memory.take<int64_t>(z.r, z.s);
    slot_step = memory.take<int64_t>(z.r, z.s);
  }
  void build(const ImplicitGemmPlan& own, int64_t blocks) {
    taps.build(own.tile_h, own.tile_w, own.images);
    const TapTable& table = taps.taps;
    for (int64_t i = 0; i < table.vertical.taps * table.horizontal.taps; ++i) slot[i] = -1;
    for (int64_t phase = 0; phase < table.phases(); ++phase)
      for (int64_t t = table.begin[phase]; t < table.begin[phase + 1]; ++t) {
        slot[table.tap[t]] = table.begin[phase] * blocks + t - table.begin[phase];
        slot_step[table.tap[t]] = table.count(phase);
      }
  }
};

inline int64_t tile_blocks(int64_t channels) { return ceil_div(channels, kTileEdge); }
inline int64_t panel_bytes(const ConvProblem& z, int64_t channels, int64_t parts) {
  return product(tile_blocks(channels), z.r, z.s, parts, kStepBytes);
}
// Rows are read by the tile: behind the last position there is room for 31 more.
inline int64_t packed_tile_bytes(int64_t channels, int64_t parts, int64_t part_bytes) {
  return product(tile_blocks(channels), parts, part_bytes) + kTileEdge * 64;
}
// Bytes of one part of 32 channels; not a multiple of 4096, where blocks of channels would compete for the same lines
// of the cache.
inline int64_t packed_part_bytes(const Axis& vertical, const Axis& horizontal, int64_t tile_h, int64_t tile_w,
                                 int64_t images) {
  const PackedExtent down = packed_extent(vertical, tile_h), across = packed_extent(horizontal, tile_w);
  const int64_t bytes = product(across.regions, down.positions, across.longest, images, 64);
  return bytes % 4096 == 0 ? bytes + 64 : bytes;
}

// weight_grad of a line: steps that are packed while as many others are multiplied; bytes of those of an operand.
constexpr int64_t kLineSteps = 4;
inline int64_t line_bytes(int64_t channels, int64_t parts) {
  return product(tile_blocks(channels), kLineSteps, parts, kStepBytes);
}

// Between neighbouring positions of a plane; of a single one, between images.
inline int64_t position_step(const ConvProblem& z, int64_t image, int64_t row, int64_t column) {
  return z.w > 1 ? column : z.h > 1 ? row : z.n > 1 ? image : 1;
}

struct TileWorkspace {
  TileTables tables;
  float* bias;     // forward, input_grad: (groups, panels, 32)
  char* packed;    // forward, input_grad: the weights (groups, panels), or the tiles of the source
  float* partial;  // weight_grad in several parts: (splits, tasks of one part) of sums
};
// Of a task of weight_grad: blocks of 32 k, of 32 c, taps, 32 x 32 sums.
inline int64_t grad_block_sums(const ConvProblem& z, const ImplicitGemmPlan& own) {
  return product(tile_blocks(own.tile_k), tile_blocks(own.tile_c), z.r, z.s, kTileEdge * kTileEdge);
}
inline int64_t grad_blocks(const ConvProblem& z, const ImplicitGemmPlan& own) {
  return product(z.groups, ceil_div(z.group_k(), own.tile_k), ceil_div(z.group_c(), own.tile_c));
}
inline int64_t tiles_of_group(const ConvProblem& z, const ImplicitGemmPlan& own, const Axis& vertical,
                              const Axis& horizontal) {
  return product(ceil_div(z.n, own.images), ceil_div(vertical.longest_count(), own.tile_h),
                 ceil_div(horizontal.longest_count(), own.tile_w));
}
inline char* tile_weights(const ConvProblem& z, Pass pass, const ImplicitGemmPlan& own, Carver& memory) {
  const int64_t panels = product(z.groups, tile_blocks(result_channels(z, pass)));
  return memory.take<char>(panels, panel_bytes(z, source_channels(z, pass), own.parts));
}
inline TileWorkspace tile_workspace(const ConvProblem& z, Pass pass, const ImplicitGemmPlan& own, Carver& memory) {
  TileWorkspace w{};
  w.tables.lay_out(z, pass, memory);
  if (pass == Pass::WeightGrad) {
    if (own.splits > 1) w.partial = memory.take<float>(own.splits, grad_blocks(z, own), grad_block_sums(z, own));
    return w;
  }
  const int64_t panels = product(z.groups, tile_blocks(result_channels(z, pass)));
  w.bias = memory.take<float>(panels, kTileEdge);
  if (own.schedule == DotSchedule::Source) {
    const TapTable& taps = w.tables.taps.taps;
    w.packed = memory.take<char>(z.groups, tiles_of_group(z, own, taps.vertical, taps.horizontal),
                                 packed_tile_bytes(source_channels(z, pass), own.parts, own.channel_pitch * 2));
  } else if (!own.kept) {
    w.packed = tile_weights(z, pass, own, memory);
  }
  return w;
}

struct TileScratch {
  char* packed;  // forward, input_grad: a tile of the source, two runs of a line, or panels of the weights
  // weight_grad
  char *grad, *input;  // packed
  float* rows;         // 16 channels of either, before they are split
  float* sums;         // of a reduction in one part
};
inline TileScratch tile_scratch(const ConvProblem& z, Pass pass, const ImplicitGemmPlan& own, Carver& memory) {
  TileScratch s{};
  const int64_t channels = source_channels(z, pass);
  if (pass == Pass::WeightGrad && own.schedule == DotSchedule::Line) {
    s.grad = memory.take<char>(2, line_bytes(own.tile_k, own.parts));
    s.input = memory.take<char>(2, line_bytes(own.tile_c, own.parts));
    if (own.splits == 1) s.sums = memory.take<float>(grad_block_sums(z, own));
  } else if (pass == Pass::WeightGrad) {
    const int64_t positions = own.channel_pitch / kTileEdge;
    s.grad = memory.take<char>(tile_blocks(own.tile_k), own.grad_pitch / kTileEdge, own.parts, kStepBytes);
    s.input = memory.take<char>(2 * tile_blocks(own.tile_c), own.parts, positions, 64);
    s.rows = memory.take<float>(max_of(positions + 16, own.grad_pitch), 16);
    if (own.splits == 1) s.sums = memory.take<float>(grad_block_sums(z, own));
  } else if (own.schedule == DotSchedule::Source) {
    s.packed = memory.take<char>(own.task_m / kTileEdge, panel_bytes(z, channels, own.parts));
  } else if (own.schedule != DotSchedule::Weights) {
    s.packed = memory.take<char>(2, own.run, tile_blocks(channels), own.parts, kStepBytes);
  } else {
    s.packed = memory.take<char>(packed_tile_bytes(channels, own.parts, own.channel_pitch * 2));
  }
  return s;
}

}  // namespace conv_ext
