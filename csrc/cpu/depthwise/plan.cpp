// Plans of the depthwise algorithm: rows and channels of a task, in both of its layouts.
#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {
namespace {

constexpr int64_t kDepthwiseUnit = 64 << 10;  // depthwise: bytes that a task reads and writes where it is one of many
constexpr int64_t kDepthwiseRows = 7;         // depthwise: outputs below one another, kMaxDepthwiseRows in its kernels

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

}  // namespace

void prepare_depthwise(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, isa, strides] = input;
  DepthwisePlan& own = plan->own<DepthwisePlan>();
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const bool weight_grad = pass == Pass::WeightGrad, share = z.flops() >= kWorthSharing;
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = isa.vector_bytes / bytes_each, taps = z.r * z.s;
  const int64_t pitch = round_up(z.c, lanes), sum_bytes = product(pitch, taps, bytes_each);
  // Where lanes are columns a unit is some channels, large enough to be worth handing out; only few large maps are cut.
  const int64_t map_bytes = product(product(z.h, z.w) + product(z.p, z.q), bytes_each);
  own.task_groups =
      max_of(1, min_of(z.c, min_of(kDepthwiseUnit / max_of(1, map_bytes), product(z.n, z.c) / (2 * kEnoughTasks))));
  if (weight_grad) own.task_groups = min_of(max_of(1, z.c / kEnoughTasks), kChannelsTogether);
  // Where lanes are channels and rows are packed: channels whose packed rows fit.
  const int64_t lines = depthwise_lines(vertical);
  const int64_t row_bytes = product(isa.vector_bytes, product(lines, horizontal.source) + horizontal.output);
  own.tile_c = lanes * max_of(1, min_of(pitch / lanes, kTileBudget / row_bytes));
  own.splits = 1;
  if (weight_grad && share) {
    const int64_t wanted = min_of(product(z.n, z.p), ceil_div(kEnoughTasks * kGradBlock, pitch));
    own.splits = max_of(1, min_of(wanted, kPartialSums / sum_bytes));
  }
  const int64_t units = weight_grad ? own.splits : share ? ceil_div(kEnoughTasks, z.c) : 1;
  const int64_t tiles = max_of(1, min_of(vertical.output, ceil_div(units, max_of(1, z.n))));
  own.tile_h = round_up(ceil_div(vertical.output, tiles), kDepthwiseRows * vertical.output_step());
  own.tile_w = horizontal.output;
  if (weight_grad) own.splits = max_of(1, min_of(own.splits, product(z.n, ceil_div(z.p, max_of(1, own.tile_h)))));
  plan->tasks = !share ? 1
                       : product(ceil_div(z.c, own.task_groups),
                                 weight_grad ? own.splits : product(z.n, ceil_div(vertical.output, own.tile_h)));
  const int64_t widest = horizontal.source + horizontal.step() + 4096;
  plan->workspace_bytes =
      depthwise_table_bytes(vertical, horizontal) + array_bytes(widest, bytes_each) +
      (weight_grad ? array_bytes(own.splits, sum_bytes) : aligned(sum_bytes) + array_bytes(pitch, bytes_each));
  const int64_t listed = depthwise_listed_rows(vertical, kDepthwiseRows);
  const int64_t column_row = bytes_each * (horizontal.source + horizontal.step());
  const int64_t column_out = product(bytes_each, horizontal.phases(), round_up(horizontal.longest_count(), lanes));
  const int64_t column_bytes = array_bytes(listed, 8) + aligned(kDepthwiseRows * 8) + array_bytes(listed, column_row) +
                               array_bytes(kDepthwiseRows, depthwise_together(vertical, horizontal), column_out) +
                               (weight_grad ? array_bytes(own.task_groups, taps, isa.vector_bytes) : 0);
  const int64_t channel_bytes = array_bytes(lines, 8) + array_bytes(lines, horizontal.source, own.tile_c, bytes_each) +
                                array_bytes(horizontal.output, own.tile_c, bytes_each);
  plan->scratch_bytes = max_of(column_bytes, channel_bytes);
}

const char* depthwise_declines(const PlanInput& input) {
  const auto& [z, pass, isa, strides] = input;
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
  return memory_declines(input, prepare_depthwise, "one block of rows exceeds 16 MiB of scratch for each thread");
}

const char* depthwise_yields(const PlanInput& input) {
  const auto& [z, pass, isa, strides] = input;
  // Then lanes would be columns, which channels_last would have to be turned round for.
  if (z.channels_last && 2 * z.c * accumulator_bytes(z.dtype) < isa.vector_bytes)
    return "the channels fill less than half a vector";
  return nullptr;
}

void describe_depthwise(const PlanInput& input, const Plan& plan, Facts* facts) {
  const DepthwisePlan& own = plan.own<DepthwisePlan>();
  add_facts(facts, {{"rows", own.tile_h}, {"columns", own.tile_w}});
  if (input.pass == Pass::WeightGrad) add_facts(facts, {{"splits", own.splits}});
}

}  // namespace conv_ext
