// Plans of the panel algorithm: which blocks of its three operands meet in the caches.
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
constexpr double kWorthPrefetching = 1 << 20;  // bytes of all three operands

// A kernel of one tap that reads no padding: what it reads for each output lies where it will be multiplied.
bool is_pointwise(const ConvProblem& z) {
  return z.r * z.s == 1 && !z.pad_top && !z.pad_bottom && !z.pad_left && !z.pad_right;
}

void prepare_weight_grad(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  PanelsGradPlan& own = plan->own<PanelsPlan>().grad;
  own = {};
  const Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = machine.vector_bytes / bytes_each, taps = z.r * z.s;
  own.tile_w = ceil_div(z.q, ceil_div(z.q, kPanelPositions));
  own.tile_h = ceil_div(z.p, ceil_div(z.p, max_of(1, kPanelPositions / own.tile_w)));
  const int64_t positions = own.tile_h * own.tile_w;
  own.batch = positions == product(z.p, z.q) ? max_of(1, min_of(z.n, kPanelPositions / positions)) : 1;
  const PackedExtent down = packed_extent(vertical, own.tile_h), across = packed_extent(horizontal, own.tile_w);
  own.image_pitch = product(across.regions, down.positions, across.longest);
  own.channel_pitch = spread_pitch(product(own.image_pitch, own.batch));

  // The operand with more channels is read in place, where one can be and the other one's columns are neighbours.
  own.in_place = is_pointwise(z);
  own.along_input = own.in_place && z.group_c() < z.group_k() && (z.stride_w == 1 || z.channels_last);
  own.taps_first = strides.weight[1] == 1 && taps > 1;
  own.prefetches = z.bytes() > kWorthPrefetching;
  const int64_t all_lanes = max_of(1, own.along_input ? z.group_c() : z.group_k());
  const int64_t all_rows = max_of(1, own.along_input ? z.group_k() : z.group_c());
  const int64_t lane_bytes = positions * own.batch * machine.vector_bytes;  // of one vector of lanes
  const int64_t vectors = ceil_div(all_lanes, lanes),
                most = max_of(panel_vectors(machine), grad_panel_bytes(machine) / lane_bytes);
  const int64_t tile_lanes = min_of(all_lanes, ceil_div(vectors, ceil_div(vectors, most)) * lanes);
  int64_t cut = max_of(1, ceil_div(product(all_rows, own.channel_pitch, bytes_each), grad_row_bytes(machine)));
  const auto tile_rows = [&] { return ceil_div(all_rows, cut); };
  const auto tasks = [&] {
    return product(z.groups, ceil_div(all_lanes, tile_lanes), ceil_div(all_rows, tile_rows()));
  };
  const bool share = z.flops() >= kWorthSharing;
  const int64_t units = product(ceil_div(z.n, own.batch), ceil_div(z.p, own.tile_h), ceil_div(z.q, own.tile_w));
  // More tasks: narrower blocks first, then parts of the reduction; where it has none, still narrower blocks.
  const auto narrow = [&] {
    return tile_rows() * taps < (product(tasks(), units) < kEnoughTasks ? kLeastRowsOfTask : kRowsOfTask) * 2;
  };
  // A single row cannot be cut, and twice as many parts as tasks that are wanted make enough of them.
  for (int i = 0; i < 2 * kEnoughTasks && share && tasks() < kEnoughTasks && tile_rows() > 1 && !narrow(); ++i) {
    CONV_EXT_PLAN_STEP();
    ++cut;
  }
  own.tile_k = own.along_input ? tile_rows() : tile_lanes;
  own.tile_c = own.along_input ? tile_lanes : tile_rows();
  own.lanes = round_up(tile_lanes, lanes);
  own.channels = tile_rows();

  const int64_t sum_bytes = product(panels_grad_block(z, own), tasks(), bytes_each);
  own.splits = share ? splits_of_sums(ceil_div(kEnoughTasks, tasks()), units, sum_bytes) : 1;
  plan->tasks = product(tasks(), own.splits);
  count_memory(z.dtype, plan, [&, &z = z](auto number, Carver& workspace, Carver& scratch) {
    panels_grad_workspace<decltype(number)>(z, own, plan->tasks, workspace);
    panels_grad_scratch<decltype(number)>(z, own, scratch);
  });
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
  const auto& [z, pass, machine, strides] = input;
  const auto joined = [&](const int64_t* stride) { return z.w == 1 || stride[2] == product(z.w, stride[3]); };
  return is_pointwise(z) && z.stride_h == 1 && z.stride_w == 1 && joined(strides.input) && joined(strides.output);
}

// Elements over which the channels of a position of the source spread.
int64_t channel_span(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  return product(max_of(0, source_channels(z, pass) - 1), max_of(0, source_of(pass, strides)[1])) + 1;
}

bool runs_along_channels(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  if (source_channels_are_neighbours(z, pass, strides) && result_channels_are_neighbours(z, pass, strides)) return true;
  // Few channels do not repay packing positions.
  const bool share_memory = z.groups * source_channels(z, pass) > 1 && source_of(pass, strides)[1] <= 0;
  return result_channels(z, pass) <= kFewChannels && !share_memory && channel_span(input) <= kMostZeros;
}

// Neighbouring taps of few channels are read as one run of channels, where the memory is channels_last. The order of
// the sums follows from that, so that the strides of single columns and channels have no say.
bool joins_taps(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  const bool wanted =
      z.s > 1 && z.dilation_w == 1 && z.c <= kMostJoinedChannels && product(z.c, z.r, z.s) <= kMostJoined;
  return wanted && pass == Pass::Forward && z.groups == 1 && source_channels_are_neighbours(z, pass, strides) &&
         result_channels_are_neighbours(z, pass, strides) && (z.w == 1 || strides.input[3] == z.c) &&
         are_neighbours(z.c, strides.weight[1]) && strides.weight[3] == z.c;
}

// Vectors along channels: positions and panels of weights of a task.
void share_out_channels(const PlanInput& input, int64_t positions, int64_t enough, PanelsGatherPlan* own) {
  const auto& [z, pass, machine, strides] = input;
  PanelsGatherPlan& c = *own;
  const int64_t channels = c.weights.channels / c.weights.joined_taps;
  c.block = min_of(kMostPositions, kPointerTable / (z.r * z.s));
  c.block = max_of(kFewPositions,
                   min_of(c.block, source_elements(machine) / max_of(1, channels)) / kFewPositions * kFewPositions);
  c.blocks = max_of(1, ceil_div(positions, c.block));
  c.parts_m = min_of(c.weights.panels, ceil_div(enough, c.blocks));
  if (c.blocks * c.parts_m < enough) c.blocks = min_of(ceil_div(positions, 8), ceil_div(enough, c.parts_m));
  c.block = ceil_div(positions, c.blocks);
  c.sums = product(c.block, c.weights.panel_channels);
  c.zeros = c.weights.joined_taps > 1 ? c.weights.channels : channel_span(input);
}

// Vectors along positions: panels of positions and rows of weights of a task.
void share_out_positions(const PlanInput& input, int64_t positions, int64_t enough, PanelsGatherPlan* own) {
  const auto& [z, pass, machine, strides] = input;
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype), taps = z.r * z.s;
  const int64_t channels = own->weights.channels, slices = own->weights.panels, group_m = own->weights.padded_m;
  const int64_t vectors = ceil_div(positions, lanes), panel_v = panel_vectors_of_most_rows(machine);
  const int64_t panels = ceil_div(vectors, panel_v), panel_m = most_panel_rows(machine);
  const int64_t most_panels = panel_blocks(channels, taps).count() > 1 ? kPanelsOfBlock : 4 * kPanelsOfBlock;
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
  own->block = task_panels * panel_v;
  own->blocks = ceil_div(vectors, own->block);
  own->parts_m = parts_m;
  own->task_rows = ceil_div(slices, parts_m) * panel_m;
  own->panel_lanes = panel_v * lanes;
  // Phases with fewer taps than others may have longer blocks.
  own->products =
      max_of(panel_blocks(channels, taps).longest(channels, taps), min_of(product(channels, taps), kMostProducts));
  own->sums = product(own->task_rows, own->block, lanes);
}

void prepare_gather(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  PanelsGatherPlan& own = plan->own<PanelsPlan>().gather;
  own = {};
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t phases = product(vertical.phases(), horizontal.phases());
  const int64_t positions = max_of(1, product(z.n, vertical.longest_count(), horizontal.longest_count()));
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  const bool along_channels = runs_along_channels(input);
  own.weights = weight_panels(z, pass, strides, lanes, along_channels, joins_taps(input) ? z.s : 1,
                              along_channels ? panel_vectors(machine) : most_panel_rows(machine), along_channels);
  own.one_row = has_one_row(input);
  own.prefetches = z.bytes() > kWorthPrefetching;
  // Where all is read in place, tasks for many threads cost nothing. Panels of positions are packed for each part of the
  // weights: 1.37 times the gradient of 512 channels at 7 x 7.
  if (along_channels) {
    share_out_channels(input, positions, ceil_div(enough_tasks(z), product(z.groups, phases)), &own);
  } else {
    const int64_t few = z.flops() >= kWorthSharing ? kEnoughTasks / 2 : 1;
    share_out_positions(input, positions, ceil_div(few, product(z.groups, phases)), &own);
  }
  plan->tasks = product(z.groups, phases, own.blocks, own.parts_m);
  count_memory(z.dtype, plan, [&, &z = z, &pass = pass](auto number, Carver& workspace, Carver& scratch) {
    typedef decltype(number) A;
    panels_gather_workspace<A>(z, pass, own, workspace);
    if (own.weights.along_channels) {
      along_channels_scratch<A>(z, own, scratch);
    } else {
      along_positions_scratch<A>(z, own, scratch);
    }
  });
}

constexpr int64_t kShortRow = 8, kLongRow = 48, kFewTaps = 192;

}  // namespace

void prepare_panels(const PlanInput& input, Plan* plan) {
  if (input.pass == Pass::WeightGrad) {
    prepare_weight_grad(input, plan);
  } else {
    prepare_gather(input, plan);
  }
}

const char* panels_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  if (element_bytes(z.dtype) != accumulator_bytes(z.dtype)) return "it is for float32 and float64";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  return memory_declines(input, prepare_panels, "the smallest tile exceeds 16 MiB of scratch for each thread");
}

const char* panels_yields(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  const Axis horizontal = horizontal_axis(z, pass);
  if (2 * result_channels(z, pass) * accumulator_bytes(z.dtype) < machine.vector_bytes)
    return "the channels of a group's result fill less than half a vector";
  if (!z.channels_last) {
    // Measured against the direct algorithm, whose vectors then lie within rows as they are in memory. A single tap is
    // packed once either way, and panels are faster by 1.1 to 1.4.
    if (pass != Pass::WeightGrad && z.r * z.s > 1 && horizontal.longest_count() >= kLongRow)
      return "the rows of the result are long";
    const bool padded = z.pad_top || z.pad_bottom || z.pad_left || z.pad_right;
    if (pass != Pass::WeightGrad && z.r * z.s > 1 && padded && result_channels(z, pass) <= kFewChannels &&
        horizontal.longest_count() > kShortRow)
      return "the channels of a group's result are too few to repay packing positions";
    if (pass == Pass::WeightGrad && z.groups > 1 &&
        2 * z.group_k() * accumulator_bytes(z.dtype) <= machine.vector_bytes)
      return "the channels of a group fill half a vector at most";
    if (pass == Pass::WeightGrad && z.group_c() <= 4 && z.group_c() * z.r * z.s < kFewTaps && z.q >= kLongRow)
      return "the input channels and taps are too few to repay packing the upstream gradient";
  }
  return nullptr;
}

void describe_panels(const PlanInput& input, const Plan& plan, Facts* facts) {
  const PanelsPlan& own = plan.own<PanelsPlan>();
  if (input.pass == Pass::WeightGrad) {
    add_facts(facts, {{"lanes", own.grad.along_input ? "input channels" : "output channels"},
                      {"other operand", own.grad.in_place ? "in place" : "packed"},
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
