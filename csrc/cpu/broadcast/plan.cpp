// Plans of the broadcast algorithm: register tiles that leave no lanes idle, tiles of the source that fit the caches.
#include <initializer_list>

#include "../panels/plan_weights.h"
#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {
namespace {

// Bytes: of a packed tile; of sums before any is written, where one chain ends a result, and where several are added;
// of weights of a chain that stay in the first level of cache.
constexpr int64_t source_bytes(const Machine& machine) { return machine.caches.l2_bytes * 3 / 16; }
constexpr int64_t sum_bytes(const Machine& machine) { return machine.caches.l1_bytes * 3 / 4; }
constexpr int64_t kept_sum_bytes(const Machine& machine) { return machine.caches.l2_bytes * 3 / 8; }
constexpr int64_t weight_bytes(const Machine& machine) { return machine.caches.l1_bytes * 7 / 8; }
static_assert(in_every_row(source_bytes, 192 << 10) && in_every_row(sum_bytes, 24 << 10) &&
              in_every_row(kept_sum_bytes, 384 << 10) && in_every_row(weight_bytes, 28 << 10));

// What the estimates below are made with, beside the rates of machine.h. They only choose between register tiles that
// all are right, and are no measurements: about so many cycles are taken for
constexpr double kPackedBesideImages = 2;  // packing a number where images lie side by side: gathered one by one
constexpr double kBesideAProduct = 0.5;    // what a register tile does beside a product: the loop, the next tap

constexpr int64_t kFewColumns = 64;  // outputs up to which a row's ends count

// The fewest taps that a phase has, but for those without any.
int64_t fewest_taps(const Axis& axis) { return max_of(1, axis.taps / tap_distance(axis)); }

// Taps that lead outputs [first, last) of a row to the source.
int64_t taps_of(const Axis& axis, int64_t first, int64_t last) {
  int64_t count = 0;
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    CONV_EXT_PLAN_STEP();
    if (axis.phase_of(tap) != 0) continue;
    const int64_t low = first * axis.step() + axis.offset(tap), high = (last - 1) * axis.step() + axis.offset(tap);
    count += high >= 0 && low < axis.source;
  }
  return count;
}

// Cycles or so of one product of a register tile: of its multiply-adds, of its loads, of the weights where they come
// from the second level of cache; never fewer than a chain waits for itself.
double tile_cost(const Rates& rates, int64_t outputs, int64_t vectors, bool from_second_level) {
  const double products = double(outputs * vectors) / rates.multiply_adds;
  const double loads = double(outputs + vectors) / rates.loads;
  const double weights = from_second_level ? double(vectors) * rates.l2_cycles : 0;
  double cost = rates.latency;
  for (const double other : {products, loads, weights}) cost = cost > other ? cost : other;
  return cost + kBesideAProduct;
}

// Cycles or so of a row of outputs and one row of taps, for all channels of the result and one image.
double row_cost(const Rates& rates, const Axis& horizontal, int64_t longest, int64_t all_vectors, int64_t vectors,
                int64_t images, bool from_second_level) {
  const int64_t width = horizontal.longest_count(), slices = ceil_div(all_vectors, vectors);
  const double each = double(all_vectors) / double(slices);
  double cost = 0;
  if (images == 1) {
    const int64_t parts = ceil_div(width, longest);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = width * i / parts, last = width * (i + 1) / parts;
      cost += double(taps_of(horizontal, first, last)) * tile_cost(rates, last - first, vectors, from_second_level);
    }
  } else {
    for (int64_t i = 0; i < width; ++i)
      cost +=
          double(taps_of(horizontal, i, i + 1)) * tile_cost(rates, images, vectors, from_second_level) / double(images);
  }
  return cost * double(slices) * each / double(vectors);
}

// Which register tile: vectors of channels beside neighbouring columns, or beside images side by side. The one that is
// estimated to be the fastest is taken; where rows are so long that their ends do not count, two vectors and columns.
struct RegisterTile {
  int64_t vectors, images;
};
RegisterTile usual_tile(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  const int64_t group_m = max_of(1, result_channels(z, pass));
  return {min_of(ceil_div(group_m, machine.vector_bytes / accumulator_bytes(z.dtype)), 2), 1};
}
RegisterTile fastest_tile(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype), taps = z.r * z.s;
  const int64_t group_m = max_of(1, result_channels(z, pass)), channels = source_channels(z, pass);
  const int64_t all_vectors = ceil_div(group_m, lanes);
  const RegisterTile usual = usual_tile(input);
  if (horizontal.longest_count() > kFewColumns) return usual;
  int64_t rows_of_taps = 0;
  for (int64_t i = 0; i < min_of(max_of(1, vertical.longest_count()), kFewColumns); ++i)
    rows_of_taps += taps_of(vertical, i, i + 1);
  RegisterTile fastest = usual;
  double best = 0;
  for (int64_t vectors = 1; vectors <= min_of(kBroadcastV, all_vectors); ++vectors) {
    const int64_t longest = broadcast_positions(machine, vectors);
    const bool from_second_level =
        min_of(product(channels, taps), kPanelProducts) * vectors * machine.vector_bytes > weight_bytes(machine);
    const int64_t side_by_side = z.n / max_of(1, ceil_div(z.n, longest));
    for (const int64_t images : {int64_t(1), side_by_side}) {
      if (images < 1) continue;
      double cost = double(rows_of_taps) *
                    row_cost(machine.rates, horizontal, longest, all_vectors, vectors, images, from_second_level);
      if (images > 1) cost += kPackedBesideImages * double(vertical.source) * double(horizontal.source);
      if (best == 0 || cost <= best) {
        best = cost;
        fastest = {vectors, images};
      }
    }
  }
  return best > 0 ? fastest : usual;
}

// Rows are cut into parts half as many again until one row is left, then columns into twice as many: this makes enough
// steps for the longest of both.
constexpr int kMostCuts = 128;

// Tiles of outputs: enough of them, and so small that the source of one and the sums that are held together fit.
void cut_tiles(const PlanInput& input, int64_t enough, bool keeps_sums, BroadcastPlan* own) {
  const auto& [z, pass, machine, strides] = input;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes = accumulator_bytes(z.dtype), image_blocks = ceil_div(max_of(1, z.n), own->images);
  const int64_t count_h = max_of(1, vertical.longest_count()), count_w = max_of(1, horizontal.longest_count());
  const int64_t position_bytes = product(own->images, own->weights.panels, own->weights.panel_channels, bytes);
  int64_t cut_h = min_of(count_h, max_of(1, ceil_div(enough, product(z.groups, image_blocks)))), cut_w = 1;
  const int64_t most_source = source_bytes(machine), most_sums = kept_sum_bytes(machine);
  const int64_t column_bytes =
      product(own->images, int64_t(sizeof(OutputRun)) + product(own->weights.panel_channels, bytes));
  const auto fits = [&] {
    own->tile_h = ceil_div(count_h, cut_h);
    own->tile_w = ceil_div(count_w, cut_w);
    own->channel_pitch = shape_of(vertical, horizontal, own->tile_h, own->tile_w, own->images).channel_pitch;
    return product(own->channel_pitch, own->tile_c, bytes) <= most_source &&
           product(own->tile_w, column_bytes) <= kScratchLimit / 4 * 3 &&
           (!keeps_sums || product(own->tile_h, own->tile_w, position_bytes) <= most_sums);
  };
  for (int step = 0; step < kMostCuts && !fits(); ++step) {
    CONV_EXT_PLAN_STEP();
    if (own->tile_h > 1) {
      cut_h = min_of(count_h, cut_h + max_of(1, cut_h / 2));
    } else if (own->tile_w > kFewColumns) {
      cut_w *= 2;
    } else {
      return;
    }
  }
}

void prepare_with(const RegisterTile& tile, const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides] = input;
  BroadcastPlan& own = plan->own<BroadcastPlan>();
  own = {};
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes = accumulator_bytes(z.dtype), lanes = machine.vector_bytes / bytes, taps = z.r * z.s;
  const int64_t channels = source_channels(z, pass);
  own.products = max_of(min_of(product(channels, taps), kMostProducts), taps);
  own.weights = weight_panels(z, pass, strides, lanes, true, 1, tile.vectors);
  own.images = tile.images;
  own.in_place = result_channels_are_neighbours(z, pass, strides);
  const int64_t slices = own.weights.panels, width = own.weights.panel_channels;
  const bool several_chains = panel_blocks(channels, taps).count() > 1;
  const int64_t fewest = fewest_taps(vertical) * fewest_taps(horizontal);
  own.tile_c = ceil_div(max_of(1, channels), panel_blocks(channels, fewest).channels);
  const bool share = z.flops() >= kWorthSharing;
  const int64_t enough = share ? kEnoughTasks / 2 : 1;
  cut_tiles(input, enough, several_chains, &own);
  own.rows = several_chains
                 ? own.tile_h
                 : max_of(1, min_of(own.tile_h, sum_bytes(machine) / product(own.tile_w, own.images, width, bytes)));
  own.sums = product(own.rows, own.tile_w, own.images, several_chains ? slices : 1, width);
  const int64_t tiles =
      product(ceil_div(max_of(1, z.n), own.images), z.groups, ceil_div(max_of(1, vertical.longest_count()), own.tile_h),
              ceil_div(max_of(1, horizontal.longest_count()), own.tile_w));
  own.parts_m = share && tiles < enough ? min_of(slices, ceil_div(enough, tiles)) : 1;
  plan->tasks = product(tiles, own.parts_m);
  count_memory(z.dtype, plan, [&, &z = z, &pass = pass](auto number, Carver& workspace, Carver& scratch) {
    broadcast_workspace<decltype(number)>(z, pass, own, workspace);
    broadcast_scratch<decltype(number)>(own, scratch);
  });
}
void prepare_usual_tile(const PlanInput& input, Plan* plan) { prepare_with(usual_tile(input), input, plan); }

}  // namespace

// Which tile is the fastest follows from N, whether the algorithm declines may not: that is asked of the usual tile.
void prepare_broadcast(const PlanInput& input, Plan* plan) {
  prepare_with(fastest_tile(input), input, plan);
  if (plan->scratch_bytes > kScratchLimit) prepare_usual_tile(input, plan);
}

const char* broadcast_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  if (pass == Pass::WeightGrad) return "it is for forward and input_grad";
  if (z.dtype != DType::Float32 && z.dtype != DType::Float64) return "it is for float32 and float64";
  if (z.r > kPanelProducts / z.s) return "the kernel has more than 192 taps";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  return memory_declines(input, prepare_usual_tile, "the smallest tile exceeds 16 MiB of scratch for each thread");
}

// Bytes of weights: that stay in the second level of cache; with stride, where the other algorithms are further from
// the processor's peak; the same where the gradient is scattered into short rows. They choose the algorithm, and with
// it the order of the sums: they follow from no cache.
constexpr int64_t kMostWeights = 1 << 20, kMostStrided = 16 << 20, kMostScattered = 4 << 20;
constexpr int64_t kLongRow = 48;

const char* broadcast_yields(const PlanInput& input) {
  const auto& [z, pass, machine, strides] = input;
  const bool inverse = pass == Pass::InputGrad;
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  const int64_t rows_m = result_channels(z, pass);
  if (z.groups > 1) return "it is for a single group";
  if (z.r * z.s == 1) return "a kernel of 1 x 1 does not repay packing the source";
  if (4 * rows_m < 3 * round_up(rows_m, lanes))
    return "the channels of the result leave more than a quarter of their vectors idle";
  const bool strided = z.stride_h > 1 || z.stride_w > 1, scattered = inverse && !z.channels_last;
  const int64_t most = !strided ? kMostWeights : scattered ? kMostScattered : kMostStrided;
  if (product(z.weight_elements(), accumulator_bytes(z.dtype)) > most)
    return "the weights are too many to be read for every tile";
  // Measured against the direct algorithm, whose vectors then lie within rows as they are in memory.
  if (!z.channels_last && horizontal_axis(z, pass).longest_count() >= kLongRow && rows_m > kFewChannels)
    return "the rows of the result are long and its channels many";
  return nullptr;
}

void describe_broadcast(const PlanInput&, const Plan& plan, Facts* facts) {
  const BroadcastPlan& own = plan.own<BroadcastPlan>();
  add_facts(facts, {{"lanes", "channels"},
                    {"channels", own.weights.panel_channels},
                    {"rows", own.tile_h},
                    {"columns", own.tile_w},
                    {"images", own.images},
                    {"parts of channels", own.parts_m}});
}

}  // namespace conv_ext
