// Plans of the panel algorithm: which blocks of its three operands meet in the caches.
#include <algorithm>
#include <cmath>

#include "../plan_common.h"
#include "layout.h"
#include "plan_weights.h"

namespace conv_ext {
namespace {

// weight_grad: bytes of the panels of one tile, and of the packed rows of the other operand: both stay in the second
// level of cache.
constexpr int64_t grad_panel_bytes(const Machine& machine) { return machine.caches.l2_bytes / 8; }
constexpr int64_t grad_row_bytes(const Machine& machine) { return machine.caches.l2_bytes * 3 / 16; }
static_assert(in_every_row(grad_panel_bytes, 128 << 10) && in_every_row(grad_row_bytes, 192 << 10));
constexpr int64_t kRowsOfTask = 256,
                  kLeastRowsOfTask = 32;  // weight_grad: rows of a task that repay packing its panels
// weight_grad: outputs of a tile. They are summed in one chain, so that they follow from no cache; a panel of four
// vectors so long is 36 KiB with AVX-512.
constexpr int64_t kPanelPositions = 144;
// weight_grad, both operands in place: rows beyond which packing the lanes pays, as so many read them again; positions
// beside which adding the parts of a sum costs little.
constexpr int64_t kRowsInPlace = 128, kLongPart = 256;
constexpr double kWorthPrefetching = 1 << 20;  // bytes of all three operands
// weight_grad, lanes are positions: outputs of a tile, so that summing a register tile's lanes is rare; images side by
// side; lanes of a row that is not cut, whatever its channels take.
constexpr int64_t kGradLanes = 1024, kMostImages = 128, kFewLanes = 64;
// Costs of packing a vector, in multiply-adds of vectors; measured with AVX-512: copied as it lies, turned round, put
// together number by number (images side by side).
constexpr double kCopied = 1, kTurned = 3, kInterleaved = 24;
// The sums across the lanes of a register tile, in vectors of its positions; a multiply-add where images lie side by
// side; one of a single tap, whose channels share no line of memory.
constexpr double kLaneSums = 8, kSideBySide = 1.15, kOneTap = 1.2;

// A kernel of one tap that reads no padding: what it reads for each output lies where it will be multiplied.
bool is_pointwise(const ConvProblem& z) {
  return z.r * z.s == 1 && !z.pad_top && !z.pad_bottom && !z.pad_left && !z.pad_right;
}

// weight_grad: how many parts of the reduction its blocks are worth, and the memory of all.
void share_out_grad(const PlanInput& input, int64_t blocks, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  PanelsGradPlan& own = plan->own<PanelsPlan>().grad;
  const int64_t units = product(ceil_div(z.n, own.batch), ceil_div(z.p, own.tile_h), ceil_div(z.q, own.tile_w));
  const int64_t sum_bytes = product(panels_grad_block(z, own), blocks, accumulator_bytes(z.dtype));
  const bool share = z.flops() >= kWorthSharing;
  own.splits = share ? splits_of_sums(ceil_div(kEnoughTasks, blocks), units, sum_bytes) : 1;
  plan->tasks = product(blocks, own.splits);
  count_memory(z.dtype, plan, [&, &z = z](auto number, Carver& workspace, Carver& scratch) {
    panels_grad_workspace<decltype(number)>(z, own, plan->tasks, workspace);
    panels_grad_scratch<decltype(number)>(z, own, scratch);
  });
}

// Reading in place is for numbers of the type that sums are formed in.
bool reads_in_place(const ConvProblem& z) {
  return is_pointwise(z) && element_bytes(z.dtype) == parts_of(z.dtype) * accumulator_bytes(z.dtype);
}

// Both operands are read as they lie, position by position: outer_tile.
bool is_outer(const ConvProblem& z, const Strides& strides) {
  return reads_in_place(z) && strides.input[1] == 1 && strides.output[1] == 1;
}

// The operand with more channels is read in place, where one can be and the other one's columns are neighbours. Where
// both are, it has the lanes, so that it is read by whole vectors, and seldom.
bool runs_along_input(const ConvProblem& z, const Strides& strides) {
  if (is_outer(z, strides)) return z.group_c() >= z.group_k();
  return reads_in_place(z) && z.group_c() < z.group_k() && (z.stride_w == 1 || z.channels_last);
}

// Lanes fill whole vectors, of which nothing lies beyond the tensor, and few rows read them again.
bool reads_lanes_in_place(const ConvProblem& z, const Strides& strides, const Machine& machine) {
  const int64_t parts = parts_of(z.dtype), lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  return is_outer(z, strides) && max_of(z.group_c(), z.group_k()) * parts % lanes == 0 &&
         min_of(z.group_c(), z.group_k()) * parts <= kRowsInPlace;
}

void prepare_grad_along_channels(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  PanelsGradPlan& own = plan->own<PanelsPlan>().grad;
  const Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const int64_t parts = parts_of(z.dtype), bytes_each = accumulator_bytes(z.dtype),
                lanes = machine.vector_bytes / bytes_each, taps = z.r * z.s;
  own.tile_w = ceil_div(z.q, ceil_div(z.q, kPanelPositions));
  own.tile_h = ceil_div(z.p, ceil_div(z.p, max_of(1, kPanelPositions / own.tile_w)));
  const int64_t positions = own.tile_h * own.tile_w;
  own.batch = positions == product(z.p, z.q) ? max_of(1, min_of(z.n, kPanelPositions / positions)) : 1;
  own.images = own.task_groups = 1;
  const PackedExtent down = packed_extent(vertical, own.tile_h), across = packed_extent(horizontal, own.tile_w);
  own.image_pitch = product(across.regions, down.positions, across.longest);
  own.channel_pitch = spread_pitch(product(own.image_pitch, own.batch));

  own.in_place = reads_in_place(z);
  own.outer = is_outer(z, strides);
  const bool along_input = runs_along_input(z, strides);
  own.lanes_are = along_input ? GradLanes::InputChannels : GradLanes::OutputChannels;
  own.prefetches = !own.outer && z.bytes() > kWorthPrefetching;
  own.taps_first = strides.weight[1] == 1 && taps > 1;
  own.panel_vectors = own.outer ? outer_tile(machine).vectors : panel_vectors(machine);
  const int64_t all_lanes = max_of(1, along_input ? z.group_c() : z.group_k()) * parts;
  const int64_t all_rows = max_of(1, along_input ? z.group_k() : z.group_c());
  own.lanes_in_place = reads_lanes_in_place(z, strides, machine);
  const int64_t lane_bytes = positions * own.batch * machine.vector_bytes;  // of one vector of lanes
  const int64_t units = product(ceil_div(z.n, own.batch), ceil_div(z.p, own.tile_h), ceil_div(z.q, own.tile_w));
  const bool share = z.flops() >= kWorthSharing;
  int64_t vectors = ceil_div(all_lanes, lanes),
          most = max_of(own.panel_vectors, grad_panel_bytes(machine) / lane_bytes);
  if (own.outer && share) {  // narrow blocks cost nothing here; so do long parts of the reduction
    const int64_t parts_of_sum = max_of(1, min_of(kEnoughTasks, units * positions * own.batch / kLongPart));
    const int64_t panels = ceil_div(vectors, own.panel_vectors), blocks = ceil_div(kEnoughTasks, parts_of_sum);
    most = min_of(most, max_of(1, panels / blocks) * own.panel_vectors);
  }
  const int64_t tile_lanes = min_of(all_lanes, ceil_div(vectors, ceil_div(vectors, most)) * lanes);
  const int64_t row_bytes = product(all_rows, parts, own.channel_pitch, bytes_each);
  int64_t cut = max_of(1, ceil_div(row_bytes, grad_row_bytes(machine)));
  const auto tile_rows = [&] { return ceil_div(all_rows, cut); };
  const auto tasks = [&] {
    return product(z.groups, ceil_div(all_lanes, tile_lanes), ceil_div(all_rows, tile_rows()));
  };
  // More tasks: narrower blocks first, then parts of the reduction; where it has none, still narrower blocks.
  const auto narrow = [&] {
    return product(tile_rows(), parts, taps) <
           (product(tasks(), units) < kEnoughTasks ? kLeastRowsOfTask : kRowsOfTask) * 2;
  };
  // A single row cannot be cut, and twice as many parts as tasks that are wanted make enough of them.
  for (int i = 0; i < 2 * kEnoughTasks && share && tasks() < kEnoughTasks && tile_rows() > 1 && !narrow(); ++i) {
    CONV_EXT_PLAN_STEP();
    ++cut;
  }
  own.tile_k = along_input ? tile_rows() : tile_lanes / parts;
  own.tile_c = along_input ? tile_lanes / parts : tile_rows();
  own.lanes = round_up(tile_lanes, lanes);
  own.rows = tile_rows() * parts;
  share_out_grad(input, tasks(), plan);
}

// What both operands are in one position: real numbers, and rows of the product.
struct GradSizes {
  double k, c, rows, lanes;
};
GradSizes grad_sizes(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const double parts = double(parts_of(z.dtype)), k = parts * double(z.group_k()), c = parts * double(z.group_c());
  return {k, c, c * double(z.r) * double(z.s), double(machine.vector_bytes / accumulator_bytes(z.dtype))};
}

// weight_grad, lanes are positions: a tile of outputs whose rows fill vectors, and what an output costs.
struct PositionTile {
  Shape shape;
  double cost;
};
PositionTile position_tile(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const GradSizes sizes = grad_sizes(input);
  const Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const int64_t channel_bytes = parts_of(z.dtype) * accumulator_bytes(z.dtype), lanes = int64_t(sizes.lanes);
  PositionTile best{};
  for (int64_t images = 1; images <= kMostImages && images < 2 * z.n; images *= 2) {
    int64_t cut_w = ceil_div(z.q, max_of(1, kGradLanes / images)), width = ceil_div(z.q, cut_w);
    int64_t cut_h = ceil_div(z.p, max_of(1, kGradLanes / round_up(width * images, lanes)));
    Shape shape{};
    const auto cut = [&, &z = z] {
      width = ceil_div(z.q, cut_w);
      shape = shape_of(vertical, horizontal, ceil_div(z.p, cut_h), width, images);
    };
    cut();
    shrink_until(
        [&, &machine = machine] { return product(channel_bytes, shape.channel_pitch) <= most_tile_bytes(machine); },
        [&] {
          if (shape.tile_h <= 1 && (width <= 1 || width * images <= kFewLanes)) return false;
          (shape.tile_h > 1 ? cut_h : cut_w) *= 2;
          cut();
          return true;
        });
    // Beside one channel the scratch has gradients and pointers: less than the other half.
    if (images > 1 && product(channel_bytes, shape.channel_pitch) > kScratchLimit / 2) break;
    const double outputs = double(shape.tile_h) * double(shape.tile_w) * double(images);
    const double vectors = (double(shape.tile_h) * double(ceil_div(shape.tile_w * images, lanes)) + kLaneSums) *
                           (images > 1 ? kSideBySide : 1) * (z.r * z.s == 1 ? kOneTap : 1);
    const double packed = images > 1 ? kInterleaved : z.channels_last ? kTurned : kCopied;
    const double cost = sizes.k * sizes.rows * vectors / outputs + (sizes.k + sizes.c) / sizes.lanes * packed;
    if (images == 1 || cost < best.cost) best = {shape, cost};
  }
  return best;
}

void prepare_grad_along_positions(const PlanInput& input, const Shape& shape, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  PanelsGradPlan& own = plan->own<PanelsPlan>().grad;
  const int64_t parts = parts_of(z.dtype), lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  own.lanes_are = GradLanes::Positions;
  own.panel_vectors = 1;
  own.in_place = own.outer = own.lanes_in_place = own.prefetches = false;
  own.taps_first = false;  // the taps of a channel read the same lines of memory
  own.tile_h = shape.tile_h;
  own.tile_w = shape.tile_w;
  own.batch = own.images = shape.images;
  own.channel_pitch = own.image_pitch = shape.channel_pitch;
  own.grad_pitch = round_up(own.tile_w * own.images, lanes);
  own.tile_k = min_of(z.group_k(), kGradBlock);
  own.tile_c = min_of(z.group_c(), kGradBlock);
  // Small groups share a task, so that neighbouring channels are read together.
  const int64_t group_channels = max_of(z.group_c(), z.group_k()) * parts;
  own.task_groups = max_of(1, min_of(z.groups, kChannelsTogether / group_channels));
  const auto blocks = [&] {
    return product(ceil_div(z.groups, own.task_groups), ceil_div(z.group_k(), own.tile_k),
                   ceil_div(z.group_c(), own.tile_c));
  };
  const auto lay_out = [&] {
    own.lanes = own.tile_k * parts;
    own.rows = own.tile_c * parts;
    share_out_grad(input, blocks(), plan);
  };
  lay_out();
  // A block of several groups takes each of them whole; of one group channels of the larger operand are left out.
  const int64_t block_k = grad_tile(machine).k;
  shrink_until([&] { return plan->scratch_bytes <= most_tile_bytes(machine); },
               [&] {
                 const bool input_larger =
                     product(own.tile_c, own.channel_pitch) > product(own.tile_k, own.tile_h, own.grad_pitch);
                 if (own.task_groups > 1) {
                   own.task_groups = ceil_div(own.task_groups, 2);
                 } else if (own.tile_c > 1 && (input_larger || own.tile_k <= block_k)) {
                   own.tile_c = ceil_div(own.tile_c, 2);
                 } else if (own.tile_k > block_k) {
                   own.tile_k = round_up(ceil_div(own.tile_k, 2), block_k);
                 } else {
                   return false;
                 }
                 lay_out();
                 return true;
               });
}

// What an output costs where lanes are channels.
double cost_along_channels(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const GradSizes sizes = grad_sizes(input);
  const bool along_input = runs_along_input(z, strides);
  const int64_t lanes = int64_t(sizes.lanes), numbers = int64_t(along_input ? sizes.c : sizes.k);
  const double rows = along_input ? sizes.k : sizes.rows;
  const double packed = reads_in_place(z) ? 0 : sizes.c / sizes.lanes * (z.channels_last ? kTurned : kCopied);
  // No vector turns numbers of 16 bytes round.
  const double turned = z.dtype == DType::Complex128 ? kInterleaved : kTurned;
  return double(ceil_div(numbers, lanes)) * (rows + (z.channels_last ? kCopied : turned)) + packed;
}

void prepare_weight_grad(const PlanInput& input, Plan* plan) {
  plan->own<PanelsPlan>().grad = {};
  const PositionTile tile = position_tile(input);
  if (cost_along_channels(input) <= tile.cost) {
    prepare_grad_along_channels(input, plan);
    if (plan->scratch_bytes <= kScratchLimit) return;
  }
  // The smallest of these takes less.
  prepare_grad_along_positions(input, tile.shape, plan);
}

// Elements that the positions of a task read, in the second level of cache; rows of weights of such a block, of the
// longest chain that is usual, in the same room.
constexpr int64_t source_elements(const Machine& machine) { return most_tile_bytes(machine) / int64_t(sizeof(float)); }
constexpr int64_t rows_of_weights(const Machine& machine) { return source_elements(machine) / kPanelProducts; }
static_assert(in_every_row(source_elements, 96 << 10) && in_every_row(rows_of_weights, 512));
// Positions of a task: whole register tiles of four, six or eight rows.
constexpr int64_t kMostPositions = 240, kFewPositions = 48;
constexpr int64_t kPointerTable = 8192;  // entries
// Vectors along positions: panels that share a block of weights, and rows that repay packing a panel.
constexpr int64_t kPanelsOfBlock = 4, kRowsPerPart = 128;
// Taps are joined of so few channels, and so few products of an output.
constexpr int64_t kMostJoinedChannels = 32, kMostJoined = 512;
// Elements over which the channels of a position may spread where vectors run along a few channels of the result: as
// many zeros are read instead of the padding.
constexpr int64_t kMostZeros = 16 << 10;

// The rows of source and result follow one another: where a kernel of one tap reads every position, they are one row.
bool has_one_row(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const auto joined = [&](const int64_t* stride) { return z.w == 1 || stride[2] == product(z.w, stride[3]); };
  return is_pointwise(z) && z.stride_h == 1 && z.stride_w == 1 && joined(strides.input) && joined(strides.output);
}

// Elements over which the channels of a position of the source spread.
int64_t channel_span(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  return product(max_of(0, source_channels(z, pass) - 1), max_of(0, source_of(pass, strides)[1])) + 1;
}

bool runs_along_channels(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (source_channels_are_neighbours(z, pass, strides) && result_channels_are_neighbours(z, pass, strides)) return true;
  // Few channels do not repay packing positions.
  const bool share_memory = z.groups * source_channels(z, pass) > 1 && source_of(pass, strides)[1] <= 0;
  return result_channels(z, pass) <= kFewChannels && !share_memory && channel_span(input) <= kMostZeros;
}

// Neighbouring taps of few channels are read as one run of channels, where the memory is channels_last. The order of
// the sums follows from that, so that the strides of single columns and channels have no say.
bool joins_taps(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const bool wanted =
      z.s > 1 && z.dilation_w == 1 && z.c <= kMostJoinedChannels && product(z.c, z.r, z.s) <= kMostJoined;
  return wanted && pass == Pass::Forward && z.groups == 1 && source_channels_are_neighbours(z, pass, strides) &&
         result_channels_are_neighbours(z, pass, strides) && (z.w == 1 || strides.input[3] == z.c) &&
         are_neighbours(z.c, strides.weight[1]) && strides.weight[3] == z.c;
}

// Vectors along channels: positions and panels of weights of a task. There are `others` times as many tasks.
void share_out_channels(const PlanInput& input, int64_t positions, int64_t enough, int64_t others,
                        PanelsGatherPlan* own) {
  const auto& [z, pass, machine, strides, keeps] = input;
  PanelsGatherPlan& c = *own;
  const int64_t channels = c.weights.channels / c.weights.joined_taps;
  c.block = min_of(kMostPositions, kPointerTable / (z.r * z.s));
  c.block = max_of(kFewPositions,
                   min_of(c.block, source_elements(machine) / max_of(1, channels)) / kFewPositions * kFewPositions);
  c.blocks = max_of(1, ceil_div(positions, c.block));
  c.parts_m = min_of(c.weights.panels, ceil_div(enough, c.blocks));
  c.unit = panel_rows(machine, int(c.weights.panel_channels * accumulator_bytes(z.dtype) / machine.vector_bytes));
  const int64_t tiles = ceil_div(positions, c.unit);
  if (c.blocks * c.parts_m < enough) c.blocks = ceil_div(enough, c.parts_m);
  c.blocks = min_of(tiles, evenly_shared(c.blocks, product(c.parts_m, others)));
  c.block = ceil_div(tiles, c.blocks) * c.unit;
  c.sums = product(c.block, c.weights.panel_channels);
  c.zeros = c.weights.joined_taps > 1 ? c.weights.channels : channel_span(input);
}

// Vectors along positions: panels of positions and rows of weights of a task.
void share_out_positions(const PlanInput& input, int64_t positions, int64_t enough, int64_t others,
                         PanelsGatherPlan* own) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype), taps = z.r * z.s;
  const int64_t channels = own->weights.channels, slices = own->weights.panels, group_m = own->weights.padded_m;
  const int64_t vectors = ceil_div(positions, lanes), panel_v = panel_vectors_of_most_rows(machine);
  const int64_t panels = ceil_div(vectors, panel_v), panel_m = most_panel_rows(machine);
  const int64_t most_panels = chain_cuts(channels, taps).count() > 1 ? kPanelsOfBlock : 4 * kPanelsOfBlock;
  const auto enough_tasks = [&](int64_t task_panels, int64_t parts) {
    return product(ceil_div(panels, task_panels), parts) >= enough;
  };
  // More tasks: fewer rows, as long as they repay packing the panels; then fewer panels; then fewer rows still.
  int64_t task_panels = most_panels, parts_m = ceil_div(group_m, rows_of_weights(machine));
  const auto cut_rows = [&](int64_t most_parts) {
    parts_m = smallest_that_fits(parts_m, max_of(parts_m, most_parts),
                                 [&](int64_t parts) { return enough_tasks(task_panels, parts); });
  };
  cut_rows((slices - 1) / (kRowsPerPart / panel_m - 1));
  task_panels -=
      smallest_that_fits(0, most_panels - 1, [&](int64_t fewer) { return enough_tasks(most_panels - fewer, parts_m); });
  cut_rows(slices);
  own->unit = panel_v;
  own->blocks = min_of(panels, evenly_shared(ceil_div(panels, task_panels), product(parts_m, others)));
  own->block = ceil_div(panels, own->blocks) * panel_v;
  own->parts_m = parts_m;
  own->task_rows = ceil_div(slices, parts_m) * panel_m;
  own->panel_lanes = panel_v * lanes;
  // Phases with fewer taps than others may have longer blocks.
  own->products =
      max_of(chain_cuts(channels, taps).longest(channels, taps), min_of(product(channels, taps), kMostProducts));
  own->sums = product(own->task_rows, own->block, lanes);
}

void prepare_gather(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  PanelsGatherPlan& own = plan->own<PanelsPlan>().gather;
  own = {};
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t others = product(z.groups, vertical.phases(), horizontal.phases());
  const int64_t positions = max_of(1, product(z.n, vertical.longest_count(), horizontal.longest_count()));
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  const bool along_channels = runs_along_channels(input);
  own.weights = weight_panels(z, pass, strides, lanes, along_channels, joins_taps(input) ? z.s : 1,
                              along_channels ? panel_vectors(machine) : most_panel_rows(machine),
                              along_channels ? ChainsOf::Taps : ChainsOf::Channels);
  own.weights.kept = keeps && own.weights.packed();
  own.one_row = has_one_row(input);
  own.prefetches = z.bytes() > kWorthPrefetching;
  // Where all is read in place, tasks for many threads cost nothing. Panels of positions are packed for each part of
  // the weights: 1.37 times the gradient of 512 channels at 7 x 7.
  if (along_channels) {
    share_out_channels(input, positions, ceil_div(enough_tasks(z), others), others, &own);
  } else {
    const int64_t few = z.flops() >= kWorthSharing ? kEnoughTasks / 2 : 1;
    share_out_positions(input, positions, ceil_div(few, others), others, &own);
  }
  plan->tasks = product(others, own.blocks, own.parts_m);
  count_memory(z.dtype, plan, [&, &z = z, &pass = pass](auto number, Carver& workspace, Carver& scratch) {
    typedef decltype(number) A;
    panels_gather_workspace<A>(z, pass, own, workspace);
    if (own.weights.along_channels) {
      along_channels_scratch<A>(z, own, scratch);
    } else {
      along_positions_scratch<A>(z, own, scratch);
    }
  });
  count_kept(z, own.weights, plan);
}

constexpr int64_t kMostGradTaps = 1 << 20;
constexpr double kFewImages = 4;  // of an estimate: their positions fill vectors together

}  // namespace

void prepare_panels(const PlanInput& input, Plan* plan) {
  if (input.pass == Pass::WeightGrad) {
    prepare_weight_grad(input, plan);
  } else {
    prepare_gather(input, plan);
  }
}

const char* panels_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (pass == Pass::WeightGrad) {
    if (z.r > kMostGradTaps / z.s) return "the kernel has more than 2^20 taps";
    return memory_declines(input, prepare_panels, "the smallest packed tile exceeds 16 MiB of scratch for each thread");
  }
  if (element_bytes(z.dtype) != accumulator_bytes(z.dtype))
    return "forward and input_grad are for float32 and float64 here";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  return memory_declines(input, prepare_panels, "the smallest tile exceeds 16 MiB of scratch for each thread");
}

namespace {

Work panels_grad_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const LoopSizes s(z, pass, machine);
  const double by_positions = position_tile(input).cost, by_channels = cost_along_channels(input);
  const bool channels = by_channels <= by_positions;
  if (channels && is_outer(z, strides)) {
    const double most = std::max(s.m, s.c), least = std::min(s.m, s.c), all = s.results * s.groups * s.vectors(most);
    const double packed = reads_lanes_in_place(z, strides, machine) ? 0 : all;
    return {Nest::PanelsOuterGrad, {all * least, packed, s.weight_v, s.source_v, s.result_v, 0, 0, 0, 0, 1}};
  }
  return {channels ? Nest::PanelsChannelsGrad : Nest::PanelsPositionsGrad,
          {s.results * s.groups * (channels ? by_channels : by_positions), s.weight_v, s.source_v, s.result_v, 0, 0, 0,
           0, 0, 1}};
}

Work panels_gather_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const LoopSizes s(z, pass, machine);
  const double lanes = double(s.lanes), scattered = s.phases ? s.result_v : 0, once = 1 / kImagesOfCall;
  if (runs_along_channels(input)) {
    const double joined = joins_taps(input) ? double(z.s) : 1;
    const double all = s.vectors(s.m), panels = std::ceil(all / double(panel_vectors(machine)));
    const double vectors = std::ceil(all / panels), rows = double(panel_rows(machine, int(vectors)));
    const double tiles = s.results / rows * s.groups * panels, taps = s.taps / joined;
    const bool neighbours =
        source_channels_are_neighbours(z, pass, strides) && result_channels_are_neighbours(z, pass, strides);
    return {neighbours ? Nest::PanelsChannels : Nest::PanelsFewChannels,
            {tiles * s.c * s.taps * s.down.inside * tile_cycles(machine.rates, rows, vectors, false),
             tiles * taps * s.down.inside, tiles, s.result_v, s.weight_v, s.results * s.groups * taps,
             s.source_v * s.taps * panels, s.source_v, scattered, once}};
  }
  const double most_rows = double(most_panel_rows(machine)), vectors = double(panel_vectors_of_most_rows(machine));
  const double panels = std::ceil(s.m / most_rows), passes = std::ceil(s.m / double(rows_of_weights(machine)));
  // Vectors that the positions of a phase fill, of so many images.
  const double positions = s.row * s.rows, filled = std::ceil(kFewImages * positions / lanes) * lanes;
  const double packed = s.results * s.taps * s.c * s.groups / lanes * passes;
  const bool forward = pass == Pass::Forward, strided = forward && z.stride_w > 1;
  const bool one_chain = s.c * s.taps <= double(kPanelProducts);
  const double block = lanes * vectors * double(one_chain ? 4 * kPanelsOfBlock : kPanelsOfBlock);
  const double weights = s.weight_v * std::max(1.0, positions / block * kImagesOfCall);
  // Weights that are read across their rows and do not stay in the second level.
  const bool far = !forward && product(z.weight_elements(), accumulator_bytes(z.dtype)) > 2 * machine.caches.l2_bytes;
  const double cycles = tile_cycles(machine.rates, s.m / panels, vectors, false);
  return {Nest::PanelsPositions,
          {s.results / lanes / vectors * panels * s.c * s.taps * s.groups * cycles * filled / (kFewImages * positions),
           strided ? 0 : packed, strided ? packed : 0, s.results / s.row * s.taps * s.c * s.groups * passes, s.result_v,
           forward ? weights : 0, forward ? 0 : weights, scattered, far ? weights : 0, once}};
}

}  // namespace

Work panels_work(const PlanInput& input) {
  return input.pass == Pass::WeightGrad ? panels_grad_work(input) : panels_gather_work(input);
}

void describe_panels(const PlanInput& input, const Plan& plan, Facts* facts) {
  const PanelsPlan& own = plan.own<PanelsPlan>();
  if (input.pass == Pass::WeightGrad) {
    const GradLanes lanes = own.grad.lanes_are;
    add_facts(facts, {{"lanes", lanes == GradLanes::Positions       ? "positions"
                                : lanes == GradLanes::InputChannels ? "input channels"
                                                                    : "output channels"},
                      {"other operand", own.grad.lanes_in_place ? "in place, as the lanes are"
                                        : own.grad.in_place     ? "in place"
                                                                : "packed"},
                      {"images", own.grad.batch},
                      {"rows", own.grad.tile_h},
                      {"columns", own.grad.tile_w},
                      {"K/g", own.grad.tile_k},
                      {"C/g", own.grad.tile_c},
                      {"splits", own.grad.splits}});
    return;
  }
  const WeightPanels& weights = own.gather.weights;
  const int64_t lanes = input.machine.vector_bytes / accumulator_bytes(input.problem.dtype);
  add_facts(facts, {{"lanes", weights.along_channels ? "channels" : "positions"},
                    {"positions", own.gather.block * (weights.along_channels ? 1 : lanes)},
                    {"blocks of positions", own.gather.blocks},
                    {"parts of channels", own.gather.parts_m}});
  if (weights.joined_taps > 1) add_facts(facts, {{"joined taps", weights.joined_taps}});
}

}  // namespace conv_ext
