// What the plan of the panel algorithm says, and how channels and taps are cut into blocks.
#pragma once

#include "../../common/indexing.h"

namespace conv_ext {

// Panels, forward and input_grad: the products of one chain are those of a block of channels and taps.
constexpr int64_t kPanelProducts = 192;
constexpr int64_t kMostJoined = 512;      // products of an output whose taps are joined
constexpr int64_t kFewChannels = 32;      // vectors run along them whatever the layout
constexpr int64_t kMostZeros = 16 << 10;  // elements, of which padding is read then
struct PanelBlocks {
  int64_t channels, taps;  // into how many parts each of them is cut
  int64_t count() const { return product(channels, taps); }
  // Products of the longest block.
  int64_t longest(int64_t all_channels, int64_t all_taps) const {
    return ceil_div(all_channels, channels) * ceil_div(all_taps, taps);
  }
};
inline PanelBlocks panel_blocks(int64_t channels, int64_t taps) {
  const int64_t cut_taps = max_of(1, ceil_div(taps, kPanelProducts));
  return {cut_taps > 1 ? channels : max_of(1, ceil_div(product(channels, taps), kPanelProducts)), cut_taps};
}
// Neighbouring taps of few channels are read as one run of channels, where the memory is channels_last.
inline bool joins_taps(const ConvProblem& z) {
  return z.s > 1 && z.dilation_w == 1 && z.c <= 32 && product(z.c, z.r, z.s) <= kMostJoined;
}
// weight_grad by panels: a kernel without taps or padding reads the input where it lies.
inline bool reads_in_place(const ConvProblem& z) {
  return z.r * z.s == 1 && !z.pad_top && !z.pad_bottom && !z.pad_left && !z.pad_right;
}
// weight_grad by panels: outputs of a tile (a panel of four vectors so long is three quarters of L1), and lines of
// memory that are prefetched for the next tile, where the operands exceed so many bytes.
constexpr int64_t kPanelPositions = 144, kLinesAhead = 4096, kMostProducts = 2 * kPanelProducts;
constexpr double kWorthPrefetching = 1 << 20;
struct PanelTasks {
  int64_t block;    // positions (or vectors of positions) of a task, at most
  int64_t blocks;   // tasks that share out the positions of a phase
  int64_t parts_m;  // tasks that share out the panels of weights
};

struct PanelsPlan {
  // weight_grad: outputs of a tile; images of a tile, one after the other, and elements of one of them in a packed
  // channel; elements of a packed channel.
  int64_t tile_h, tile_w, batch, image_pitch, channel_pitch;
  // weight_grad: block of (K/g, C/g) per task; into how many parts, added in order, the reduction is cut.
  int64_t tile_k, tile_c, splits;
  bool along_input;  // weight_grad: vectors run along C instead of K
  PanelTasks along_channels, along_positions;
};

}  // namespace conv_ext
