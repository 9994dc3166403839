// The plan room: which algorithm computes a problem, and with which tiles.
#include "plan.h"

#include <string.h>

#include <initializer_list>

#include "plan_common.h"
#include "plan_winograd.h"

namespace conv_ext {
namespace {

constexpr int64_t kMaxImages = 128;        // images side by side
constexpr double kInterleaveCost = 1.15;   // packing images side by side is slower than copying rows
constexpr int64_t kChannelsTogether = 16;  // small groups are packed together up to so many channels
constexpr int64_t kVectorsTogether = 8;    // depthwise: vectors of channels per packed tile
constexpr double kNarrowTile = 0.5;        // forward: vectors that a run of lanes loses, its last tile being narrow
constexpr int64_t kGradLanes = 1024;  // weight_grad: lanes per tile, so that summing a register tile's lanes is rare
constexpr int64_t kGradBlock = 64;    // weight_grad: channels of each operand per tile
constexpr int64_t kOverread = 512;    // bytes that a register tile may read past its last lane

// The largest tile whose packed channels fit the budget: all columns and as many rows as possible, halving.
Shape fit_tile(const Axis& vertical, const Axis& horizontal, int64_t images, int64_t channels, int64_t bytes_each,
               int64_t widest) {
  const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
  int64_t cut_h = 1, cut_w = max_of(1, ceil_div(count_w, widest));
  for (;;) {
    const Shape shape = shape_of(vertical, horizontal, ceil_div(count_h, cut_h), ceil_div(count_w, cut_w), images);
    if (shape.channel_pitch * channels * bytes_each <= kTileBudget) return shape;
    if (shape.tile_h > 1) {
      cut_h *= 2;
    } else if (shape.tile_w * images > 64) {
      cut_w *= 2;
    } else {
      return shape;
    }
  }
}

// Depthwise and other small groups: several to a task, so that neighbouring channels are read together.
int64_t groups_together(const ConvProblem& z) {
  return max_of(1, min_of(z.groups, kChannelsTogether / (max_of(z.group_c(), z.group_k()) * parts_of(z.dtype))));
}

// Vectors per output when every run of lanes costs `run_cost` vectors beside its own.
double lane_vectors(const Shape& shape, int64_t lanes, bool flat, double run_cost) {
  const int64_t runs = flat ? 1 : shape.tile_h;
  const int64_t run_lanes =
      flat ? ((shape.tile_h - 1) * shape.pitch + shape.tile_w) * shape.images : shape.tile_w * shape.images;
  return double(runs) * (double(ceil_div(run_lanes, lanes)) + run_cost) /
         double(shape.tile_h * shape.tile_w * shape.images);
}

void prepare_gather(const ConvProblem& z, Pass pass, const IsaTraits& isa, Plan* plan) {
  const bool input_grad = pass == Pass::InputGrad;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t parts = parts_of(z.dtype), bytes_each = accumulator_bytes(z.dtype),
                lanes = isa.vector_bytes / bytes_each;
  const int64_t channels = (input_grad ? z.group_k() : z.group_c()) * parts;
  const int64_t rows_m = (input_grad ? z.group_c() : z.group_k()) * parts;
  const bool share = z.flops() >= kWorthSharing;
  plan->task_groups = groups_together(z);
  const int64_t packed_channels = plan->task_groups * channels;

  Shape best{};
  double best_cost = 0;
  for (int64_t images = 1; images <= kMaxImages; images *= 2) {
    // Images side by side fill vectors that one small image cannot; keep enough blocks of images for several threads.
    if (images > 1 && (images >= 2 * z.n || (share && images * 4 > z.n))) break;
    const Shape shape = fit_tile(vertical, horizontal, images, packed_channels, bytes_each, INT64_MAX / 2);
    for (const bool flat : {true, false}) {
      const double cost = lane_vectors(shape, lanes, flat, kNarrowTile) * (images > 1 ? kInterleaveCost : 1.0);
      if ((images == 1 && flat) || cost < best_cost) {
        best = shape;
        best_cost = cost;
        plan->flat = flat;
      }
    }
    if (best_cost * double(lanes) < 1.1) break;  // the vectors are full already
  }
  plan->tile_h = best.tile_h;
  plan->tile_w = best.tile_w;
  plan->images = best.images;
  plan->channel_pitch = best.channel_pitch;

  const int64_t tiles = ceil_div(z.n, best.images) * ceil_div(z.groups, plan->task_groups) *
                        ceil_div(vertical.longest_count(), best.tile_h) *
                        ceil_div(horizontal.longest_count(), best.tile_w);
  int64_t parts_m = 1;
  if (share && tiles < kEnoughTasks) parts_m = min_of(ceil_div(kEnoughTasks, tiles), ceil_div(rows_m, isa.gather_m));
  plan->task_m = round_up(ceil_div(rows_m, parts_m), isa.gather_m);
  plan->tasks = tiles * ceil_div(rows_m, plan->task_m);
  plan->scratch_bytes = aligned(packed_channels * best.channel_pitch * bytes_each + kOverread);
  plan->workspace_bytes = table_bytes(z, vertical, horizontal) + aligned(z.groups * rows_m * bytes_each) +
                          aligned(z.groups * rows_m * channels * z.r * z.s * bytes_each);
}

void prepare_weight_grad(const ConvProblem& z, const IsaTraits& isa, Plan* plan) {
  const Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const int64_t parts = parts_of(z.dtype), bytes_each = accumulator_bytes(z.dtype),
                lanes = isa.vector_bytes / bytes_each;
  int64_t block_k = min_of(z.group_k(), kGradBlock), block_c = min_of(z.group_c(), kGradBlock);
  plan->task_groups = groups_together(z);

  Shape best{};
  double best_cost = 0;
  for (int64_t images = 1; images <= kMaxImages && images < 2 * z.n; images *= 2) {
    Shape shape = fit_tile(vertical, horizontal, images, parts, bytes_each, max_of(1, kGradLanes / images));
    const int64_t rows = max_of(1, kGradLanes / round_up(shape.tile_w * images, lanes));
    const int64_t cut = max_of(ceil_div(z.p, shape.tile_h), ceil_div(z.p, rows));
    shape = shape_of(vertical, horizontal, ceil_div(z.p, cut), shape.tile_w, images);
    // A tile of few lanes pays for the sums across its vectors again and again: some 8 vectors' worth each time.
    const double vectors = lane_vectors(shape, lanes, false, 0) + 8.0 / double(shape.tile_h * shape.tile_w * images);
    const double cost = vectors * (images > 1 ? kInterleaveCost : 1.0);
    if (images == 1 || cost < best_cost) {
      best = shape;
      best_cost = cost;
    }
  }
  plan->grad_pitch = round_up(best.tile_w * best.images, lanes);
  const auto bytes_of = [&] {
    const int64_t rows_k = plan->task_groups * block_k * parts, rows_c = plan->task_groups * block_c * parts;
    return aligned(block_c * parts * z.r * z.s * 8) + aligned(rows_k * best.tile_h * plan->grad_pitch * bytes_each) +
           rows_c * best.channel_pitch * bytes_each + kOverread;
  };
  // A block of several groups takes each of them whole.
  while (bytes_of() > kTileBudget && plan->task_groups > 1) plan->task_groups = ceil_div(plan->task_groups, 2);
  while (bytes_of() > kTileBudget && (block_k > isa.dot_m || block_c > 1)) {
    const bool input_larger = block_c * best.channel_pitch > block_k * best.tile_h * plan->grad_pitch;
    if (block_c > 1 && (input_larger || block_k <= isa.dot_m)) {
      block_c = ceil_div(block_c, 2);
    } else {
      block_k = round_up(ceil_div(block_k, 2), isa.dot_m);
    }
  }
  plan->tile_h = best.tile_h;
  plan->tile_w = best.tile_w;
  plan->images = best.images;
  plan->channel_pitch = best.channel_pitch;
  plan->tile_k = block_k;
  plan->tile_c = block_c;

  const int64_t tasks =
      ceil_div(z.groups, plan->task_groups) * ceil_div(z.group_k(), block_k) * ceil_div(z.group_c(), block_c);
  const int64_t units = ceil_div(z.n, best.images) * ceil_div(z.p, best.tile_h) * ceil_div(z.q, best.tile_w);
  const int64_t sum_bytes = z.weight_elements() * parts * parts * bytes_each;
  plan->splits = 1;
  if (z.flops() >= kWorthSharing && tasks < kEnoughTasks)
    plan->splits = max_of(1, min_of(min_of(units, ceil_div(kEnoughTasks, tasks)), kPartialSums / sum_bytes));
  plan->tasks = tasks * plan->splits;
  plan->scratch_bytes = aligned(bytes_of());
  plan->workspace_bytes = table_bytes(z, vertical, horizontal) + aligned(plan->splits * sum_bytes);
}

void prepare_direct(const ConvProblem& z, Pass pass, const IsaTraits& isa, Plan* plan) {
  if (pass == Pass::WeightGrad) {
    prepare_weight_grad(z, isa, plan);
  } else {
    prepare_gather(z, pass, isa, plan);
  }
}

const char* direct_declines(const ConvProblem& z, Pass pass, const IsaTraits& isa) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (z.r > (1 << 20) / z.s) return "the kernel has more than 2^20 taps";
  // A cheap bound first; only what comes near the limit is planned to know.
  const int64_t channels = (pass == Pass::InputGrad ? z.group_k() : z.group_c()) * parts_of(z.dtype);
  const double bound = double(channels) * double(z.r) * double(z.s + 1) * 64.0 * double(accumulator_bytes(z.dtype));
  if (bound > double(kTileBudget)) {
    Plan plan{};
    prepare_direct(z, pass, isa, &plan);
    if (plan.scratch_bytes > kScratchLimit) return "the smallest packed tile exceeds 16 MiB of scratch for each thread";
  }
  return nullptr;
}

void prepare_depthwise(const ConvProblem& z, Pass pass, const IsaTraits& isa, Plan* plan) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = isa.vector_bytes / bytes_each, taps = z.r * z.s;
  const int64_t pitch = round_up(z.c, lanes), sum_bytes = pitch * taps * bytes_each;
  // Tiles of one vector of channels, source and result: what a tile reads beyond its own rows does not depend on where
  // it lies, but for the borders.
  const auto tile_bytes = [&](int64_t rows) {
    return aligned(min_of(span_rows(vertical, rows), vertical.source) * horizontal.source * isa.vector_bytes) +
           aligned(rows * horizontal.output * isa.vector_bytes);
  };
  int64_t cut = 1;
  const auto tile_rows = [&] { return ceil_div(vertical.output, cut); };
  while (tile_bytes(tile_rows()) > kTileBudget && tile_rows() > 1) cut *= 2;
  plan->tile_h = tile_rows();
  plan->tile_w = horizontal.output;
  // Several vectors of channels share one list of taps.
  const int64_t vectors = max_of(1, min_of(kVectorsTogether, kTileBudget / tile_bytes(plan->tile_h)));
  plan->tile_c = min_of(pitch, vectors * lanes);
  const int64_t units = z.n * ceil_div(vertical.output, plan->tile_h), chunks = ceil_div(z.c, plan->tile_c);
  plan->splits = 1;
  if (pass == Pass::WeightGrad && z.flops() >= kWorthSharing)
    plan->splits = max_of(
        1, min_of(min_of(units, ceil_div(kEnoughTasks, ceil_div(z.c, kDepthwiseChannels))), kPartialSums / sum_bytes));
  plan->tasks = pass == Pass::WeightGrad ? plan->splits * chunks : units * chunks;
  plan->workspace_bytes =
      aligned(pitch * element_bytes(z.dtype)) + aligned(pitch * bytes_each) +
      (pass == Pass::WeightGrad ? aligned(plan->splits * sum_bytes) : aligned(sum_bytes) + aligned(pitch * bytes_each));
  plan->scratch_bytes = 4 * aligned(taps * 8) + ceil_div(plan->tile_c, lanes) * tile_bytes(plan->tile_h);
}

const char* depthwise_declines(const ConvProblem& z, Pass pass, const IsaTraits& isa) {
  if (z.groups != z.c || z.groups != z.k) return "it is for depthwise problems, where groups = C = K";
  if (is_complex(z.dtype)) return "it is for real numbers";
  if (2 * z.c * accumulator_bytes(z.dtype) < isa.vector_bytes) return "the channels fill less than half a vector";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  Plan plan{};
  prepare_depthwise(z, pass, isa, &plan);
  if (plan.scratch_bytes > kScratchLimit)
    return "one row of a vector of channels exceeds 16 MiB of scratch for each thread";
  return nullptr;
}

const char* never_yields(const ConvProblem&, Pass, const IsaTraits&) { return nullptr; }

const char* reference_declines(const ConvProblem&, Pass, const IsaTraits&) { return nullptr; }
void prepare_reference(const ConvProblem& z, Pass pass, const IsaTraits&, Plan* plan) {
  plan->tasks = pass == Pass::Forward ? z.n * z.k : pass == Pass::InputGrad ? z.n * z.c : z.k * z.group_c();
}

}  // namespace

// The choice of algorithm on one page: the first that neither declines nor yields runs.
const Candidate kCandidates[kCandidateCount] = {
    {Algorithm::Depthwise, "depthwise", depthwise_declines, never_yields, prepare_depthwise},
    {Algorithm::Winograd, "winograd", winograd_declines, winograd_yields, prepare_winograd},
    {Algorithm::ImplicitGemm, "implicit_gemm", implicit_gemm_declines, never_yields, prepare_implicit_gemm},
    {Algorithm::Panels, "panels", panels_decline, panels_yield, prepare_panels},
    {Algorithm::Direct, "direct", direct_declines, never_yields, prepare_direct},
    {Algorithm::Reference, "reference", reference_declines, never_yields, prepare_reference},
};

const Candidate* choose(const ConvProblem& problem, Pass pass, const IsaTraits& isa, const char* forced,
                        const char** reason) {
  const bool any = strcmp(forced, "auto") == 0;
  *reason = "no algorithm has this name";
  for (const Candidate& candidate : kCandidates) {
    if (!any && strcmp(forced, candidate.name) != 0) continue;
    *reason = candidate.declines(problem, pass, isa);
    if (any && *reason == nullptr) *reason = candidate.yields(problem, pass, isa);
    if (*reason == nullptr) return &candidate;
  }
  return nullptr;
}

}  // namespace conv_ext
