// What the plan of the implicit matrix product says, and how its memory is laid out.
#pragma once

#include "../../common/carver.h"
#include "../machine.h"

namespace conv_ext {

// The register tile: rows by blocks of lanes. Outputs, or channels and taps, whose pairs lie together are a block. With
// AVX512_BF16 14 rows beside two blocks, 28 sums of 32 registers, or 6 beside four; 14 divides the usual maps. With AMX
// two rows of matrices by two.
constexpr int kDotLanes = 16, kDotBlocks = 4;
constexpr int kDotRowsOfVectors = 14, kDotRowsOfMatrices = 32;
constexpr int most_dot_rows(Bf16Dot dot) { return dot == Bf16Dot::Tiles ? kDotRowsOfMatrices : kDotRowsOfVectors; }

struct ImplicitGemmPlan {
  int64_t parts;                   // bfloat16 numbers that an operand is cut into
  int64_t tile_h, tile_w, images;  // outputs of a tile and phase; images one after the other
  int64_t channel_pitch;           // elements of one part of a packed tile
  int64_t task_m;                  // forward, input_grad: outputs of the gemm_m dimension per task
  bool weights_in_tasks;           // the source is packed for all tasks, the weights by each
  // weight_grad: block of (K/g, C/g) per task; into how many parts, added in order, the reduction is cut. Where the
  // weights are packed in tasks: tasks that share out the tiles.
  int64_t tile_k, tile_c, splits;
  int64_t grad_pitch;  // elements of one packed row of the upstream gradient
};

// How the outputs of an axis read a tile that is packed without regard to the residues: output i finds the source of
// a tap at packed position i * output_step + (offset(tap) - low) of a tile that begins with output 0.
struct Reach {
  int64_t low, span;                 // smallest offset; packed positions from there to the largest, both included
  int64_t source_step, output_step;  // source positions between packed neighbours; packed ones between outputs

  int64_t extent(int64_t outputs) const { return outputs > 0 ? (outputs - 1) * output_step + span : 0; }
};
inline Reach reach_of(const Axis& axis) {
  int64_t low = 0, high = 0;
  bool any = false;
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    CONV_EXT_PLAN_STEP();
    if (axis.phase_of(tap) >= axis.phases()) continue;
    const int64_t offset = axis.offset(tap);
    low = any ? min_of(low, offset) : offset;
    high = any ? max_of(high, offset) : offset;
    any = true;
  }
  // Where all read the same offset, only the positions that a stride leaves over are packed.
  if (low == high) return {low, 1, axis.step(), 1};
  return {low, high - low + 1, 1, axis.step()};
}

// A run of neighbouring elements of a row.
struct Segment {
  int64_t x;         // first element, from the row's start
  int64_t w;         // pairs in w before it
  int64_t elements;  // where it is odd, the last pair has no second element
};

// The order of the reduction: taps by ascending packed position, with all channels of a tap together.
struct DotTables {
  Axis vertical, horizontal;
  Reach down, across;
  int64_t channels;
  int64_t pitch;           // packed positions between two rows
  Segment* segment;        // those of one pair of phases together
  int64_t* first_tap;      // (segments) where in `tap` a segment begins
  int64_t* segment_begin;  // (phases + 1)
  int64_t* tap;            // (R S) r * S + s
  int64_t* tap_pair;       // (R S) of tap r * S + s: pairs before its first channel; -1: it touches no output
  int64_t pairs;           // of all phases

  void lay_out(const ConvProblem& z, Pass pass, Carver& memory) {
    vertical = vertical_axis(z, pass);
    horizontal = horizontal_axis(z, pass);
    const int64_t taps = z.r * z.s;
    segment = memory.take<Segment>(taps);
    first_tap = memory.take<int64_t>(taps);
    tap = memory.take<int64_t>(taps);
    tap_pair = memory.take<int64_t>(taps);
    segment_begin = memory.take<int64_t>(product(vertical.phases(), horizontal.phases()) + 1);
  }
  // For tiles so wide, of so many channels.
  void build(int64_t tile_w, int64_t its_channels) {
    down = reach_of(vertical);
    across = reach_of(horizontal);
    channels = its_channels;
    pitch = across.extent(tile_w);
    for (int64_t i = 0; i < vertical.taps * horizontal.taps; ++i) tap_pair[i] = -1;
    pairs = 0;
    int64_t next = 0, taken = 0;
    for (int64_t phase_h = 0; phase_h < vertical.phases(); ++phase_h)
      for (int64_t phase_w = 0; phase_w < horizontal.phases(); ++phase_w) {
        segment_begin[phase_h * horizontal.phases() + phase_w] = next;
        list_phase(phase_h, phase_w, &next, &taken);
      }
    segment_begin[vertical.phases() * horizontal.phases()] = next;
  }

 private:
  void list_phase(int64_t phase_h, int64_t phase_w, int64_t* next, int64_t* taken) {
    for (int64_t i = 0; i < vertical.taps; ++i) {
      const int64_t r = vertical.inverse ? vertical.taps - 1 - i : i;
      if (vertical.phase_of(r) != phase_h) continue;
      const int64_t row = (vertical.offset(r) - down.low) * pitch;
      int64_t end = -1;  // the position after the last tap of the segment that is open
      for (int64_t j = 0; j < horizontal.taps; ++j) {
        const int64_t s = horizontal.inverse ? horizontal.taps - 1 - j : j;
        if (horizontal.phase_of(s) != phase_w) continue;
        const int64_t at = row + horizontal.offset(s) - across.low;
        if (at != end) {
          first_tap[*next] = *taken;
          segment[(*next)++] = {at * channels, pairs, 0};
        }
        Segment& open = segment[*next - 1];
        tap_pair[r * horizontal.taps + s] = open.w + open.elements / 2;
        open.elements += channels;
        pairs = open.w + ceil_div(open.elements, 2);
        tap[(*taken)++] = r * horizontal.taps + s;
        end = at + 1;
      }
    }
  }
};

// Elements of a packed block of weights, of one part: every tap may be a segment of its own, with half a pair.
inline int64_t dot_block_elements(const ConvProblem& z, int64_t channels) {
  return product(z.r, z.s, ceil_div(channels, 2), 2 * kDotLanes);
}
// weight_grad: channels and taps of a task, in whole blocks.
inline int64_t dot_block_lanes(const ConvProblem& z, const ImplicitGemmPlan& own) {
  return round_up(product(own.tile_c, z.r, z.s), kDotLanes);
}

// Half: bfloat16.
template <class Half>
struct DotWorkspace {
  DotTables tables;  // forward, input_grad
  float* bias;       // forward, input_grad: (groups, blocks, 16)
  // forward, input_grad: what all tasks share, the weights (groups, blocks, parts, pairs, 16, 2), or the tiles of the
  // source (groups, tiles, parts, channel_pitch).
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
  const bool input_grad = pass == Pass::InputGrad;
  const int64_t channels = input_grad ? z.group_k() : z.group_c(), rows_m = input_grad ? z.group_c() : z.group_k();
  const int64_t blocks = product(z.groups, ceil_div(rows_m, kDotLanes));
  w.tables.lay_out(z, pass, memory);
  w.bias = memory.take<float>(blocks, kDotLanes);
  if (own.weights_in_tasks) {
    const Axis &vertical = w.tables.vertical, &horizontal = w.tables.horizontal;
    const int64_t tiles = product(z.groups, ceil_div(z.n, own.images), ceil_div(vertical.longest_count(), own.tile_h),
                                  ceil_div(horizontal.longest_count(), own.tile_w));
    w.packed = memory.take<Half>(tiles, own.parts, own.channel_pitch);
  } else {
    w.packed = memory.take<Half>(blocks, own.parts, dot_block_elements(z, channels));
  }
  return w;
}

template <class Half>
struct DotScratch {
  Half* packed;  // forward, input_grad: a tile of the source (parts, channel_pitch), or the weights of a task
  // weight_grad
  DotTables tables;
  int64_t* at;  // (outputs) packed place of each
  Half* flat;   // (2, lanes) where taps begin within blocks of lanes
  Half* grad;   // (parts, tile_k, grad_pitch)
  Half* pairs;  // (parts, lanes / 16, pairs of outputs, 16, 2)
  Half* input;  // (images, rows, columns, tile_c)
  float* sums;  // (tile_k, lanes) of a reduction in one part
};
template <class Half>
inline DotScratch<Half> dot_scratch(const ConvProblem& z, Pass pass, const ImplicitGemmPlan& own, Carver& memory) {
  DotScratch<Half> s{};
  if (pass != Pass::WeightGrad) {
    const int64_t channels = pass == Pass::InputGrad ? z.group_k() : z.group_c();
    s.packed = own.weights_in_tasks
                   ? memory.take<Half>(own.task_m / kDotLanes, own.parts, dot_block_elements(z, channels))
                   : memory.take<Half>(own.parts, own.channel_pitch);
    return s;
  }
  const int64_t outputs = product(own.images, own.tile_h, own.tile_w), lanes = dot_block_lanes(z, own);
  s.tables.lay_out(z, pass, memory);
  s.at = memory.take<int64_t>(outputs);
  s.flat = memory.take<Half>(2, round_up(product(own.tile_c, z.r, z.s), 32));
  s.grad = memory.take<Half>(own.parts, own.tile_k, own.grad_pitch);
  s.pairs = memory.take<Half>(own.parts, lanes, round_up(outputs, 2));
  s.input = memory.take<Half>(own.images, reach_of(s.tables.vertical).extent(own.tile_h),
                              reach_of(s.tables.horizontal).extent(own.tile_w), own.tile_c);
  if (own.splits == 1) s.sums = memory.take<float>(own.tile_k, lanes);
  return s;
}

}  // namespace conv_ext
