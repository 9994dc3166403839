// What the plan of the broadcast algorithm says, and its register tile.
#pragma once

#include "../../common/indexing.h"

namespace conv_ext {

// Broadcast: a register tile of `vectors` of channels, and so many outputs as leave registers for their operands.
constexpr int64_t kBroadcastV = 4;
constexpr int64_t broadcast_positions(int64_t vector_bytes, int64_t vectors) {
  const int64_t registers = vector_bytes == 64 ? 31 : vector_bytes == 32 ? 15 : 14;  // products of SSE2 take one
  const int64_t most = (registers - vectors) / vectors;
  return most > 14 ? 14 : most;
}
struct BroadcastPlan {
  int64_t tile_h, tile_w, images;  // outputs of a tile and phase; images side by side
  int64_t tile_c;                  // channels whose source is packed together
  int64_t channel_pitch;           // elements of one packed source channel of a tile
  int64_t vectors;                 // of a panel of weights
  int64_t rows;                    // outputs whose sums are held together
  int64_t products;                // of the longest chain
  int64_t parts_m;                 // tasks that share out the panels of weights
};

}  // namespace conv_ext
