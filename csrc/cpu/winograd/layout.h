// What the plan of the Winograd algorithm says, and how its memory is laid out.
//
// A kernel larger than the transform's filter is cut into pieces of that size, taken for further channels: column
// (lane block, piece, lane) of the reduction. Slices, one for each pair of points, are an odd number of vectors apart,
// so that one place of all slices spreads over the sets of the cache.
#pragma once

#include "../../common/carver.h"
#include "../machine.h"
#include "../../common/roles.h"

namespace conv_ext {

// The register tile of the product: rows by vectors. 24 sums, 2 vectors of b and one number of a in 32 registers
// (AVX-512); 12 + 2 + 1 of 16 (AVX2, SSE2).
constexpr int product_rows(const Machine& machine) { return machine.registers == 32 ? 12 : 6; }
constexpr int kProductV = 2;

struct WinogradPlan {
  int64_t outputs, filter;         // F(outputs x outputs, filter x filter)
  int64_t tile_h, tile_w, images;  // of a block, in tiles
  // All weights are transformed first and then every block of tiles by itself, or the other way round.
  bool weights_first;
  bool kept;       // the transformed weights lie where other calls find them, not in the workspace
  int64_t task_m;  // forward, input_grad: outputs of the gemm_m dimension per task
  // weight_grad: block of (K/g, C/g) per task; into how many parts, added in order, the reduction is cut.
  int64_t tile_k, tile_c, splits;
};

struct WinogradSizes {
  int64_t lanes, panel;      // channels in a vector; in a panel of the product (kProductV vectors)
  int64_t points;            // pairs of points: (M + R - 1)^2
  int64_t pieces;            // of the kernel
  int64_t columns;           // of the reduction: channels in whole vectors, times pieces
  int64_t tiles_h, tiles_w;  // tiles of an image
  int64_t blocks, rows;      // blocks of tiles; tiles in a block at most
  int64_t window_h, window_w;
  // Columns whose weights are transformed on the way, where the source goes first; else all of them.
  int64_t chunk, chunk_blocks, chunks;
  int64_t panels;
  int64_t task_columns;              // weight_grad: columns of a task
  int64_t value_pitch, value_slice;  // transformed source: (chunks, points, rows, columns of a chunk)
  int64_t sum_pitch, sum_slice;      // products: (points, rows, gemm_m); weight_grad: (points, K, columns)
  int64_t weight_slice;              // transformed weights: (points, panels, columns of a chunk, panel)
  int64_t grad_pitch, grad_slice;    // weight_grad, transformed upstream gradient: (points, rows, K)
  int64_t window_elements;
};

// Transformed weights of one lane of gemm_m that are made on the way at once: 288 KiB for a panel of AVX-512.
constexpr int64_t kWinogradChunk = 2304;

// weight_grad: elements of a vector of weights, tap by tap, from which rows of taps are read in whole squares: the last
// row's square may reach a vector's length past the last tap.
inline int64_t winograd_turned_taps(int64_t taps, int64_t lanes) { return (taps + lanes) * lanes; }

inline int64_t winograd_pitch(int64_t elements, int64_t lanes) { return elements + lanes; }
inline int64_t winograd_slice(int64_t elements, int64_t lanes) { return (ceil_div(elements, lanes) | 1) * lanes; }

inline WinogradSizes winograd_sizes(const ConvProblem& z, Pass pass, const WinogradPlan& own, int64_t lanes) {
  const bool weight_grad = pass == Pass::WeightGrad;
  const int64_t channels = source_channels(z, pass), rows_m = result_channels(z, pass);
  const int64_t edge = own.outputs + own.filter - 1;
  const int64_t pieces_r = ceil_div(z.r, own.filter), pieces_s = ceil_div(z.s, own.filter);
  WinogradSizes w{};
  w.lanes = lanes;
  w.panel = kProductV * lanes;
  w.points = edge * edge;
  w.pieces = pieces_r * pieces_s;
  w.columns = round_up(channels, lanes) * w.pieces;
  w.tiles_h = ceil_div(vertical_axis(z, pass).output, own.outputs);
  w.tiles_w = ceil_div(horizontal_axis(z, pass).output, own.outputs);
  w.blocks = product(ceil_div(z.n, own.images), ceil_div(w.tiles_h, own.tile_h), ceil_div(w.tiles_w, own.tile_w));
  w.rows = own.images * own.tile_h * own.tile_w;
  w.window_h = own.tile_h * own.outputs + pieces_r * own.filter - 1;
  w.window_w = own.tile_w * own.outputs + pieces_s * own.filter - 1;
  // Squares of positions may reach past the last.
  w.window_elements = product(product(w.window_h, w.window_w) + lanes, lanes);
  w.panels = ceil_div(rows_m, w.panel);
  w.task_columns = weight_grad ? round_up(own.tile_c, lanes) * w.pieces : w.columns;
  const bool chunked = !weight_grad && !own.weights_first;
  const int64_t lane_blocks = ceil_div(channels, lanes);
  w.chunk_blocks =
      chunked ? max_of(1, min_of(lane_blocks, kWinogradChunk / (w.points * w.pieces * lanes))) : lane_blocks;
  w.chunks = ceil_div(lane_blocks, w.chunk_blocks);
  w.chunk = w.chunk_blocks * w.pieces * lanes;
  w.value_pitch = chunked ? w.chunk : winograd_pitch(w.task_columns, lanes);
  w.value_slice = winograd_slice(product(w.rows, w.value_pitch), lanes);
  if (weight_grad) {
    w.grad_pitch = winograd_pitch(round_up(own.tile_k, lanes), lanes);
    w.grad_slice = winograd_slice(product(w.rows, w.grad_pitch), lanes);
    w.sum_pitch = winograd_pitch(w.task_columns, lanes);
    w.sum_slice = winograd_slice(product(own.tile_k, w.sum_pitch), lanes);
  } else {
    w.sum_pitch = winograd_pitch(own.weights_first ? round_up(own.task_m, lanes) : w.panel, lanes);
    w.sum_slice = winograd_slice(product(w.rows, w.sum_pitch), lanes);
    w.weight_slice = winograd_slice(product(own.weights_first ? w.panels : 1, w.chunk, w.panel), lanes);
  }
  return w;
}

template <class A>
inline A* transformed_weights(const ConvProblem& z, const WinogradSizes& size, Carver& memory) {
  return memory.take<A>(z.groups, size.points, size.weight_slice);
}

template <class A>
struct WinogradWorkspace {
  A* weights;  // weights first: (groups, points, weight_slice)
  A* values;   // source first: (groups, blocks, chunks, points, value_slice)
  A* partial;  // weight_grad in several parts: (splits, K, R S, C/g in whole vectors)
};
template <class A>
inline WinogradWorkspace<A> winograd_workspace(const ConvProblem& z, Pass pass, const WinogradPlan& own,
                                               const WinogradSizes& size, Carver& memory) {
  WinogradWorkspace<A> w{};
  if (pass == Pass::WeightGrad) {
    if (own.splits > 1) w.partial = memory.take<A>(own.splits, z.k, z.r * z.s, round_up(z.group_c(), size.lanes));
  } else if (own.weights_first) {
    if (!own.kept) w.weights = transformed_weights<A>(z, size, memory);
  } else {
    w.values = memory.take<A>(z.groups, size.blocks, size.chunks, size.points, size.value_slice);
  }
  return w;
}

template <class A>
struct WinogradScratch {
  A* values;   // weights first, weight_grad: (points, value_slice)
  A* grads;    // weight_grad: (points, grad_slice)
  A* weights;  // source first: (chunks, points, weight_slice)
  A* sums;     // (points, sum_slice)
  A* window;   // a block's source or result, or the taps of some weights, lane by lane
};
template <class A>
inline WinogradScratch<A> winograd_scratch(const ConvProblem& z, Pass pass, const WinogradPlan& own,
                                           const WinogradSizes& size, Carver& memory) {
  const bool weight_grad = pass == Pass::WeightGrad;
  int64_t window = size.window_elements;
  WinogradScratch<A> s{};
  if (weight_grad || own.weights_first) s.values = memory.take<A>(size.points, size.value_slice);
  if (weight_grad) {
    s.grads = memory.take<A>(size.points, size.grad_slice);
    window = max_of(window, winograd_turned_taps(z.r * z.s, size.lanes));
  } else {
    if (!own.weights_first) s.weights = memory.take<A>(size.chunks, size.points, size.weight_slice);
    window = max_of(window, z.r * z.s * size.lanes * size.lanes);
  }
  s.sums = memory.take<A>(size.points, size.sum_slice);
  s.window = memory.take<A>(window);
  return s;
}

}  // namespace conv_ext
