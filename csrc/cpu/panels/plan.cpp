// Plans of the panel algorithm: which blocks of its three operands meet in the caches.
#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {
namespace {

constexpr int64_t kGradPanels = 128 << 10;           // weight_grad: bytes of the panels of one tile
constexpr int64_t kInputBytes = 192 << 10;           // weight_grad: bytes of the packed input of one tile
constexpr int64_t kRowsOfTask = 256, kFewRows = 32;  // weight_grad: rows of a task that repay packing its panels

void prepare_weight_grad(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, isa, strides] = input;
  PanelsPlan& own = plan->own<PanelsPlan>();
  const Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = isa.vector_bytes / bytes_each, taps = z.r * z.s;
  own.tile_w = ceil_div(z.q, ceil_div(z.q, kPanelPositions));
  own.tile_h = ceil_div(z.p, ceil_div(z.p, max_of(1, kPanelPositions / own.tile_w)));
  const int64_t positions = own.tile_h * own.tile_w;
  own.batch = positions == product(z.p, z.q) ? max_of(1, min_of(z.n, kPanelPositions / positions)) : 1;
  const PackedExtent down = packed_extent(vertical, own.tile_h), across = packed_extent(horizontal, own.tile_w);
  own.image_pitch = product(across.regions, down.positions, across.longest);
  own.channel_pitch = spread_pitch(product(own.image_pitch, own.batch));

  // The operand with more channels is read in place, where one can be and the other one's columns are neighbours.
  const bool in_place = reads_in_place(z);
  own.along_input = in_place && z.group_c() < z.group_k() && (z.stride_w == 1 || z.channels_last);
  const int64_t all_lanes = max_of(1, own.along_input ? z.group_c() : z.group_k());
  const int64_t all_rows = max_of(1, own.along_input ? z.group_k() : z.group_c());
  const int64_t lane_bytes = positions * own.batch * isa.vector_bytes;  // of one vector of lanes
  const int64_t vectors = ceil_div(all_lanes, lanes), most = max_of(isa.panel_v, kGradPanels / lane_bytes);
  const int64_t tile_lanes = min_of(all_lanes, ceil_div(vectors, ceil_div(vectors, most)) * lanes);
  int64_t cut = max_of(1, ceil_div(product(all_rows, own.channel_pitch, bytes_each), kInputBytes));
  const auto tile_rows = [&] { return ceil_div(all_rows, cut); };
  const auto tasks = [&] {
    return product(z.groups, ceil_div(all_lanes, tile_lanes), ceil_div(all_rows, tile_rows()));
  };
  const bool share = z.flops() >= kWorthSharing;
  const int64_t units = product(ceil_div(z.n, own.batch), ceil_div(z.p, own.tile_h), ceil_div(z.q, own.tile_w));
  // More tasks: narrower blocks first, then parts of the reduction; where it has none, still narrower blocks.
  const auto narrow = [&] {
    return tile_rows() * taps < (product(tasks(), units) < kEnoughTasks ? kFewRows : kRowsOfTask) * 2;
  };
  // A single row cannot be cut, and twice as many parts as tasks that are wanted make enough of them.
  for (int i = 0; i < 2 * kEnoughTasks && share && tasks() < kEnoughTasks && tile_rows() > 1 && !narrow(); ++i) {
    CONV_EXT_PLAN_STEP();
    ++cut;
  }
  own.tile_k = own.along_input ? tile_rows() : tile_lanes;
  own.tile_c = own.along_input ? tile_lanes : tile_rows();

  const int64_t sum_bytes = product(round_up(tile_lanes, lanes), tile_rows(), taps, tasks(), bytes_each);
  own.splits = 1;
  if (share && tasks() < kEnoughTasks)
    own.splits = max_of(1, min_of(min_of(units, ceil_div(kEnoughTasks, tasks())), kPartialSums / sum_bytes));
  plan->tasks = product(tasks(), own.splits);
  plan->workspace_bytes = table_bytes(z, pass) + array_bytes(own.splits, sum_bytes);
  plan->scratch_bytes = array_bytes(tile_rows(), taps, 8) + array_bytes(own.batch, own.tile_h, 8) +
                        2 * aligned((kLinesAhead + kMostProducts) * 4) +
                        array_bytes(round_up(tile_lanes, lanes) / lanes, lane_bytes) +
                        (in_place ? 0 : array_bytes(tile_rows(), own.channel_pitch, bytes_each));
}

constexpr int64_t kSourceElements =
    96 << 10;  // forward: what the positions of a task read, in the second level of cache
constexpr int64_t kMostPositions = 240, kFewPositions = 48;
constexpr int64_t kPointerTable = 8192;  // entries
// Vectors along positions: panels that share a block of weights, rows of such a block (288 KiB of float32 in the second
// level of cache), and rows that repay packing a panel.
constexpr int64_t kPanelsTogether = 4, kRowsOfWeights = 512, kRowsPerPart = 128;

void prepare_gather(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, isa, strides] = input;
  PanelsPlan& own = plan->own<PanelsPlan>();
  const bool inverse = pass == Pass::InputGrad;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = isa.vector_bytes / bytes_each, taps = z.r * z.s;
  const int64_t group_m = max_of(1, inverse ? z.group_c() : z.group_k()),
                channels = inverse ? z.group_k() : z.group_c();
  const int64_t phases = product(vertical.phases(), horizontal.phases());
  const int64_t positions = max_of(1, product(z.n, vertical.longest_count(), horizontal.longest_count()));
  const int64_t enough = z.flops() >= kWorthSharing ? ceil_div(kEnoughTasks / 2, product(z.groups, phases)) : 1;

  PanelTasks& c = own.along_channels;
  const int64_t panels = ceil_div(ceil_div(group_m, lanes), isa.panel_v);
  c.block = min_of(kMostPositions, kPointerTable / taps);
  c.block =
      max_of(kFewPositions, min_of(c.block, kSourceElements / max_of(1, channels)) / kFewPositions * kFewPositions);
  c.blocks = max_of(1, ceil_div(positions, c.block));
  c.parts_m = min_of(panels, ceil_div(enough, c.blocks));
  if (c.blocks * c.parts_m < enough) c.blocks = min_of(ceil_div(positions, 8), ceil_div(enough, c.parts_m));
  c.block = ceil_div(positions, c.blocks);

  PanelTasks& p = own.along_positions;
  const int64_t slices = ceil_div(group_m, isa.panel_rows), vectors = ceil_div(positions, lanes);
  const int64_t panels_p = ceil_div(vectors, isa.panel_p);
  int64_t together = panel_blocks(channels, taps).count() > 1 ? kPanelsTogether : 4 * kPanelsTogether;
  p.parts_m = ceil_div(group_m, kRowsOfWeights);
  // None of these loops has more steps than there are tasks to be had, at most 8, or panels to be shared.
  const auto few = [&] { return product(ceil_div(panels_p, together), p.parts_m) < enough; };
  const auto share_panels = [&] {
    CONV_EXT_PLAN_STEP();
    ++p.parts_m;
  };
  while (few() && ceil_div(slices, p.parts_m + 1) * isa.panel_rows >= kRowsPerPart) share_panels();
  while (few() && together > 1) --together;
  while (few() && p.parts_m < slices) share_panels();
  p.block = together * isa.panel_p;
  p.blocks = ceil_div(vectors, p.block);
  plan->tasks = product(z.groups, phases, max_of(product(c.blocks, c.parts_m), product(p.blocks, p.parts_m)));

  const int64_t rows = ceil_div(slices, p.parts_m) * isa.panel_rows;
  int64_t longest = 0;  // block of products
  longest = panel_blocks(channels, taps).longest(channels, taps);
  longest = max_of(longest, min_of(product(channels, taps), kMostProducts));
  const int64_t channel_bytes = array_bytes(max_of(channels, kMostZeros), bytes_each) + array_bytes(taps, 8) +
                                array_bytes(c.block, taps, 8) + array_bytes(c.block, isa.panel_v, isa.vector_bytes) +
                                aligned(isa.panel_v * isa.vector_bytes) + aligned(kMostProducts * 4) +
                                (!inverse && joins_taps(z) ? array_bytes(c.block, taps, channels, bytes_each) : 0);
  const int64_t position_bytes =
      array_bytes(taps, 8) + array_bytes(rows, 8) + array_bytes(longest, isa.panel_p, isa.vector_bytes) +
      2 * aligned((kLinesAhead + kMostProducts) * 4) + array_bytes(rows, p.block, isa.vector_bytes);
  plan->scratch_bytes = max_of(channel_bytes, position_bytes);
  plan->workspace_bytes = 3 * array_bytes(taps, 8) + array_bytes(phases + 1, 8) +
                          array_bytes(z.groups, round_up(group_m, lanes), channels, taps, bytes_each);
}

constexpr int64_t kShortRow = 8, kLongRow = 48, kFewTaps = 192;

}  // namespace

const char* panels_declines(const PlanInput& input) {
  const auto& [z, pass, isa, strides] = input;
  if (element_bytes(z.dtype) != accumulator_bytes(z.dtype)) return "it is for float32 and float64";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  return memory_declines(input, prepare_panels, "the smallest tile exceeds 16 MiB of scratch for each thread");
}

const char* panels_yields(const PlanInput& input) {
  const auto& [z, pass, isa, strides] = input;
  const Axis horizontal = horizontal_axis(z, pass);
  if (2 * (pass == Pass::InputGrad ? z.group_c() : z.group_k()) * accumulator_bytes(z.dtype) < isa.vector_bytes)
    return "the channels of a group's result fill less than half a vector";
  if (!z.channels_last) {
    // Measured against the direct algorithm, whose vectors then lie within rows as they are in memory.
    if (pass != Pass::WeightGrad && horizontal.longest_count() >= kLongRow) return "the rows of the result are long";
    const bool padded = z.pad_top || z.pad_bottom || z.pad_left || z.pad_right;
    if (pass != Pass::WeightGrad && z.r * z.s > 1 && padded &&
        (pass == Pass::InputGrad ? z.group_c() : z.group_k()) <= kFewChannels && horizontal.longest_count() > kShortRow)
      return "the channels of a group's result are too few to repay packing positions";
    if (pass == Pass::WeightGrad && z.groups > 1 && 2 * z.group_k() * accumulator_bytes(z.dtype) <= isa.vector_bytes)
      return "the channels of a group fill half a vector at most";
    if (pass == Pass::WeightGrad && z.group_c() <= 4 && z.group_c() * z.r * z.s < kFewTaps && z.q >= kLongRow)
      return "the input channels and taps are too few to repay packing the upstream gradient";
  }
  return nullptr;
}

void prepare_panels(const PlanInput& input, Plan* plan) {
  if (input.pass == Pass::WeightGrad) {
    prepare_weight_grad(input, plan);
  } else {
    prepare_gather(input, plan);
  }
}

void describe_panels(const PlanInput& input, const Plan& plan, Facts* facts) {
  const PanelsPlan& own = plan.own<PanelsPlan>();
  if (input.pass == Pass::WeightGrad)
    add_facts(facts, {{"rows", own.tile_h},
                      {"columns", own.tile_w},
                      {"K/g", own.tile_k},
                      {"C/g", own.tile_c},
                      {"splits", own.splits}});
}

}  // namespace conv_ext
