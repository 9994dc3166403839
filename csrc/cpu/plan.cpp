// The plan room: which algorithm computes a problem, and with which tiles.
#include "plan.h"

#include <string.h>

#include <initializer_list>

#include "plan_common.h"

namespace conv_ext {
namespace {

constexpr int64_t kMaxImages = 128;           // images side by side
constexpr double kInterleaveCost = 1.15;      // packing images side by side is slower than copying rows
constexpr int64_t kChannelsTogether = 16;     // small groups are packed together up to so many channels
constexpr int64_t kDepthwiseUnit = 64 << 10;  // depthwise: bytes that a task reads and writes where it is one of many
constexpr int64_t kDepthwiseRows = 7;         // depthwise: outputs below one another, kMaxDepthwiseRows in its kernels
constexpr double kNarrowTile = 0.5;           // forward: vectors that a run of lanes loses, its last tile being narrow
constexpr int64_t kGradLanes = 1024;  // weight_grad: lanes per tile, so that summing a register tile's lanes is rare
constexpr int64_t kGradBlock = 64;    // weight_grad: channels of each operand per tile
constexpr int64_t kOverread = 512;    // bytes that a register tile may read past its last lane

// The largest tile whose packed channels fit the budget: all columns and as many rows as possible, halving.
Shape fit_tile(const Axis& vertical, const Axis& horizontal, int64_t images, int64_t channels, int64_t bytes_each,
               int64_t widest) {
  const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
  int64_t cut_h = 1, cut_w = max_of(1, ceil_div(count_w, widest));
  // Ends with one row, and few columns or one: halving takes a step for each binary digit of either.
  for (;;) {
    CONV_EXT_PLAN_STEP();
    const Shape shape = shape_of(vertical, horizontal, ceil_div(count_h, cut_h), ceil_div(count_w, cut_w), images);
    if (product(shape.channel_pitch, channels, bytes_each) <= kTileBudget) return shape;
    if (shape.tile_h > 1) {
      cut_h *= 2;
    } else if (shape.tile_w > 1 && shape.tile_w * images > 64) {
      cut_w *= 2;
    } else {
      return shape;
    }
  }
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
    if (images > 1 && product(packed_channels, shape.channel_pitch, bytes_each) + kOverread > kScratchLimit) break;
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

  const int64_t tiles =
      product(ceil_div(z.n, best.images), ceil_div(z.groups, plan->task_groups),
              ceil_div(vertical.longest_count(), best.tile_h), ceil_div(horizontal.longest_count(), best.tile_w));
  int64_t parts_m = 1;
  if (share && tiles < kEnoughTasks) parts_m = min_of(ceil_div(kEnoughTasks, tiles), ceil_div(rows_m, isa.gather_m));
  plan->task_m = round_up(ceil_div(rows_m, parts_m), isa.gather_m);
  plan->tasks = product(tiles, ceil_div(rows_m, plan->task_m));
  plan->scratch_bytes = aligned(product(packed_channels, best.channel_pitch, bytes_each) + kOverread);
  plan->workspace_bytes = table_bytes(z, vertical, horizontal) + array_bytes(z.groups, rows_m, bytes_each) +
                          array_bytes(z.groups, rows_m, channels, z.r, z.s, bytes_each);
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
    const double outputs = double(shape.tile_h) * double(shape.tile_w) * double(images);
    const double vectors = lane_vectors(shape, lanes, false, 0) + 8.0 / outputs;
    const double cost = vectors * (images > 1 ? kInterleaveCost : 1.0);
    if (images == 1 || cost < best_cost) {
      best = shape;
      best_cost = cost;
    }
  }
  plan->grad_pitch = round_up(best.tile_w * best.images, lanes);
  const auto bytes_of = [&] {
    const int64_t rows_k = plan->task_groups * block_k * parts, rows_c = plan->task_groups * block_c * parts;
    return array_bytes(block_c, parts, z.r, z.s, 8) + array_bytes(rows_k, best.tile_h, plan->grad_pitch, bytes_each) +
           product(rows_c, best.channel_pitch, bytes_each) + kOverread;
  };
  // Every step halves a number. A block of several groups takes each of them whole.
  while (bytes_of() > kTileBudget && plan->task_groups > 1) {
    CONV_EXT_PLAN_STEP();
    plan->task_groups = ceil_div(plan->task_groups, 2);
  }
  while (bytes_of() > kTileBudget && (block_k > isa.dot_m || block_c > 1)) {
    CONV_EXT_PLAN_STEP();
    const bool input_larger = product(block_c, best.channel_pitch) > product(block_k, best.tile_h, plan->grad_pitch);
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
      product(ceil_div(z.groups, plan->task_groups), ceil_div(z.group_k(), block_k), ceil_div(z.group_c(), block_c));
  const int64_t units = product(ceil_div(z.n, best.images), ceil_div(z.p, best.tile_h), ceil_div(z.q, best.tile_w));
  const int64_t sum_bytes = product(z.weight_elements(), parts * parts * bytes_each);
  plan->splits = 1;
  if (z.flops() >= kWorthSharing && tasks < kEnoughTasks)
    plan->splits = max_of(1, min_of(min_of(units, ceil_div(kEnoughTasks, tasks)), kPartialSums / sum_bytes));
  plan->tasks = tasks * plan->splits;
  plan->scratch_bytes = aligned(bytes_of());
  plan->workspace_bytes = table_bytes(z, vertical, horizontal) + array_bytes(plan->splits, sum_bytes);
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
  // Cheap bounds first; only what comes near a limit is planned to know.
  const int64_t channels = (pass == Pass::InputGrad ? z.group_k() : z.group_c()) * parts_of(z.dtype);
  const double bound = double(groups_together(z) * channels) * double(z.r) * double(z.s + 1) * double(kMaxImages) *
                       double(accumulator_bytes(z.dtype));
  if (bound <= double(kTileBudget) && z.weight_elements() <= kWorkspaceLimit / 64) return nullptr;
  return memory_declines(z, pass, isa, prepare_direct,
                         "the smallest packed tile exceeds 16 MiB of scratch for each thread");
}

// Bytes of the tables in cpu/depthwise/channels.h, or cpu/depthwise/columns_rows.h.
int64_t depthwise_table_bytes(const Axis& vertical, const Axis& horizontal) {
  const int64_t taps = depthwise_phase_taps(horizontal);
  int64_t bytes = array_bytes(vertical.phases(), 40) + array_bytes(horizontal.phases() + 1, 72);
  for (int64_t f = 0; f < horizontal.phases(); ++f) {
    CONV_EXT_PLAN_STEP();
    const int64_t segments = depthwise_segments(horizontal, f);
    const int64_t lists = f == 0 && horizontal.phases() == 2 ? 2 : 1;  // one more that serves both phases
    bytes += product(lists, array_bytes(segments, 32) + product(segments, aligned(taps * 16)));
  }
  return bytes;
}

void prepare_depthwise(const ConvProblem& z, Pass pass, const IsaTraits& isa, Plan* plan) {
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const bool weight_grad = pass == Pass::WeightGrad, share = z.flops() >= kWorthSharing;
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = isa.vector_bytes / bytes_each, taps = z.r * z.s;
  const int64_t pitch = round_up(z.c, lanes), sum_bytes = product(pitch, taps, bytes_each);
  // Where lanes are columns a unit is some channels, large enough to be worth handing out; only few large maps are cut.
  const int64_t map_bytes = product(product(z.h, z.w) + product(z.p, z.q), bytes_each);
  plan->task_groups =
      max_of(1, min_of(z.c, min_of(kDepthwiseUnit / max_of(1, map_bytes), product(z.n, z.c) / (2 * kEnoughTasks))));
  if (weight_grad) plan->task_groups = min_of(max_of(1, z.c / kEnoughTasks), kChannelsTogether);
  // Where lanes are channels and rows are packed: channels whose packed rows fit.
  const int64_t lines = depthwise_lines(vertical);
  const int64_t row_bytes = product(isa.vector_bytes, product(lines, horizontal.source) + horizontal.output);
  plan->tile_c = lanes * max_of(1, min_of(pitch / lanes, kTileBudget / row_bytes));
  plan->splits = 1;
  if (weight_grad && share) {
    const int64_t wanted = min_of(product(z.n, z.p), ceil_div(kEnoughTasks * kGradBlock, pitch));
    plan->splits = max_of(1, min_of(wanted, kPartialSums / sum_bytes));
  }
  const int64_t units = weight_grad ? plan->splits : share ? ceil_div(kEnoughTasks, z.c) : 1;
  const int64_t tiles = max_of(1, min_of(vertical.output, ceil_div(units, max_of(1, z.n))));
  plan->tile_h = round_up(ceil_div(vertical.output, tiles), kDepthwiseRows * vertical.output_step());
  plan->tile_w = horizontal.output;
  if (weight_grad) plan->splits = max_of(1, min_of(plan->splits, product(z.n, ceil_div(z.p, max_of(1, plan->tile_h)))));
  plan->tasks = !share ? 1
                       : product(ceil_div(z.c, plan->task_groups),
                                 weight_grad ? plan->splits : product(z.n, ceil_div(vertical.output, plan->tile_h)));
  const int64_t widest = horizontal.source + horizontal.step() + 4096;
  plan->workspace_bytes =
      depthwise_table_bytes(vertical, horizontal) + array_bytes(widest, bytes_each) +
      (weight_grad ? array_bytes(plan->splits, sum_bytes) : aligned(sum_bytes) + array_bytes(pitch, bytes_each));
  const int64_t listed = depthwise_listed_rows(vertical, kDepthwiseRows);
  const int64_t column_row = bytes_each * (horizontal.source + horizontal.step());
  const int64_t column_out = product(bytes_each, horizontal.phases(), round_up(horizontal.longest_count(), lanes));
  const int64_t column_bytes = array_bytes(listed, 8) + aligned(kDepthwiseRows * 8) + array_bytes(listed, column_row) +
                               array_bytes(kDepthwiseRows, depthwise_together(vertical, horizontal), column_out) +
                               (weight_grad ? array_bytes(plan->task_groups, taps, isa.vector_bytes) : 0);
  const int64_t channel_bytes = array_bytes(lines, 8) +
                                array_bytes(lines, horizontal.source, plan->tile_c, bytes_each) +
                                array_bytes(horizontal.output, plan->tile_c, bytes_each);
  plan->scratch_bytes = max_of(column_bytes, channel_bytes);
}

const char* depthwise_declines(const ConvProblem& z, Pass pass, const IsaTraits& isa) {
  if (z.groups != z.c || z.groups != z.k) return "it is for depthwise problems, where groups = C = K";
  if (is_complex(z.dtype)) return "it is for real numbers";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (vertical.phases() > kMaxPhases / z.r || horizontal.phases() > kMaxPhases / z.s)
    return "it is for strides that, times R or S, are at most 4096";
  if (max_of(horizontal.source, horizontal.output) > kScratchLimit / (16 * z.s) / accumulator_bytes(z.dtype))
    return "the rows are so long that a block of them exceeds 16 MiB of scratch for each thread";
  if (depthwise_table_bytes(vertical, horizontal) > kScratchLimit)
    return "so many outputs reach into the padding that their tables exceed 16 MiB";
  return memory_declines(z, pass, isa, prepare_depthwise,
                         "one block of rows exceeds 16 MiB of scratch for each thread");
}

const char* depthwise_yields(const ConvProblem& z, Pass, const IsaTraits& isa) {
  // Then lanes would be columns, which channels_last would have to be turned round for.
  if (z.channels_last && 2 * z.c * accumulator_bytes(z.dtype) < isa.vector_bytes)
    return "the channels fill less than half a vector";
  return nullptr;
}

const char* never_yields(const ConvProblem&, Pass, const IsaTraits&) { return nullptr; }

const char* reference_declines(const ConvProblem&, Pass, const IsaTraits&) { return nullptr; }
void prepare_reference(const ConvProblem& z, Pass pass, const IsaTraits&, Plan* plan) {
  plan->tasks = pass == Pass::Forward ? z.n * z.k : pass == Pass::InputGrad ? z.n * z.c : z.k * z.group_c();
}

}  // namespace

const char* beyond_tiles(const ConvProblem& z) {
  const int64_t height = z.h + z.pad_top + z.pad_bottom, width = z.w + z.pad_left + z.pad_right;
  if (max_of(max_of(z.n, max_of(z.c, z.k)), max_of(height, width)) > kMostExtent)
    return "N, C, K, and the padded height and width may be 2^40 at most";
  if (product(z.n, z.c, height, width) > kMostElements || product(z.n, z.k, z.p, z.q) > kMostElements ||
      product(z.k, z.group_c(), z.r, z.s) > kMostElements)
    return "the padded input, the weight and the output may have 2^50 elements at most";
  return nullptr;
}

// The choice of algorithm on one page: the first that neither declines nor yields runs.
const Candidate kCandidates[kCandidateCount] = {
    {Algorithm::Depthwise, "depthwise", depthwise_declines, depthwise_yields, prepare_depthwise},
    {Algorithm::Winograd, "winograd", winograd_declines, winograd_yields, prepare_winograd},
    {Algorithm::Grouped, "grouped", grouped_declines, grouped_yields, prepare_grouped},
    {Algorithm::ImplicitGemm, "implicit_gemm", implicit_gemm_declines, implicit_gemm_yields, prepare_implicit_gemm},
    {Algorithm::Broadcast, "broadcast", broadcast_declines, broadcast_yields, prepare_broadcast},
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
