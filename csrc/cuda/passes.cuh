// The three passes as products of matrices: from the number of a block to the coordinates that it reads and writes.
#pragma once

#include "igemm.cuh"
#include "pack.cuh"

namespace conv_ext {
namespace cuda {

// What a block is given: two operands, the sums that it forms, the part of gemm_k that it sums over.
template <class T, class Sum, class LeftRows, class LeftK, class RightRows, class RightK>
struct BlockWork {
  Patches<T> left, right;
  LeftRows left_rows;
  LeftK left_k;
  RightRows right_rows;
  RightK right_k;
  RightRows columns;  // gemm_n as it lies in the result
  Result<T, Sum> result;
  int64_t first_row;  // of the group, in the result
  int64_t count_m, first_m, first_n, first_k;
  int32_t steps, chain;
};

// How blocks are numbered: tiles of gemm_m run fastest, for they read the same part of the source.
struct Grid {
  int32_t tiles_m, tiles_n, groups, phases, splits;
  int32_t steps;      // of a split
  int32_t chain = 0;  // steps that the tensor cores sum up themselves; 0: all

  int64_t blocks() const { return int64_t(tiles_m) * tiles_n * groups * phases * splits; }
};
struct BlockPlace {
  int32_t m, n, group, phase, split;
};
CONV_EXT_DEVICE BlockPlace place_of(const Grid& grid, int64_t block) {
  uint32_t rest = uint32_t(block);
  BlockPlace place;
  place.m = int32_t(rest % uint32_t(grid.tiles_m));
  rest /= uint32_t(grid.tiles_m);
  place.n = int32_t(rest % uint32_t(grid.tiles_n));
  rest /= uint32_t(grid.tiles_n);
  place.group = int32_t(rest % uint32_t(grid.groups));
  rest /= uint32_t(grid.groups);
  place.phase = int32_t(rest % uint32_t(grid.phases));
  place.split = int32_t(rest / uint32_t(grid.phases));
  return place;
}
CONV_EXT_DEVICE int32_t steps_of(const Grid& grid, int32_t split, int64_t gemm_k, int block_k) {
  const int64_t all = (gemm_k + block_k - 1) / block_k, rest = all - int64_t(split) * grid.steps;
  return rest < 0 ? 0 : rest < grid.steps ? int32_t(rest) : grid.steps;
}

// What forms a sum again: of float32 alone, the one type that three_tf32 computes.
template <class T, class Again>
using AgainOf = std::conditional_t<std::is_same_v<T, float>, Again, NotAgain>;

// forward and input_grad gather: each output is a sum over the taps and channels of the source that it reads.
// The weights lie packed as [phase][group][gemm_m][pitch], a row being a phase's taps and channels in Taps' order.
template <class T, class Sum, Load load>
struct Gather {
  using LeftRows = Line;
  using LeftK = Line;
  using RightRows = Positions;
  using RightK = Taps;
  static constexpr Load kLoadLeft = Load::KVector, kLoadRight = load;
  using Work = BlockWork<T, Sum, LeftRows, LeftK, RightRows, RightK>;

  struct Parameters {
    Grid grid;
    Axis vertical, horizontal;
    int32_t phases_w;
    int32_t images, rows, channels;  // of a group: gemm_m, and channels of the source
    Patches<T> source;
    Strides from, to;
    const T* weights;
    int64_t pitch;
    Result<T, Sum> result;
    int64_t split_elements;
    AgainOf<T, GatherAgain> again;
  };

  CONV_EXT_DEVICE static Work work(const Parameters& p, int64_t block, int tile_m, int tile_n, int block_k) {
    const BlockPlace place = place_of(p.grid, block);
    const PhaseAxis down = phase_of(p.vertical, place.phase / p.phases_w),
                    across = phase_of(p.horizontal, place.phase % p.phases_w);
    Work work;
    work.right = p.source;
    work.right.data += place.group * (p.channels * p.from.c);
    work.right_rows = {p.images,   down.count,   across.count, down.step, across.step,
                       down.first, across.first, p.from.n,     p.from.h,  p.from.w};
    work.right_k = {down.taps, across.taps, p.channels, down.delta, across.delta, p.from.c, p.from.h, p.from.w};
    work.columns = {p.images,          down.count,          across.count, down.output_step, across.output_step,
                    down.first_output, across.first_output, p.to.n,       p.to.h,           p.to.w};
    const int64_t gemm_k = work.right_k.count();
    work.left = {p.weights + (int64_t(place.phase) * p.grid.groups + place.group) * p.rows * p.pitch, 1, 1};
    work.left_rows = {p.rows, p.pitch};
    work.left_k = {int32_t(gemm_k), 1};
    work.result = p.result;
    const int64_t first = place.group * int64_t(p.rows);
    if (p.result.bias != nullptr) work.result.bias += first * p.result.bias_stride;
    if (p.result.partial != nullptr) {
      work.result.partial += place.split * p.split_elements + first * p.result.stride_m;
    } else {
      work.result.data += first * p.result.stride_m;
    }
    work.first_row = first;
    work.count_m = p.rows;
    work.first_m = int64_t(place.m) * tile_m;
    work.first_n = int64_t(place.n) * tile_n;
    work.first_k = int64_t(place.split) * p.grid.steps * block_k;
    work.chain = p.grid.chain;
    work.steps = steps_of(p.grid, place.split, gemm_k, block_k);
    return work;
  }
  // Where sum (m, n) stands in the result: image, channel, row, column.
  CONV_EXT_DEVICE static void index(const Work& work, int64_t m, int64_t n, int64_t (&at)[4]) {
    const Digits d = digits_of(n, work.columns.middle(), work.columns.low());
    const Coordinate place = work.columns.at(d);
    at[0] = d.high;
    at[1] = work.first_row + m;
    at[2] = place.h;
    at[3] = place.w;
  }
};

// weight_grad correlates: each weight is a sum over all positions of the upstream gradient times the input there.
template <class T, class Sum, Load load>
struct Correlate {
  using LeftRows = Line;
  using LeftK = Positions;
  using RightRows = Taps;
  using RightK = Positions;
  static constexpr Load kLoadLeft = load, kLoadRight = load;
  using Work = BlockWork<T, Sum, LeftRows, LeftK, RightRows, RightK>;

  struct Parameters {
    Grid grid;
    Axis vertical, horizontal;
    int32_t images, rows, channels;  // of a group: gemm_m, and channels of the input
    int32_t grad_channels, beyond;   // of a group of the upstream gradient; of the input's, so many are not there
    Patches<T> grad, input;
    Strides from_grad, from_input, to;  // the result's: K, C/g, R, S
    Result<T, Sum> result;
    int64_t split_elements;
    AgainOf<T, CorrelateAgain> again;
  };

  CONV_EXT_DEVICE static Work work(const Parameters& p, int64_t block, int tile_m, int tile_n, int block_k) {
    const BlockPlace place = place_of(p.grid, block);
    const Axis &v = p.vertical, &h = p.horizontal;
    Work work;
    work.left = p.grad;
    work.left.data += place.group * (p.grad_channels * p.from_grad.c);
    work.left_rows = {p.grad_channels, p.from_grad.c};
    work.left_k = {p.images, v.output, h.output, 1, 1, 0, 0, p.from_grad.n, p.from_grad.h, p.from_grad.w};
    work.right = p.input;
    work.right.data += place.group * (p.channels * p.from_input.c);
    work.right_rows = {v.taps,     h.taps,         p.channels,     v.dilation,
                       h.dilation, p.from_input.c, p.from_input.h, p.from_input.w};
    work.right_k = {p.images, v.output, h.output,       v.stride,       h.stride,
                    -v.pad,   -h.pad,   p.from_input.n, p.from_input.h, p.from_input.w};
    work.columns = {v.taps, h.taps, p.channels, 1, 1, p.to.c, p.to.h, p.to.w, p.beyond};
    work.result = p.result;
    const int64_t first = place.group * int64_t(p.rows) * p.result.stride_m;
    if (p.result.partial != nullptr) {
      work.result.partial += place.split * p.split_elements + first;
    } else {
      work.result.data += first;
    }
    work.first_row = place.group * int64_t(p.rows);
    work.count_m = p.rows;
    work.first_m = int64_t(place.m) * tile_m;
    work.first_n = int64_t(place.n) * tile_n;
    work.first_k = int64_t(place.split) * p.grid.steps * block_k;
    work.chain = p.grid.chain;
    work.steps = steps_of(p.grid, place.split, work.right_k.count(), block_k);
    return work;
  }
  // Where sum (m, n) stands in the result: k, c, r, s.
  CONV_EXT_DEVICE static void index(const Work& work, int64_t m, int64_t n, int64_t (&at)[4]) {
    const Digits d = digits_of(n, work.columns.middle(), work.columns.low());
    at[0] = work.first_row + m;
    at[1] = d.low;
    at[2] = d.high;
    at[3] = d.middle;
  }
};

}  // namespace cuda
}  // namespace conv_ext
