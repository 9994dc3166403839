// What the plan of the implicit matrix product says.
#pragma once

#include "../../common/indexing.h"

namespace conv_ext {

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

}  // namespace conv_ext
