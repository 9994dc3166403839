// What the plan of the depthwise algorithm says, and all that lies in its workspace and in the scratch of a thread.
#pragma once

#include "../base/taps.h"
#include "../machine.h"
#include "../../common/buffers.h"
#include "../../common/carver.h"
#include "../../common/roles.h"

namespace conv_ext {

// What lies side by side in a vector: neighbouring columns of one row, or neighbouring channels of one position.
enum class DepthwiseLanes : int32_t { Columns, Channels };

// Where lanes are columns.
struct DepthwiseByColumns {
  int64_t column_step;    // columns between the lanes of a vector of the source: 2 where a stride of 2 is read in place
  int64_t row_pitch;      // elements of a row of the source as it is read
  int64_t call_channels;  // small maps: so many channels lie one behind the other, and one call of the loops takes them
  bool shares_pairs;      // of 3x3 with stride 2: the three taps of a row are taken from the same two vectors
  bool spreads;           // input_grad of 3x3 with stride 2: four outputs are formed from two by two gradients
  bool prefetches;        // the rows that lie further on
};

// Where lanes are channels.
struct DepthwiseByChannels {
  bool beyond_cache;   // operands and result come from memory: strips, and the next rows are prefetched
  int64_t block_rows;  // most rows of outputs that are computed at once
  // The rows of a tile are gone through strip by strip: so many channels by so many columns of a phase. weight_grad:
  // all channels of a tile, by so many columns; the last tile may have fewer channels, and then has more columns.
  int64_t strip_c, strip_w, last_strip_w;
  int64_t phase_w;  // columns of one phase that are computed before those of the next
};

struct DepthwisePlan {
  DepthwiseLanes lanes_are;
  // Read and written where they lie; else copied to rows of the accumulator's type, a block of rows at a time, and
  // results back. weight_grad: the upstream gradient stands for the result, which it lies like.
  bool source_in_place, result_in_place;
  // A tile is so many rows of outputs, with all their columns, of so many channels of an image. There are so many along
  // the rows and the channels.
  int64_t tile_h, tile_c, row_tiles, channel_tiles;
  int64_t splits;  // weight_grad: into how many parts, added in order, the sum over the tiles of a channel is cut
  int64_t units;   // of work. forward, input_grad: all tiles; weight_grad: the parts of each tile of channels
  DepthwiseByColumns columns;
  DepthwiseByChannels channels;
};

// ---- what the registers hold: the maps of many networks are multiples of 7

// Lanes are columns: outputs below one another; weight_grad holds them beside the sums of 9 taps.
constexpr int kColumnsRows = 7;
constexpr int columns_dot_rows(const Machine& machine) { return machine.registers == 32 ? 7 : 3; }
// Lanes are channels: outputs beside one another; rows of them, for kernels of 3x3; the same in weight_grad.
constexpr int channels_columns(const Machine& machine) { return machine.registers == 32 ? 7 : 4; }
constexpr int channels_rows(const Machine& machine) { return machine.registers == 32 ? 3 : 2; }
constexpr int channels_dot_rows(const Machine& machine) { return machine.registers == 32 ? 2 : 1; }
constexpr int kChannelsDotBlocks = 64;  // weight_grad: blocks beside one another that one call of the loops takes

// ---- tables

// Taps of an axis that one phase has at most.
inline int64_t most_phase_taps(const Axis& axis) { return ceil_div(axis.taps, tap_distance(axis)); }

typedef uint32_t LaneBits;  // one bit for each lane

// What one tap of a row reads: `offset` elements from the row's first, or with a column step of 2 every other one of
// two neighbouring vectors, whose lanes are in `low` and `high`.
struct ColumnTap {
  int64_t offset;
  LaneBits low, high;
};
// Neighbouring outputs of a row that read alike: `count` vectors of them.
struct ColumnSegment {
  int64_t first, count;  // the first output of the phase, in outputs
  LaneBits lanes;        // of each vector's outputs
  bool all_inside;       // every lane that is loaded lies in the source
  ColumnTap* tap;        // (taps of the phase)
};
struct SegmentList {
  PhaseTaps taps;
  ColumnSegment* segment;
  int64_t count;
};
// The outputs of one phase of a row; those from inside_begin to inside_end read nothing outside the source.
struct PhaseColumns {
  PhaseTaps taps;
  int64_t count, inside_begin, inside_end;
  bool share_loads;  // neighbouring outputs, by loops that know the taps
};

// ---- lanes are columns

// Segments that the outputs of a phase are cut into at most.
inline int64_t most_segments(const Axis& horizontal) {
  // Outputs that a tap takes beyond the source, those in the middle, and the last vector's on either side.
  const int64_t count = horizontal.longest_count(),
                reach = (horizontal.taps - 1) * horizontal.dilation + horizontal.stride;
  const int64_t before = horizontal.inverse ? reach : horizontal.pad;
  const int64_t furthest = (count - 1) * horizontal.stride + reach - horizontal.pad;
  const int64_t behind = horizontal.inverse ? reach : max_of(0, furthest - horizontal.source);
  return min_of(count, before + behind + 4);
}
struct DepthwiseSegments {
  SegmentList* list;       // (lists)
  ColumnSegment* segment;  // (lists, most_segments)
  ColumnTap* tap;          // (lists, most_segments, most_phase_taps)
  int64_t most, most_taps;
};
// A list for each phase, and one more where all phases are computed at once.
inline DepthwiseSegments lay_out_segments(const Axis& horizontal, const DepthwisePlan& own, Carver* memory) {
  const int64_t lists = horizontal.phases() + own.columns.spreads;
  DepthwiseSegments at{nullptr, nullptr, nullptr, most_segments(horizontal), most_phase_taps(horizontal)};
  at.list = memory->take<SegmentList>(lists);
  at.segment = memory->take<ColumnSegment>(lists, at.most);
  at.tap = memory->take<ColumnTap>(lists, at.most, at.most_taps);
  return at;
}

template <class A>
struct DepthwiseColumnsWorkspace {
  PhaseTaps* rows;  // (vertical phases)
  DepthwiseSegments segments;
  A* zeros;    // what lies outside: a row of the source, of each channel of a call
  A* weights;  // forward, input_grad: (C, R S), of another type alone
  A* biases;   // (C)
  A* sums;     // weight_grad: (splits, C, R S)
};
template <class A>
DepthwiseColumnsWorkspace<A> lay_out_columns_workspace(const ConvProblem& z, Pass pass, const DepthwisePlan& own,
                                                       Carver* memory) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const bool weight_grad = pass == Pass::WeightGrad, same_type = element_bytes(z.dtype) == int64_t(sizeof(A));
  const int64_t taps = product(z.r, z.s), plane = product(vertical.source, horizontal.source);
  DepthwiseColumnsWorkspace<A> at{};
  at.rows = memory->take<PhaseTaps>(vertical.phases());
  at.segments = lay_out_segments(horizontal, own, memory);
  at.zeros = memory->take<A>(own.columns.row_pitch + product(own.columns.call_channels - 1, plane));
  at.weights = memory->take<A>(weight_grad || same_type ? 0 : z.c, taps);
  at.biases = memory->take<A>(weight_grad ? 0 : z.c);
  at.sums = memory->take<A>(weight_grad ? own.splits : 0, z.c, taps);
  return at;
}

// Whether the rows that neighbouring outputs read overlap, and are listed once: the loops know the distance then.
inline bool outputs_share_rows(const PhaseTaps& taps, int64_t step) {
  return taps.count > 1 && taps.offset_step == 1 && (step == 1 || step == 2);
}
// Source rows that a block of outputs below one another lists at most.
inline int64_t most_listed_rows(const Axis& vertical, int64_t block) {
  const int64_t taps = most_phase_taps(vertical);
  return vertical.dilation == 1 && vertical.step() <= 2 ? max_of(block, (block - 1) * vertical.step() + taps)
                                                        : block * taps;
}

template <class A>
struct DepthwiseColumnsScratch {
  const A** source_rows;  // the rows that a block of outputs reads
  const A** grad_rows;    // weight_grad: of a block
  A* packed_source;       // copies of the source's rows
  A* packed_grad;         // (block, grad_pitch)
  A* packed_result;       // (call_channels, phases, block, result_pitch)
  A* lane_sums;           // weight_grad: (tile_c, R S, lanes)
  int64_t grad_pitch, result_pitch;
};
template <class A>
DepthwiseColumnsScratch<A> lay_out_columns_scratch(const ConvProblem& z, Pass pass, const DepthwisePlan& own,
                                                   const Machine& machine, Carver* memory) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const bool weight_grad = pass == Pass::WeightGrad;
  const int64_t lanes = machine.vector_bytes / int64_t(sizeof(A));
  const int64_t block = weight_grad ? columns_dot_rows(machine) : kColumnsRows;
  const int64_t listed = most_listed_rows(vertical, block);
  const int64_t packed_rows = own.result_in_place ? 0 : block;  // of the result or the gradient
  DepthwiseColumnsScratch<A> at{};
  at.grad_pitch = round_up(horizontal.output, lanes);
  at.result_pitch = round_up(horizontal.longest_count(), lanes);
  at.source_rows = memory->take<const A*>(listed);
  at.grad_rows = memory->take<const A*>(weight_grad ? block : 0);
  at.packed_source = memory->take<A>(own.source_in_place ? 0 : listed, own.columns.row_pitch);
  at.packed_grad = memory->take<A>(weight_grad ? packed_rows : 0, at.grad_pitch);
  at.packed_result =
      memory->take<A>(weight_grad ? 0 : packed_rows, own.columns.call_channels, horizontal.phases(), at.result_pitch);
  at.lane_sums = memory->take<A>(weight_grad ? own.tile_c : 0, z.r, z.s, lanes);
  return at;
}

// ---- lanes are channels

template <class A>
struct DepthwiseChannelsWorkspace {
  PhaseTaps* rows;        // (vertical phases)
  PhaseColumns* columns;  // (horizontal phases)
  A* weights;             // forward, input_grad: (C / lanes, R S, lanes)
  A* biases;              // (C)
  A* sums;                // weight_grad: (splits, C / lanes, R S, lanes)
};
template <class A>
DepthwiseChannelsWorkspace<A> lay_out_channels_workspace(const ConvProblem& z, Pass pass, const DepthwisePlan& own,
                                                         const Machine& machine, Carver* memory) {
  const bool weight_grad = pass == Pass::WeightGrad;
  const int64_t padded_c = round_up(z.c, machine.vector_bytes / int64_t(sizeof(A))), taps = product(z.r, z.s);
  DepthwiseChannelsWorkspace<A> at{};
  at.rows = memory->take<PhaseTaps>(vertical_axis(z, pass).phases());
  at.columns = memory->take<PhaseColumns>(horizontal_axis(z, pass).phases());
  at.weights = memory->take<A>(weight_grad ? 0 : padded_c, taps);
  at.biases = memory->take<A>(weight_grad ? 0 : padded_c);
  at.sums = memory->take<A>(weight_grad ? own.splits : 0, padded_c, taps);
  return at;
}

// E is the type that the loops read and write.
template <class E>
struct DepthwiseChannelsScratch {
  const E** source_rows;  // that a block of outputs reads; nullptr: outside the source
  E* packed_source;       // (rows, columns of the source, tile_c)
  E* packed_result;       // (columns of the result, tile_c); weight_grad: of the gradient
};
template <class E>
DepthwiseChannelsScratch<E> lay_out_channels_scratch(const ConvProblem& z, Pass pass, const DepthwisePlan& own,
                                                     Carver* memory) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t rows = most_phase_taps(vertical) + (own.channels.block_rows - 1) * vertical.step();
  DepthwiseChannelsScratch<E> at{};
  at.source_rows = memory->take<const E*>(rows);
  at.packed_source = memory->take<E>(own.source_in_place ? 0 : rows, horizontal.source, own.tile_c);
  at.packed_result = memory->take<E>(own.result_in_place ? 0 : horizontal.output, own.tile_c);
  return at;
}

}  // namespace conv_ext
