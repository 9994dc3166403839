// How the CUDA kernels for few channels cut a pass into blocks: what their plan and their launchers share.
//
// A block holds a box of the source (and, for weight_grad, of the upstream gradient) in shared memory. Sizes follow
// from the shape without N; no sum of forward and input_grad depends on them.
#pragma once

#include "../../common/indexing.h"

namespace conv_ext {

constexpr int64_t kWindowThreads = 128, kWindowGradThreads = 256, kWindowGradColumns = 9;

struct CudaWindow {
  int64_t fixed;               // taps of an axis that the kernel knows when it is compiled: 3, 5; 0: any
  int64_t height, channels;    // a thread's outputs below one another, and its channels of the result
  int64_t groups, rows;        // a block's groups, and rows of each: channels of the result, rounded up
  int64_t tile_h, tile_w;      // a block's outputs, from the origin on
  int64_t chunk;               // source channels of a group that are in shared memory at once
  int64_t threads;             // of a block
  int64_t origin_h, origin_w;  // where the first tile begins: 0, or a little before
  int64_t weight_bytes, box_bytes, shared_bytes;
  // weight_grad: blocks of columns (a column: a tap of an input channel) of a block, threads that share the positions,
  // and the bytes of one tile's two boxes.
  int64_t columns, lanes, stage_bytes;
  // Bytes that are copied into a box at once: 16, 8, 4, or one number; of weight_grad's upstream gradient.
  int64_t copy_bytes, grad_copy_bytes;
  bool stores_vectors;  // forward, input_grad: a thread's channels of the result are written at once
};

// input_grad of stride 1 is forward with the kernel turned round.
inline Axis window_axis(Axis a) {
  if (!a.inverse || a.stride != 1) return a;
  return {false, a.taps, a.source, a.output, 1, a.dilation, (a.taps - 1) * a.dilation - a.pad};
}
inline int64_t real_bytes(const ConvProblem& z) { return element_bytes(z.dtype) / parts_of(z.dtype); }

// The box of `channels` channels that a tile reads.
struct WindowBox {
  int64_t rows, columns, line, channels;
  int64_t pad;  // numbers between channels: their rows then begin in different banks of shared memory
  int64_t bytes;
};
inline WindowBox window_box(const ConvProblem& z, Axis vertical, Axis horizontal, int64_t tile_h, int64_t tile_w,
                            int64_t channels, bool spread = false) {
  const int64_t vector = 16 / real_bytes(z);
  WindowBox box{span_rows(vertical, tile_h), span_rows(horizontal, tile_w), channels, channels, 0, 0};
  // A line of columns begins at a multiple of 16 bytes of the tensor's row and ends at one.
  if (!z.channels_last) box.line = round_up(box.columns + vector - 1, vector);
  // Channels are then an odd number of 16 bytes apart, one of every eight.
  if (!z.channels_last && spread) box.pad = floor_mod(1 - product(box.rows, box.line) / vector, 8) * vector;
  const int64_t numbers = z.channels_last ? product(box.rows, box.columns, box.channels)
                                          : product(product(box.rows, box.line) + box.pad, box.channels);
  box.bytes = round_up(product(numbers, real_bytes(z)), 16);
  return box;
}

// First layers on the tensor cores: where weights, offsets and finished sums lie behind the box.
struct FirstLayerRoom {
  int64_t numbers, pitch;  // of a row of weights: with zeros up to whole products; to the next row
  int64_t weights_at, offsets_at, sums_at, bytes;
};
inline FirstLayerRoom first_layer_room(const ConvProblem& z, int64_t box_bytes) {
  const int64_t size = real_bytes(z);
  FirstLayerRoom room{};
  room.numbers = round_up(product(z.c, z.r, z.s), 32 / size);
  room.pitch = room.numbers + 16 / size;  // an odd number of 16 bytes: eight rows fall into different banks
  room.weights_at = box_bytes;
  room.offsets_at = room.weights_at + 64 * room.pitch * size;
  room.sums_at = room.offsets_at + room.numbers * 4;
  room.bytes = room.sums_at + 16 * (128 + 4) * 4;
  return room;
}

// The two boxes of weight_grad. A thread's rows may reach beyond the last group's: there is room for them.
struct WindowGradBoxes {
  WindowBox input, grad;
};
inline WindowGradBoxes window_grad_boxes(const ConvProblem& z, const CudaWindow& w) {
  const Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const Axis down{false, 1, z.p, z.p, 1, 1, 0}, across{false, 1, z.q, z.q, 1, 1, 0};
  const int64_t rows = w.groups == 1 ? w.rows : w.groups * z.group_k() + w.rows - z.group_k();
  return {window_box(z, vertical, horizontal, w.tile_h, w.tile_w, w.groups * z.group_c()),
          window_box(z, down, across, w.tile_h, w.tile_w, rows, true)};
}

}  // namespace conv_ext
