// The plan of the implicit matrix product of bfloat16: its tiles, its memory, what it declines, and where AMX pays.
#include <cmath>

#include "../plan_common.h"
#include "tiles_layout.h"

namespace conv_ext {
namespace {

constexpr int64_t kLineRows = 256;       // outputs of a tile up to which small images are put together
constexpr int64_t kDotChain = 512;       // weight_grad: outputs per tile, and products in one chain of sums
constexpr int64_t kDotBlockLanes = 320;  // weight_grad: lanes of a task, where 16 channels are not more
constexpr int64_t kDotBlockRows = 256;   // weight_grad: K of a task
constexpr int64_t kLeastBlockRows = 64;
// weight_grad: bytes of a tile's packed lanes. They end a chain where lanes are many, and follow from no cache.
constexpr int64_t kDotPanel = 400 << 10;
constexpr int64_t kLeastSummed = 4;   // products of float32 in parts
constexpr int64_t kLeastOutputs = 4;  // fewer leave most lanes of a vector idle

constexpr const char* kScheduleNames[] = {"weights", "source", "line", "lanes"};

// Into how many bfloat16 numbers an operand is cut; 0: the precision forbids that, or nothing would be gained.
int64_t dot_parts(const ConvProblem& z, const Machine& machine) {
  if (z.dtype == DType::BFloat16) return 1;
  if (z.dtype != DType::Float32) return 0;
  if (z.precision == Precision::BF16) return 1;
  if (machine.bf16_dot != Bf16Dot::Tiles) return 0;
  return z.precision == Precision::TF32 ? 2 : 3;
}

void prepare_dot_gather(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  constexpr int64_t kBytes = 2;  // of an element of both operands
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const Reach down = packed_reach(vertical), across = packed_reach(horizontal);
  const int64_t channels = source_channels(z, pass), rows_m = result_channels(z, pass);
  const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
  int64_t cut_h = 1, cut_w = 1;
  const auto tile_h = [&] { return ceil_div(count_h, cut_h); };
  const auto tile_w = [&] { return ceil_div(count_w, cut_w); };
  const int64_t most_bytes = most_tile_bytes(machine);
  const auto bytes = [&] { return product(down.extent(tile_h()), across.extent(tile_w()), channels, kBytes); };
  shrink_until([&] { return bytes() <= most_bytes; },
               [&] {
                 if (tile_h() <= 1 && tile_w() <= kDotRows) return false;
                 (tile_h() > 1 ? cut_h : cut_w) *= 2;
                 return true;
               });
  own.tile_h = tile_h();
  own.tile_w = tile_w();
  own.images = 1;
  const bool share = z.flops() >= kWorthSharing;
  if (cut_h == 1 && cut_w == 1) {
    while (product(2 * own.images, count_h, count_w) <= kLineRows && product(2 * own.images, bytes()) <= most_bytes &&
           own.images < z.n && !(share && 8 * own.images > z.n)) {
      CONV_EXT_PLAN_STEP();
      own.images *= 2;
    }
  }
  const int64_t tiles =
      product(ceil_div(z.n, own.images), z.groups, ceil_div(count_h, own.tile_h), ceil_div(count_w, own.tile_w));
  const int64_t block_bytes = product(dot_block_elements(z, channels), kBytes);
  const int64_t blocks = product(z.groups, ceil_div(rows_m, kDotLanes));
  const int64_t tile_bytes = aligned(product(own.images, bytes()));
  own.channel_pitch = tile_bytes / kBytes;
  // A thread's scratch has either a tile or the weights of a task. Where it has no room for one of them N may not
  // decide which: the other would be declined.
  const bool room_for_either = max_of(tile_bytes, product(kDotBlocks, block_bytes)) <= kScratchLimit &&
                               product(blocks, block_bytes) <= kWorkspaceLimit / 2;
  if (!keeps && room_for_either && share && product(tiles, tile_bytes) <= product(blocks, block_bytes)) {
    own.schedule = DotSchedule::Source;
    own.task_m = kDotBlocks * kDotLanes;
    const int64_t parts_m = product(z.groups, ceil_div(rows_m, own.task_m));
    own.splits = min_of(tiles / z.groups, ceil_div(kEnoughTasks, parts_m));
    plan->tasks = product(parts_m, own.splits);
    return;
  }
  int64_t parts_m = 1;
  if (share && tiles < kEnoughTasks) parts_m = min_of(ceil_div(kEnoughTasks, tiles), ceil_div(rows_m, 2 * kDotLanes));
  own.task_m = round_up(ceil_div(rows_m, parts_m), 2 * kDotLanes);
  plan->tasks = product(tiles, ceil_div(rows_m, own.task_m));
}

void prepare_dot_weight_grad(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  const int64_t taps = z.r * z.s;
  own.tile_k = ceil_div(z.group_k(), ceil_div(z.group_k(), kDotBlockRows));
  own.tile_c = z.group_c();
  if (product(own.tile_c, taps) > kDotBlockLanes && own.tile_c > kDotLanes) {
    const int64_t most = max_of(kDotLanes, kDotBlockLanes / taps / kDotLanes * kDotLanes);
    own.tile_c = round_up(ceil_div(z.group_c(), ceil_div(z.group_c(), most)), kDotLanes);
  }
  const auto task_count = [&] {
    return product(z.groups, ceil_div(z.group_k(), own.tile_k), ceil_div(z.group_c(), own.tile_c));
  };
  // Where that makes enough tasks, fewer rows for each rather than parts of the reduction, which cost a pass over the
  // sums.
  if (z.flops() >= kWorthSharing && task_count() < kEnoughTasks &&
      product(task_count(), own.tile_k) >= kEnoughTasks * kLeastBlockRows)
    shrink_until([&] { return task_count() >= kEnoughTasks; },
                 [&] {
                   if (own.tile_k <= 1) return false;
                   own.tile_k = ceil_div(own.tile_k, 2);
                   return true;
                 });
  const int64_t block_lanes = round_up(product(own.tile_c, taps), kDotLanes);
  const int64_t outputs = max_of(2 * kDotLanes, min_of(kDotChain, kDotPanel / (2 * block_lanes)));
  own.tile_w = ceil_div(z.q, ceil_div(z.q, outputs));
  own.tile_h = ceil_div(z.p, ceil_div(z.p, max_of(1, outputs / own.tile_w)));
  own.images = own.tile_h < z.p || own.tile_w < z.q ? 1 : max_of(1, min_of(z.n, outputs / product(z.p, z.q)));
  const int64_t tile_outputs = own.images * own.tile_h * own.tile_w;
  own.grad_pitch = (ceil_div(tile_outputs + 1, 32) | 1) * 32;
  const int64_t tasks = task_count();
  const int64_t units = product(ceil_div(z.n, own.images), ceil_div(z.p, own.tile_h), ceil_div(z.q, own.tile_w));
  const int64_t sum_bytes = product(z.k, ceil_div(z.group_c(), own.tile_c), block_lanes, 4);
  own.splits = z.flops() >= kWorthSharing ? splits_of_sums(ceil_div(kEnoughTasks, tasks), units, sum_bytes) : 1;
  plan->tasks = product(tasks, own.splits);
}

// AMX from here on.

// Measured on an Emerald Rapids: weights of so many bytes beside so few outputs are packed by the tasks that multiply
// them, and all of the source before.
constexpr int64_t kDeepWeights = 1200 << 10, kDeepOutputs = 256;
constexpr int64_t kMostPanels = 4;                   // of such a task
constexpr int64_t kHalfSecondLevel = 1 << 20;        // of cache, which is 2 MiB wherever there is AMX
constexpr int64_t kFewRows = 8, kFewPositions = 64;  // of a tile: fewer overlap more, or are no work for a task
constexpr int64_t kManyPositions = 256;  // of a tile of small images put together, and of one of weight_grad
constexpr int64_t kLineTask = 2048;      // positions of a line's task, at most
// weight_grad: bounds of a task's block: K, C times taps, and bytes of sums, which share the second level of cache with
// both packed operands.
constexpr int64_t kGradRows = 256, kGradLanes = 576, kGradSums = 400 << 10;
// The same of a line: K and C of a task's block together, whose two chunks share the second level with the sums.
constexpr int64_t kLineChannels = 640, kLeastChunks = 4;

// The outputs of a 1x1 kernel that are the positions of the source.
bool is_pointwise(const ConvProblem& z) {
  const bool padded = z.pad_top != 0 || z.pad_bottom != 0 || z.pad_left != 0 || z.pad_right != 0;
  return z.r == 1 && z.s == 1 && z.stride_h == 1 && z.stride_w == 1 && !padded;
}

// 1x1 kernels whose outputs are the positions of the source, where a position's channels are neighbours, or all
// positions of a channel; of other problems the weights are packed first.
DotSchedule line_schedule(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const bool room = product(2, tile_blocks(source_channels(z, pass)), kTileEdge, 64) <= most_tile_bytes(machine);
  if (!is_pointwise(z) || !room) return DotSchedule::Weights;
  const auto &source = source_of(pass, strides), &result = result_of(pass, strides);
  if (source[1] == 1) return DotSchedule::Line;
  const auto dense_plane = [&](const int64_t(&stride)[4]) { return stride[3] == 1 && stride[2] == z.q; };
  return dense_plane(source) && dense_plane(result) ? DotSchedule::Lanes : DotSchedule::Weights;
}

// Cuts a tile of all outputs until it fits, wide ones to few rows that overlap little; puts small images side by side.
template <class Bytes>
void cut_tile(const ConvProblem& z, int64_t count_h, int64_t count_w, int64_t least_w, ImplicitGemmPlan* own,
              Bytes fits) {
  int64_t cut_h = 1, cut_w = 1;
  own->images = 1;
  const auto set = [&] {
    own->tile_h = ceil_div(count_h, cut_h);
    own->tile_w = ceil_div(count_w, cut_w);
  };
  set();
  shrink_until(fits, [&] {
    if (own->tile_h <= 1 && own->tile_w <= least_w) return false;
    const bool rows = own->tile_h > kFewRows || (own->tile_h > 1 && own->tile_w <= kFewPositions);
    (rows ? cut_h : cut_w) *= 2;
    set();
    return true;
  });
  if (cut_h > 1 || cut_w > 1) return;
  while (product(2 * own->images, count_h, count_w) <= kManyPositions && own->images < z.n) {
    CONV_EXT_PLAN_STEP();
    own->images *= 2;
    if (fits()) continue;
    own->images /= 2;
    return;
  }
}

// Blocks of a line that are multiplied by one panel after the other. Where all panels stay in the cache it is one,
// whose packing hides best between the products; larger weights are read less often by several.
int64_t line_run(int64_t channels, int64_t panels, int64_t parts) {
  const int64_t block = product(tile_blocks(channels), parts, kStepBytes);
  if (product(panels, block) <= 2 * kHalfSecondLevel) return 1;
  return max_of(1, min_of(8, kHalfSecondLevel / (2 * block)));
}

void prepare_tiles_gather(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t channels = source_channels(z, pass), rows_m = result_channels(z, pass);
  const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
  const int64_t panels = tile_blocks(rows_m);
  const bool share = z.flops() >= kWorthSharing, large = z.r * z.s > 1 && product(count_h, count_w) > kDeepOutputs;
  // Each tile reads all weights: one of a large map is as large as may be.
  const int64_t most_bytes = large ? max_of(kHalfSecondLevel, most_tile_bytes(machine)) : most_tile_bytes(machine);
  const auto part_bytes = [&] { return packed_part_bytes(vertical, horizontal, own.tile_h, own.tile_w, own.images); };
  const auto tile_bytes = [&] { return packed_tile_bytes(channels, own.parts, part_bytes()); };
  cut_tile(z, count_h, count_w, 16, &own, [&] { return tile_bytes() <= most_bytes; });
  const auto tiles = [&] { return tiles_of_group(z, own, vertical, horizontal); };

  const int64_t weights = product(panels, panel_bytes(z, channels, own.parts));
  const bool deep = !keeps && share && weights > kDeepWeights && product(count_h, count_w) <= kDeepOutputs &&
                    product(tiles(), tile_bytes()) <= weights;
  // A thread's scratch has either a tile or a panel. Where it has no room for one of them N may not decide which.
  const bool room_for_either = max_of(tile_bytes(), panel_bytes(z, channels, own.parts)) <= kScratchLimit &&
                               product(z.groups, weights) <= kWorkspaceLimit / 2;
  own.task_m = rows_m;
  own.splits = 1;
  if (deep && room_for_either) {
    own.schedule = DotSchedule::Source;
    // A task reads all of the source, and each panel is packed by every task that has it.
    const int64_t most = kHalfSecondLevel / panel_bytes(z, channels, own.parts);
    own.task_m = product(max_of(1, min_of(min_of(most, kMostPanels), panels)), kTileEdge);
    const int64_t tasks_m = ceil_div(rows_m, own.task_m);
    own.splits = max_of(1, min_of(tiles(), kEnoughTasks / 2 / product(z.groups, tasks_m)));
    plan->tasks = product(z.groups, tasks_m, own.splits);
  } else if (line_schedule(input) != DotSchedule::Weights) {
    own.schedule = line_schedule(input);
    const int64_t length = product(z.n, z.p, z.q);
    const int64_t wanted = share ? max_of(ceil_div(kEnoughTasks, z.groups), ceil_div(length, kLineTask)) : 1;
    const int64_t blocks = own.schedule == DotSchedule::Line ? ceil_div(length, kTileEdge)
                                                             : product(z.n, ceil_div(product(z.p, z.q), kTileEdge));
    own.splits = min_of(blocks, wanted);
    own.run = line_run(channels, panels, own.parts);
    plan->tasks = product(z.groups, own.splits);
  } else {
    own.schedule = DotSchedule::Weights;
    const auto tasks = [&] { return product(z.groups, tiles()); };
    // Lower tiles pack more rows twice.
    const auto rows_of = [&](int64_t height) { return packed_extent(vertical, height).positions; };
    while (share && tasks() < kEnoughTasks && own.images == 1 && own.tile_h > 1 &&
           product(own.tile_h, own.tile_w) >= 2 * kFewPositions &&
           8 * rows_of(ceil_div(own.tile_h, 2)) <= 5 * rows_of(own.tile_h)) {
      CONV_EXT_PLAN_STEP();
      own.tile_h = ceil_div(own.tile_h, 2);
    }
    // A large tile's packing is little beside its products: it may be done for parts of them.
    const int64_t wanted = large ? kEnoughTasks : kEnoughTasks / 2;
    const int64_t parts_m = share ? min_of(panels, ceil_div(wanted, tasks())) : 1;
    own.task_m = product(ceil_div(panels, parts_m), kTileEdge);
    plan->tasks = product(tasks(), ceil_div(rows_m, own.task_m));
  }
  own.channel_pitch = part_bytes() / 2;
}

// Evenly large blocks of at most so many channels, in whole panels.
int64_t block_of(int64_t channels, int64_t most) {
  const int64_t blocks = max_of(1, ceil_div(channels, max_of(kTileEdge, most / kTileEdge * kTileEdge)));
  return min_of(channels, round_up(ceil_div(channels, blocks), kTileEdge));
}

// weight_grad: whether positions are one line of all images (Joined), or a run of each that is worth one.
enum class Lines { None, Runs, Joined };
Lines lines_of(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (!is_pointwise(z)) return Lines::None;
  const int64_t plane = product(z.h, z.w);
  const auto step_of = [&](const int64_t(&stride)[4]) { return position_step(z, stride[0], stride[2], stride[3]); };
  const auto is_run = [&](const int64_t(&stride)[4]) {
    return (stride[1] == 1 || step_of(stride) == 1) && (z.w == 1 || z.h == 1 || stride[2] == product(z.w, stride[3]));
  };
  const auto is_line = [&](const int64_t(&stride)[4]) {
    return stride[1] == 1 && (z.n == 1 || plane == 1 || stride[0] == product(plane, step_of(stride)));
  };
  if (!is_run(strides.input) || !is_run(strides.output)) return Lines::None;
  if (is_line(strides.input) && is_line(strides.output)) return Lines::Joined;
  return plane >= kDotLanes ? Lines::Runs : Lines::None;
}

// Of weight_grad, the block (K/g, C/g) of a task.
struct GradBlock {
  int64_t k, c;
};
GradBlock grad_block_of(const ConvProblem& z, Lines lines) {
  if (lines != Lines::None) {
    const int64_t k =
        block_of(z.group_k(), max_of(kLineChannels / 2, kLineChannels - round_up(z.group_c(), kTileEdge)));
    return {k, block_of(z.group_c(), kLineChannels - round_up(k, kTileEdge))};
  }
  // An empty sum is counted, too.
  const int64_t taps = product(z.r, z.s), c = block_of(z.group_c(), min_of(kGradRows, kGradLanes / taps));
  return {block_of(z.group_k(), min_of(kGradRows, kGradSums / product(round_up(max_of(1, c), kTileEdge), taps,
                                                                      int64_t(sizeof(float))))),
          c};
}

void prepare_grad_line(const PlanInput& input, Lines lines, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  const bool joined = lines == Lines::Joined;
  own.schedule = DotSchedule::Line;
  own.tile_h = joined ? 1 : z.n;
  own.tile_w = joined ? product(z.n, z.h, z.w) : product(z.h, z.w);
  own.images = 1;
  const GradBlock block = grad_block_of(z, lines);
  own.tile_k = block.k;
  own.tile_c = block.c;
  const int64_t chunks = ceil_div(ceil_div(product(own.tile_h, ceil_div(own.tile_w, 16)), 2), kLineSteps);
  const int64_t blocks = grad_blocks(z, own);
  own.splits = 1;
  // While a chunk is multiplied the next one is packed: a task has several, unless that leaves too few tasks.
  if (z.flops() >= kWorthSharing)
    own.splits = splits_of_sums(ceil_div(kEnoughTasks, blocks), max_of(min_of(4, chunks), chunks / kLeastChunks),
                                product(blocks, grad_block_sums(z, own), int64_t(sizeof(float))));
  plan->tasks = product(blocks, own.splits);
}

void prepare_tiles_weight_grad(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  const Lines lines = lines_of(input);
  if (lines != Lines::None) return prepare_grad_line(input, lines, plan);
  own.schedule = DotSchedule::Weights;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const GradBlock block = grad_block_of(z, Lines::None);
  own.tile_k = block.k;
  own.tile_c = block.c;
  const auto flat = [&] {
    return product(product(own.tile_h - 1, packed_extent(horizontal, own.tile_w).longest) + own.tile_w, own.images);
  };
  cut_tile(z, z.p, z.q, kTileEdge, &own, [&] { return flat() <= kManyPositions; });
  const int64_t blocks = grad_blocks(z, own);
  const auto units_of = [&] { return tiles_of_group(z, own, vertical, horizontal); };
  for (; own.images > 1 && z.flops() >= kWorthSharing && product(blocks, units_of()) < 4; own.images /= 2)
    CONV_EXT_PLAN_STEP();
  own.channel_pitch =
      (packed_part_bytes(vertical, horizontal, own.tile_h, own.tile_w, own.images) / 64 + kTileEdge) * kTileEdge;
  own.grad_pitch = round_up(flat(), kTileEdge);
  own.splits = 1;
  const int64_t units = units_of();
  if (z.flops() >= kWorthSharing)
    own.splits = splits_of_sums(ceil_div(kEnoughTasks, blocks), units,
                                product(blocks, grad_block_sums(z, own), int64_t(sizeof(float))));
  plan->tasks = product(blocks, own.splits);
}

void prepare_tiles(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
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

constexpr double kFarResults = 1 << 20;  // bytes

// What AMX's tiles do: blocks of 2 x 2 tiles, of 32 channels and a tap, times the products of parts; numbers that are
// packed, times parts; results; and sums that are handed over from tiles, by the block.
Work tiles_work(const PlanInput& input, int64_t parts) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const LoopSizes s(z, pass, machine);
  const double edge = double(kTileEdge), products = double(parts * (parts + 1) / 2), cut = double(parts);
  const double blocks = std::ceil(s.c / edge) * std::ceil(s.m / edge) * s.groups;
  const double taps = double(z.r) * double(z.s), phases = double(s.vertical.phases() * s.horizontal.phases());
  // Rows of a phase are as long as what their taps reach, and run on from one to the next.
  const double reach = double(z.s - 1) * double(z.dilation_w) / double(z.stride_w);
  const double gap = std::fmin(std::floor(reach), double(z.s) * s.row);
  const auto steps_of = [&](double positions) { return std::ceil(positions / edge); };
  const bool joined = z.channels_last && is_pointwise(z);
  if (pass == Pass::WeightGrad) {
    const Lines lines = lines_of(input);
    const bool in_lines = lines != Lines::None;
    const GradBlock block = grad_block_of(z, lines);
    const double again_k = std::ceil(double(z.group_k()) / double(block.k));
    const double again_c = std::ceil(double(z.group_c()) / double(block.c));
    const double steps =
        in_lines ? lines == Lines::Joined ? steps_of(s.images * s.rows * s.row) : s.images * steps_of(s.rows * s.row)
                 : steps_of(s.images * s.rows * (s.row + gap));
    const double chunk = in_lines ? double(kLineSteps) : double(kManyPositions) / edge;  // steps between two sums
    const double grads = s.images * double(z.p * z.q) * double(z.k) / double(s.lanes);
    const double inputs = s.images * double(z.h * z.w) * double(z.c) / double(s.lanes);
    return {in_lines ? Nest::TilesGradLine : Nest::TilesGrad,
            {blocks * taps * steps * products, grads * again_c * cut, inputs * again_k * cut,
             blocks * taps * std::ceil(steps / chunk), s.weight_v, grads * again_c, inputs * again_k, s.images, 0, 1}};
  }
  const bool line = line_schedule(input) != DotSchedule::Weights;
  const double positions = line ? s.rows * s.row : s.rows * (s.row + gap);
  const double steps = phases * (joined ? positions / edge : steps_of(positions));
  const double chains = std::ceil(std::ceil(s.c / edge) * taps / phases / 16);
  // What is no line counts its rows. Of lines, results of an image that do not stay near take longer to write.
  const bool far = s.result_v * double(machine.vector_bytes) > kFarResults;
  const double rows_or_far = !line ? s.rows : far ? s.result_v : 0;
  return {line ? Nest::TilesLine : Nest::Tiles,
          {blocks * taps / phases * steps * products, s.source_v * cut, s.result_v, s.weight_v * cut,
           std::ceil(s.m / edge) * s.groups * steps * chains, s.source_v, s.weight_v,
           std::ceil(s.m / edge) * s.groups * steps, rows_or_far, 1 / kImagesOfCall}};
}

}  // namespace

void prepare_implicit_gemm(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  ImplicitGemmPlan& own = plan->own<ImplicitGemmPlan>();
  own.parts = dot_parts(z, machine);
  own.kept = keeps && pass != Pass::WeightGrad;
  if (own.kept) {
    Carver kept;
    if (machine.bf16_dot == Bf16Dot::Tiles) {
      tile_weights(z, pass, own, kept);
    } else {
      dot_weights<uint16_t>(z, pass, kept);
    }
    plan->kept_bytes = kept.bytes();
    plan->kept_format[0] = own.parts;
  }
  if (machine.bf16_dot == Bf16Dot::Tiles) {
    prepare_tiles(input, plan);
    if (own.kept) plan->kept_format[1] = own.schedule == DotSchedule::Lanes;  // whose panels lie otherwise
    return;
  }
  if (pass == Pass::WeightGrad) {
    prepare_dot_weight_grad(input, plan);
  } else {
    prepare_dot_gather(input, plan);
  }
  // uint16_t stands for bfloat16.
  Carver workspace, scratch;
  dot_workspace<uint16_t>(z, pass, own, workspace);
  dot_scratch<uint16_t>(z, pass, own, scratch);
  plan->workspace_bytes = workspace.bytes();
  plan->scratch_bytes = scratch.bytes();
}

const char* implicit_gemm_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (z.dtype != DType::BFloat16 && z.dtype != DType::Float32) return "it is for bfloat16 and float32";
  if (machine.bf16_dot == Bf16Dot::None)
    return "this instruction set cannot multiply bfloat16 (avx512_bf16 and amx can)";
  const int64_t parts = dot_parts(z, machine);
  if (parts == 0)
    return "the precision setting does not let float32 be rounded to bfloat16, and unrounded it is for AMX alone";
  if (parts > 1 && (z.group_c() < kDotLanes || z.group_k() < kDotLanes))
    return "float32 as a sum of bfloat16 is for 16 channels of a group or more";
  // A sum of six products rounds more than once: beside one or two numbers that shows.
  if (parts > 1 && pass == Pass::WeightGrad && product(z.n, z.p, z.q) < kLeastSummed)
    return "float32 as a sum of bfloat16 is for sums of 4 products or more";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  if (result_channels(z, pass) < kLeastOutputs)
    return "fewer than 4 output channels of a group leave most lanes of a vector idle";
  if (pass == Pass::InputGrad && z.stride_h > 64 / z.stride_w)
    return "stride_h * stride_w is above 64: each of that many phases of input_grad would take few of a line's outputs";
  return memory_declines(input, prepare_implicit_gemm,
                         "the smallest packed tile exceeds 16 MiB of scratch for each thread");
}

Work implicit_gemm_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const int64_t parts = machine.bf16_dot == Bf16Dot::None ? 0 : dot_parts(z, machine);
  if (parts == 0) return kNever;
  if (machine.bf16_dot == Bf16Dot::Tiles) return tiles_work(input, parts);
  const LoopSizes s(z, pass, machine);
  const double lanes = double(kDotLanes), vectors = std::ceil(s.m / lanes), pairs = std::ceil(s.c / 2);
  const double positions = s.results * s.groups * s.taps;
  if (pass == Pass::WeightGrad) {
    // Pairs of positions.
    const double sums = s.m * std::ceil(s.c * s.taps / lanes);
    return {Nest::PairsGrad,
            {s.results / 2 * s.groups * sums, s.source_v, s.source_v * s.taps, s.result_v, s.weight_v,
             s.results / s.row * s.groups * sums / s.taps, 0, 0, 0, 1}};
  }
  return {Nest::Pairs,
          {positions * pairs * vectors, s.source_v, s.result_v, s.weight_v, positions, positions * vectors,
           s.results / s.row * s.groups * s.taps * vectors, s.phases ? s.result_v : 0, 0, 1 / kImagesOfCall}};
}

void describe_implicit_gemm(const PlanInput& input, const Plan& plan, Facts* facts) {
  const ImplicitGemmPlan& own = plan.own<ImplicitGemmPlan>();
  add_facts(facts, {{"rows", own.tile_h}, {"columns", own.tile_w}, {"images", own.images}});
  if (input.pass == Pass::WeightGrad) {
    add_facts(facts, {{"K/g", own.tile_k}, {"C/g", own.tile_c}, {"splits", own.splits}});
  } else {
    add_facts(facts, {{"channels", own.task_m}, {"first", kScheduleNames[int(own.schedule)]}});
  }
}

}  // namespace conv_ext
