// Plans of the direct algorithm: tiles of outputs whose packed source fits the caches, for any problem.
#include <initializer_list>

#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {
namespace {

constexpr int64_t kMaxImages = 128;       // images side by side
constexpr int64_t kFewLanes = 64;         // lanes of a row that is not cut, whatever its channels take
constexpr double kInterleaveCost = 1.15;  // packing images side by side is slower than copying rows
constexpr double kNarrowTile = 0.5;       // forward: vectors that a run of lanes loses, its last tile being narrow
// Bytes of a packed tile, as a bound that is cheap to know, below which it is nowhere near the limit.
constexpr int64_t kSmallTile = 384 << 10;

// The largest tile whose packed channels fit the budget: all columns and as many rows as possible, halving.
Shape fit_tile(const Axis& vertical, const Axis& horizontal, int64_t images, int64_t channels, int64_t bytes_each,
               int64_t widest, const Machine& machine) {
  const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
  int64_t cut_h = 1, cut_w = max_of(1, ceil_div(count_w, widest));
  Shape shape{};
  const auto cut = [&] {
    shape = shape_of(vertical, horizontal, ceil_div(count_h, cut_h), ceil_div(count_w, cut_w), images);
  };
  cut();
  shrink_until([&] { return product(shape.channel_pitch, channels, bytes_each) <= most_tile_bytes(machine); },
               [&] {
                 const bool rows = shape.tile_h > 1;
                 if (!rows && (shape.tile_w <= 1 || shape.tile_w * images <= kFewLanes)) return false;
                 (rows ? cut_h : cut_w) *= 2;
                 cut();
                 return true;
               });
  return shape;
}

// Depthwise and other small groups: several to a task, so that neighbouring channels are read together.
int64_t groups_together(const ConvProblem& z) {
  const int64_t channels = max_of(1, max_of(z.group_c(), z.group_k()) * parts_of(z.dtype));
  return max_of(1, min_of(z.groups, kChannelsTogether / channels));
}

// Vectors per output when every run of lanes costs `run_cost` vectors beside its own.
double lane_vectors(const Shape& shape, int64_t lanes, bool flat, double run_cost) {
  const int64_t runs = flat ? 1 : shape.tile_h;
  const int64_t run_lanes =
      flat ? product(product(shape.tile_h - 1, shape.pitch) + shape.tile_w, shape.images) : shape.tile_w * shape.images;
  return double(runs) * (double(ceil_div(run_lanes, lanes)) + run_cost) /
         (double(shape.tile_h) * double(shape.tile_w) * double(shape.images));
}

void lay_out(const PlanInput& input, const DirectPlan& own, Plan* plan) {
  count_memory(input.problem.dtype, plan, [&](auto number, Carver& workspace, Carver& scratch) {
    direct_workspace<decltype(number)>(input.problem, input.pass, workspace);
    direct_scratch<decltype(number)>(input.problem, input.pass, own, scratch);
  });
}

}  // namespace

void prepare_direct(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  DirectPlan& own = plan->own<DirectPlan>();
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t parts = parts_of(z.dtype), bytes_each = accumulator_bytes(z.dtype),
                lanes = machine.vector_bytes / bytes_each;
  const int64_t channels = source_channels(z, pass) * parts;
  const int64_t rows_m = result_channels(z, pass) * parts;
  const bool share = z.flops() >= kWorthSharing;
  own.task_groups = groups_together(z);
  const int64_t packed_channels = own.task_groups * channels;

  Shape best{};
  double best_cost = 0;
  for (int64_t images = 1; images <= kMaxImages; images *= 2) {
    // Images side by side fill vectors that one small image cannot; keep enough blocks of images for several threads.
    if (images > 1 && (images >= 2 * z.n || (share && images * 4 > z.n))) break;
    const Shape shape = fit_tile(vertical, horizontal, images, packed_channels, bytes_each, INT64_MAX / 2, machine);
    if (images > 1 && product(packed_channels, shape.channel_pitch, bytes_each) + kOverread > kScratchLimit) break;
    for (const bool flat : {true, false}) {
      const double cost = lane_vectors(shape, lanes, flat, kNarrowTile) * (images > 1 ? kInterleaveCost : 1.0);
      if ((images == 1 && flat) || cost < best_cost) {
        best = shape;
        best_cost = cost;
        own.flat = flat;
      }
    }
    if (best_cost * double(lanes) < 1.1) break;  // the vectors are full already
  }
  own.tile_h = best.tile_h;
  own.tile_w = best.tile_w;
  own.images = best.images;
  own.channel_pitch = best.channel_pitch;

  const int64_t tiles =
      product(ceil_div(z.n, best.images), ceil_div(z.groups, own.task_groups),
              ceil_div(vertical.longest_count(), best.tile_h), ceil_div(horizontal.longest_count(), best.tile_w));
  int64_t parts_m = 1;
  const int64_t block = direct_tile(machine).gather_m;
  if (share && tiles < kEnoughTasks) parts_m = min_of(ceil_div(kEnoughTasks, tiles), ceil_div(rows_m, block));
  own.task_m = round_up(ceil_div(rows_m, parts_m), block);
  plan->tasks = product(tiles, ceil_div(rows_m, own.task_m));
  lay_out(input, own, plan);
}

const char* direct_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  if (pass == Pass::WeightGrad) return "its weight_grad is that of panels";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (z.r > (1 << 20) / z.s) return "the kernel has more than 2^20 taps";
  // Cheap bounds first; only what comes near a limit is planned to know.
  const int64_t channels = source_channels(z, pass) * parts_of(z.dtype);
  const double bound = double(groups_together(z) * channels) * double(z.r) * double(z.s + 1) * double(kMaxImages) *
                       double(accumulator_bytes(z.dtype));
  if (bound <= double(kSmallTile) && z.weight_elements() <= kWorkspaceLimit / 64) return nullptr;
  return memory_declines(input, prepare_direct, "the smallest packed tile exceeds 16 MiB of scratch for each thread");
}

const char* direct_yields(const PlanInput&) { return nullptr; }

void describe_direct(const PlanInput&, const Plan& plan, Facts* facts) {
  const DirectPlan& own = plan.own<DirectPlan>();
  add_facts(facts, {{"rows", own.tile_h},
                    {"columns", own.tile_w},
                    {"images", own.images},
                    {"channels", own.task_m},
                    {"lanes", own.flat ? "across rows" : "within rows"}});
}

}  // namespace conv_ext
