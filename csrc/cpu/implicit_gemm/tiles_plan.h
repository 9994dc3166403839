// The plan of the matrix product in AMX's tiles: its schedule, its blocks, and where it is worth its packing.
#pragma once

#include "../plan_common.h"
#include "tiles_layout.h"

namespace conv_ext {

// Measured on an Emerald Rapids: weights of so many bytes beside so few outputs are packed by the tasks that multiply
// them, and all of the source before.
constexpr int64_t kDeepWeights = 1200 << 10, kDeepOutputs = 256;
constexpr int64_t kFewPositions = 64;    // of a tile that is cut no further for the sake of more tasks
constexpr int64_t kManyPositions = 256;  // up to which small images are put together
constexpr int64_t kLineTask = 2048;      // positions of a line's task, at most
// weight_grad: positions of a tile, and bounds of a task's block: K, C times taps, and bytes of sums, which share the
// second level of cache with both packed operands.
constexpr int64_t kGradPositions = 256, kGradRows = 256, kGradLanes = 576, kGradSums = 400 << 10;

// Whether the packing pays, counted in the time of the multiply-adds that it takes part in, which a tile's block does
// 2.04 times as fast in three parts as the other algorithms (at 150 GFLOP/s a core), 3.97 times in two. From a cost
// model fitted over 53 layers on one core of an Emerald Rapids, weights packed at the call, in both layouts:
//
//   padded blocks / blocks + (source numbers * a + results * b + weights * c) / multiply-adds of one image  <  gain
//
// A fifth of the gain is kept to spare, and fewer than 64 channels of a group were not measured.
struct TileRates {
  double gain, source, result, weights;
};
constexpr TileRates kTileRates[2][2] = {{{3.97, 85, 54, 50}, {3.97, 34, 38, 50}},   // two parts: NCHW, channels_last
                                        {{2.04, 45, 27, 30}, {2.04, 18, 19, 30}}};  // three parts
constexpr double kTileSpare = 1.2;
constexpr int64_t kLeastTileChannels = 64;

inline bool tiles_pay(const ConvProblem& z, Pass pass, int64_t parts) {
  if (min_of(z.group_c(), z.group_k()) < kLeastTileChannels) return false;
  // Of weight_grad both operands are packed anew for every block: 1x1 kernels were level.
  if (pass == Pass::WeightGrad && z.r * z.s == 1) return false;
  const TileRates& rates = kTileRates[parts - 2][z.channels_last];
  const double input = double(z.c) * double(z.h) * double(z.w), output = double(z.k) * double(z.p) * double(z.q);
  const double weights = double(z.k) * double(z.group_c()) * double(z.r) * double(z.s);
  const double products = weights * double(z.p) * double(z.q);
  const bool input_grad = pass == Pass::InputGrad;
  const int64_t rows = input_grad ? product(z.h, z.w) : product(z.p, z.q);
  const auto padded = [](int64_t count, int64_t block) { return double(round_up(count, block)) / double(count); };
  const double waste = padded(rows, 16) * padded(z.group_c(), kTileEdge) * padded(z.group_k(), kTileEdge);
  const double packing = ((input_grad ? output : input) * rates.source + (input_grad ? input : output) * rates.result +
                          weights * rates.weights) /
                         products;
  return kTileSpare * (waste + packing) < rates.gain;
}

// 1x1 kernels whose outputs are the positions of the source, where a position's channels are neighbours, or all
// positions of a channel; of other problems the weights are packed first.
inline DotSchedule line_schedule(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  const bool one = z.r == 1 && z.s == 1 && z.stride_h == 1 && z.stride_w == 1;
  const bool padded = z.pad_top != 0 || z.pad_bottom != 0 || z.pad_left != 0 || z.pad_right != 0;
  const bool room = product(2, tile_blocks(source_channels(z, pass)), kTileEdge, 64) <= most_tile_bytes(machine);
  if (!one || padded || !room) return DotSchedule::Weights;
  const auto &source = source_of(pass, strides), &result = result_of(pass, strides);
  if (source[1] == 1) return DotSchedule::Line;
  const auto dense_plane = [&](const int64_t(&stride)[4]) { return stride[3] == 1 && stride[2] == z.q; };
  return dense_plane(source) && dense_plane(result) ? DotSchedule::Lanes : DotSchedule::Weights;
}

// Cuts a tile of all outputs until it fits; then puts small images side by side.
template <class Bytes>
inline void cut_tile(const ConvProblem& z, int64_t count_h, int64_t count_w, int64_t least_w, int64_t together,
                     ImplicitGemmPlan* own, Bytes fits) {
  int64_t cut_h = 1, cut_w = 1;
  own->images = 1;
  const auto set = [&] {
    own->tile_h = ceil_div(count_h, cut_h);
    own->tile_w = ceil_div(count_w, cut_w);
  };
  set();
  shrink_until(fits, [&] {
    if (own->tile_h <= 1 && own->tile_w <= least_w) return false;
    (own->tile_h > 1 ? cut_h : cut_w) *= 2;
    set();
    return true;
  });
  if (cut_h > 1 || cut_w > 1) return;
  while (product(2 * own->images, count_h, count_w) <= together && own->images < z.n) {
    CONV_EXT_PLAN_STEP();
    own->images *= 2;
    if (fits()) continue;
    own->images /= 2;
    return;
  }
}

inline void prepare_tiles_gather(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t channels = source_channels(z, pass), rows_m = result_channels(z, pass);
  const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
  const int64_t panels = tile_blocks(rows_m), most_bytes = most_tile_bytes(machine);
  const bool share = z.flops() >= kWorthSharing;
  const auto part_bytes = [&] { return packed_part_bytes(vertical, horizontal, own.tile_h, own.tile_w, own.images); };
  const auto tile_bytes = [&] { return packed_tile_bytes(channels, own.parts, part_bytes()); };
  cut_tile(z, count_h, count_w, 16, kManyPositions, &own, [&] { return tile_bytes() <= most_bytes; });
  const auto tiles = [&] { return tiles_of_group(z, own, vertical, horizontal); };

  const int64_t weights = product(panels, panel_bytes(z, channels, own.parts));
  const bool deep = share && weights > kDeepWeights && product(count_h, count_w) <= kDeepOutputs &&
                    product(tiles(), tile_bytes()) <= weights;
  // A thread's scratch has either a tile or a panel. Where it has no room for one of them N may not decide which.
  const bool room_for_either = max_of(tile_bytes(), panel_bytes(z, channels, own.parts)) <= kScratchLimit &&
                               product(z.groups, weights) <= kWorkspaceLimit / 2;
  own.task_m = rows_m;
  own.splits = 1;
  if (deep && room_for_either) {
    own.schedule = DotSchedule::Source;
    own.task_m = kTileEdge;
    // A panel is packed by each task that has it.
    own.splits = max_of(1, min_of(tiles(), kEnoughTasks / 2 / product(z.groups, panels)));
    plan->tasks = product(z.groups, panels, own.splits);
  } else if (line_schedule(input) != DotSchedule::Weights) {
    own.schedule = line_schedule(input);
    const int64_t length = product(z.n, z.p, z.q);
    const int64_t wanted = share ? max_of(ceil_div(kEnoughTasks, z.groups), ceil_div(length, kLineTask)) : 1;
    const int64_t blocks = own.schedule == DotSchedule::Line ? ceil_div(length, kTileEdge)
                                                             : product(z.n, ceil_div(product(z.p, z.q), kTileEdge));
    own.splits = min_of(blocks, wanted);
    plan->tasks = product(z.groups, own.splits);
  } else {
    own.schedule = DotSchedule::Weights;
    const auto tasks = [&] { return product(z.groups, tiles()); };
    while (share && tasks() < kEnoughTasks && own.images == 1 && own.tile_h > 1 &&
           product(own.tile_h, own.tile_w) >= 2 * kFewPositions) {
      CONV_EXT_PLAN_STEP();
      own.tile_h = ceil_div(own.tile_h, 2);
    }
    const int64_t parts_m = share ? min_of(panels, ceil_div(kEnoughTasks, tasks())) : 1;
    own.task_m = product(ceil_div(panels, parts_m), kTileEdge);
    plan->tasks = product(tasks(), ceil_div(rows_m, own.task_m));
  }
  own.channel_pitch = part_bytes() / 2;
}

inline void prepare_tiles_weight_grad(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t taps = product(z.r, z.s);
  // Evenly large blocks of at most so many channels, in whole panels.
  const auto block_of = [](int64_t channels, int64_t most) {
    const int64_t blocks = ceil_div(channels, max_of(kTileEdge, most / kTileEdge * kTileEdge));
    return min_of(channels, round_up(ceil_div(channels, blocks), kTileEdge));
  };
  own.tile_c = block_of(z.group_c(), min_of(kGradRows, kGradLanes / taps));
  own.tile_k =
      block_of(z.group_k(),
               min_of(kGradRows, kGradSums / product(round_up(own.tile_c, kTileEdge), taps, int64_t(sizeof(float)))));
  const auto flat = [&] {
    return product(product(own.tile_h - 1, packed_extent(horizontal, own.tile_w).longest) + own.tile_w, own.images);
  };
  cut_tile(z, z.p, z.q, kTileEdge, kGradPositions, &own, [&] { return flat() <= kGradPositions; });
  own.channel_pitch =
      (packed_part_bytes(vertical, horizontal, own.tile_h, own.tile_w, own.images) / 64 + kTileEdge) * kTileEdge;
  own.grad_pitch = round_up(flat(), kTileEdge);
  own.splits = 1;
  const int64_t units = tiles_of_group(z, own, vertical, horizontal), blocks = grad_blocks(z, own);
  if (z.flops() >= kWorthSharing)
    own.splits = splits_of_sums(ceil_div(kEnoughTasks, blocks), units,
                                product(blocks, grad_block_sums(z, own), int64_t(sizeof(float))));
  plan->tasks = product(blocks, own.splits);
}

inline void prepare_tiles(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  if (pass == Pass::WeightGrad) {
    prepare_tiles_weight_grad(input, plan);
  } else {
    prepare_tiles_gather(input, plan);
  }
  Carver workspace, scratch;
  tile_workspace(z, pass, own, workspace);
  tile_scratch(z, pass, own, scratch);
  plan->workspace_bytes = workspace.bytes();
  plan->scratch_bytes = scratch.bytes();
}

}  // namespace conv_ext
