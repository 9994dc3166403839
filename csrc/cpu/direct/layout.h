// What the plan of the direct algorithm says.
#pragma once

#include "../../common/indexing.h"

namespace conv_ext {

struct DirectPlan {
  // Outputs per tile and phase; how many images lie side by side in a vector; whether the lanes of a tile run on across
  // its rows (the columns between two rows are computed and thrown away) or end with each row.
  int64_t tile_h, tile_w, images;
  bool flat;
  int64_t channel_pitch;  // elements of one packed source channel of a tile
  int64_t task_groups;    // groups per task: small ones are packed together
  int64_t task_m;         // forward, input_grad: outputs of the gemm_m dimension per task
  // weight_grad: block of (K/g, C/g) per task; into how many parts, added in order, the reduction is cut.
  int64_t tile_k, tile_c, splits;
  int64_t grad_pitch;  // elements of one packed row of the upstream gradient
};

}  // namespace conv_ext
