// What the plan of the implicit matrix product says, and how its memory is laid out.
#pragma once

#include "../base/taps.h"
#include "../machine.h"
#include "../../common/carver.h"
#include "../../common/roles.h"

namespace conv_ext {

// The register tile of AVX512_BF16: rows by blocks of lanes. Outputs, or channels and taps, whose pairs lie together
// are a block. 14 rows beside two blocks, 28 sums of 32 registers, or 6 beside four; 14 divides the usual maps.
constexpr int kDotLanes = 16, kDotBlocks = 4;
constexpr int kDotRows = 14;

// forward, input_grad: what is packed first, for all tasks; each packs what it needs of the other. AMX: or the weights,
// and positions of 1x1 kernels are a line, whose next ones are packed while the tiles multiply; as rows, or as lanes.
enum class DotSchedule : int32_t { Weights, Source, Line, Lanes };

struct ImplicitGemmPlan {
  int64_t parts;                   // bfloat16 numbers that an operand is cut into
  int64_t tile_h, tile_w, images;  // outputs of a tile and phase; images one after the other (AMX: side by side)
  int64_t channel_pitch;           // elements of one part of a packed tile (AMX: of 32 channels of it)
  int64_t task_m;                  // forward, input_grad: outputs of the gemm_m dimension per task
  DotSchedule schedule;
  int64_t run;  // forward, input_grad of a line: blocks of 32 positions that a panel multiplies one after the other
  // weight_grad: block of (K/g, C/g) per task; into how many parts, added in order, the reduction is cut. Where the
  // source is packed first, or is a line: tasks that share out the tiles.
  int64_t tile_k, tile_c, splits;
  int64_t grad_pitch;  // elements of one packed row of the upstream gradient
  bool kept;           // the packed weights lie where other calls find them, not in the workspace
};

// Where all taps read the same offset, only the positions that a stride leaves over are packed.
inline Reach packed_reach(const Axis& axis) {
  const Reach reach = reach_of(axis);
  return reach.span == 1 ? Reach{reach.low, 1, axis.step(), 1} : reach;
}

// A run of neighbouring elements of a row.
struct Segment {
  int64_t x;         // first element, from the row's start
  int64_t w;         // pairs in w before it
  int64_t elements;  // where it is odd, the last pair has no second element
};

// The order of the reduction: taps by ascending packed position, with all channels of a tap together.
struct DotTables {
  TapTable taps;  // by position
  Reach down, across;
  int64_t channels;
  int64_t pitch;           // packed positions between two rows
  Segment* segment;        // those of one pair of phases together
  int64_t* first_tap;      // (segments) where in the table of taps a segment begins
  int64_t* segment_begin;  // (phases + 1)
  int64_t* tap_pair;       // (R S) of tap r * S + s: pairs before its first channel; -1: it touches no output
  int64_t pairs;           // of all phases

  void lay_out(const ConvProblem& z, Pass pass, Carver& memory) {
    taps.lay_out(z, pass, memory);
    segment = memory.take<Segment>(z.r, z.s);
    first_tap = memory.take<int64_t>(z.r, z.s);
    tap_pair = memory.take<int64_t>(z.r, z.s);
    segment_begin = memory.take<int64_t>(taps.phases() + 1);
  }
  // For tiles so wide, of so many channels.
  void build(int64_t tile_w, int64_t its_channels) {
    taps.build(TapOrder::ByPosition);
    down = packed_reach(taps.vertical);
    across = packed_reach(taps.horizontal);
    channels = its_channels;
    pitch = across.extent(tile_w);
    for (int64_t i = 0; i < taps.vertical.taps * taps.horizontal.taps; ++i) tap_pair[i] = -1;
    pairs = 0;
    int64_t next = 0;
    for (int64_t phase = 0; phase < taps.phases(); ++phase) {
      const int64_t first = taps.begin[phase];
      segment_begin[phase] = next;
      for (int64_t t = first; t < taps.begin[phase + 1]; ++t) {
        if (t == first || taps.row[t] != taps.row[t - 1] || taps.column[t] != taps.column[t - 1] + 1) {
          const int64_t at = (taps.row[t] - down.low) * pitch + taps.column[t] - across.low;
          first_tap[next] = t;
          segment[next++] = {at * channels, pairs, 0};
        }
        Segment& open = segment[next - 1];
        tap_pair[taps.tap[t]] = open.w + open.elements / 2;
        open.elements += channels;
        pairs = open.w + ceil_div(open.elements, 2);
      }
    }
    segment_begin[taps.phases()] = next;
  }
};

// Elements of a packed block of weights: every tap may be a segment of its own, with half a pair.
inline int64_t dot_block_elements(const ConvProblem& z, int64_t channels) {
  return product(z.r, z.s, ceil_div(channels, 2), 2 * kDotLanes);
}
// weight_grad: channels and taps of a task, in whole blocks.
inline int64_t dot_block_lanes(const ConvProblem& z, const ImplicitGemmPlan& own) {
  return round_up(product(own.tile_c, z.r, z.s), kDotLanes);
}

// Half: bfloat16. The weights of forward and input_grad that all tasks share: (groups, blocks, pairs, 16, 2).
template <class Half>
inline Half* dot_weights(const ConvProblem& z, Pass pass, Carver& memory) {
  const int64_t blocks = product(z.groups, ceil_div(result_channels(z, pass), kDotLanes));
  return memory.take<Half>(blocks, dot_block_elements(z, source_channels(z, pass)));
}

template <class Half>
struct DotWorkspace {
  DotTables tables;  // forward, input_grad
  float* bias;       // forward, input_grad: (groups, blocks, 16)
  // forward, input_grad: what all tasks share, the weights, or the tiles of the source (groups, tiles, channel_pitch).
  Half* packed;
  float* partial;  // weight_grad in several parts: (splits, blocks of C, K, lanes)
};
template <class Half>
inline DotWorkspace<Half> dot_workspace(const ConvProblem& z, Pass pass, const ImplicitGemmPlan& own, Carver& memory) {
  DotWorkspace<Half> w{};
  if (pass == Pass::WeightGrad) {
    if (own.splits > 1)
      w.partial = memory.take<float>(own.splits, ceil_div(z.group_c(), own.tile_c), z.k, dot_block_lanes(z, own));
    return w;
  }
  const int64_t blocks = product(z.groups, ceil_div(result_channels(z, pass), kDotLanes));
  w.tables.lay_out(z, pass, memory);
  w.bias = memory.take<float>(blocks, kDotLanes);
  if (own.schedule == DotSchedule::Source) {
    const Axis &vertical = w.tables.taps.vertical, &horizontal = w.tables.taps.horizontal;
    const int64_t tiles = product(z.groups, ceil_div(z.n, own.images), ceil_div(vertical.longest_count(), own.tile_h),
                                  ceil_div(horizontal.longest_count(), own.tile_w));
    w.packed = memory.take<Half>(tiles, own.channel_pitch);
  } else if (!own.kept) {
    w.packed = dot_weights<Half>(z, pass, memory);
  }
  return w;
}

template <class Half>
struct DotScratch {
  Half* packed;  // forward, input_grad: a tile of the source, or the weights of a task
  // weight_grad
  DotTables tables;
  int64_t* at;  // (outputs) packed place of each
  Half* flat;   // (2, lanes) where taps begin within blocks of lanes
  Half* grad;   // (tile_k, grad_pitch)
  Half* pairs;  // (lanes / 16, pairs of outputs, 16, 2)
  Half* input;  // (images, rows, columns, tile_c)
  float* sums;  // (tile_k, lanes) of a reduction in one part
};
template <class Half>
inline DotScratch<Half> dot_scratch(const ConvProblem& z, Pass pass, const ImplicitGemmPlan& own, Carver& memory) {
  DotScratch<Half> s{};
  if (pass != Pass::WeightGrad) {
    const int64_t channels = source_channels(z, pass);
    s.packed = own.schedule == DotSchedule::Source
                   ? memory.take<Half>(own.task_m / kDotLanes, dot_block_elements(z, channels))
                   : memory.take<Half>(own.channel_pitch);
    return s;
  }
  const int64_t outputs = product(own.images, own.tile_h, own.tile_w), lanes = dot_block_lanes(z, own);
  s.tables.lay_out(z, pass, memory);
  s.at = memory.take<int64_t>(outputs);
  s.flat = memory.take<Half>(2, round_up(product(own.tile_c, z.r, z.s), 32));
  s.grad = memory.take<Half>(own.tile_k, own.grad_pitch);
  s.pairs = memory.take<Half>(lanes, round_up(outputs, 2));
  s.input = memory.take<Half>(own.images, packed_reach(s.tables.taps.vertical).extent(own.tile_h),
                              packed_reach(s.tables.taps.horizontal).extent(own.tile_w), own.tile_c);
  if (own.splits == 1) s.sums = memory.take<float>(own.tile_k, lanes);
  return s;
}

}  // namespace conv_ext
