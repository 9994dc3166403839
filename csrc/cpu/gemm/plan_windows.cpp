// Plans of products over a packed source: register tiles that leave no lanes idle, tiles of the source that fit the
// caches.
#include <algorithm>
#include <cmath>

#include "plan_weights.h"
#include "windows_layout.h"

namespace conv_ext {

// The weight_grad of direct is that of panels.
const char* panels_declines(const PlanInput& input);
void prepare_panels(const PlanInput& input, Plan* plan);
void describe_panels(const PlanInput& input, const Plan& plan, Facts* facts);

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

constexpr int64_t kFewColumns = 64;       // outputs up to which a row's ends count, and below which none is cut
constexpr int64_t kMostImages = 128;      // side by side, where lanes are positions
constexpr double kInterleaveCost = 1.15;  // packing images side by side is slower than copying rows
constexpr int64_t kRepayPacking = 128;    // channels of the result that repay packing the source
constexpr double kNarrowTile = 0.5;       // vectors that a run of lanes loses, its last register tile being narrow

constexpr int64_t kManyTaps = 1024;  // beyond which images are not tried side by side
constexpr int64_t kFewPieces = 8;    // of a row, that an estimate looks at one by one

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
      cost += double(taps_of(horizontal, first, last)) *
              tile_cycles(rates, double(last - first), double(vectors), from_second_level);
    }
  } else {
    for (int64_t i = 0; i < width; ++i)
      cost += double(taps_of(horizontal, i, i + 1)) *
              tile_cycles(rates, double(images), double(vectors), from_second_level) / double(images);
  }
  return cost * double(slices) * each / double(vectors);
}

// Which register tile: vectors of channels beside neighbouring columns, or beside images side by side. The one that is
// estimated to be the fastest is taken; where rows are so long that their ends do not count, the usual one.
struct RegisterTile {
  int64_t vectors, images;
};
RegisterTile usual_tile(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const int64_t group_m = max_of(1, result_channels(z, pass));
  const int64_t vectors = ceil_div(group_m, machine.vector_bytes / accumulator_bytes(z.dtype));
  // Sums that are written where they belong are written in long runs: VGG's first layer takes 3.9 ms with four vectors,
  // 5.8 with two.
  const int64_t most = result_channels_are_neighbours(z, pass, strides) ? panel_vectors(machine) : 2;
  return {min_of(vectors, most), 1};
}
RegisterTile fastest_tile(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
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
  const auto try_tile = [&, &z = z, &machine = machine](int64_t vectors, bool beside) {
    const int64_t longest = window_outputs(machine, vectors);
    const int64_t images = beside ? z.n / max_of(1, ceil_div(z.n, longest)) : 1;
    if (images < 1) return;
    const bool from_second_level =
        min_of(product(channels, taps), kPanelProducts) * vectors * machine.vector_bytes > weight_bytes(machine);
    double cost = double(rows_of_taps) *
                  row_cost(machine.rates, horizontal, longest, all_vectors, vectors, images, from_second_level);
    if (images > 1) cost += kPackedBesideImages * double(vertical.source) * double(horizontal.source);
    if (best != 0 && cost > best) return;
    best = cost;
    fastest = {vectors, images};
  };
  for (int64_t vectors = 1; vectors <= min_of(kWindowV, all_vectors); ++vectors) {
    try_tile(vectors, false);
    if (!keeps) try_tile(vectors, true);
  }
  // The panels of weights that are kept follow from one image.
  if (keeps && best > 0) try_tile(fastest.vectors, true);
  return best > 0 ? fastest : usual;
}

// Small groups: several to a task, so that neighbouring channels are read together.
int64_t groups_together(const ConvProblem& z) {
  const int64_t channels = max_of(1, max_of(z.group_c(), z.group_k()) * parts_of(z.dtype));
  return max_of(1, min_of(z.groups, kChannelsTogether / channels));
}

// Which vectors, and beside what.
struct Lanes {
  bool along_channels;
  int64_t widest, images;  // vectors of channels of a panel, or channels beside vectors of positions
  bool flat;
};

// Rows are cut into parts half as many again until one row is left, then columns into twice as many: this makes enough
// steps for the longest of both.
constexpr int kMostCuts = 128;

// Tiles of outputs: enough of them, and so small that the source of one and the sums that are held together fit.
// `panels`: of weights, whose sums a task holds.
void cut_tiles(const PlanInput& input, int64_t enough, bool keeps_sums, int64_t panels, WindowsPlan* own) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes = accumulator_bytes(z.dtype), lanes = machine.vector_bytes / bytes;
  const int64_t image_blocks = ceil_div(max_of(1, z.n), own->images);
  const int64_t count_h = max_of(1, vertical.longest_count()), count_w = max_of(1, horizontal.longest_count());
  const int64_t width = own->weights.panel_channels, panels_held = keeps_sums ? panels : 1;
  int64_t cut_h = min_of(count_h, max_of(1, ceil_div(enough, product(z.groups, image_blocks)))), cut_w = 1;
  const int64_t most_sums = keeps_sums ? kept_sum_bytes(machine) : sum_bytes(machine);
  const auto fits = [&] {
    own->tile_h = ceil_div(count_h, cut_h);
    own->tile_w = ceil_div(count_w, cut_w);
    const Shape shape = shape_of(vertical, horizontal, own->tile_h, own->tile_w, own->images);
    own->channel_pitch = shape.channel_pitch;
    const auto sums_of = [&](int64_t rows) {
      return product(RowsOfSums::of(*own, rows, own->tile_w, shape.pitch, lanes).all, panels_held, width);
    };
    own->rows = keeps_sums ? own->tile_h : max_of(1, min_of(own->tile_h, most_sums / product(sums_of(1), bytes)));
    own->sums = sums_of(own->rows);
    const int64_t outputs = RowsOfSums::of(*own, own->flat ? own->rows : 1, own->tile_w, shape.pitch, lanes).all;
    own->runs = own->weights.along_channels ? outputs : ceil_div(outputs, lanes);
    const int64_t row_bytes = product(own->runs, int64_t(sizeof(OutputRun))) + product(sums_of(1) / panels_held, bytes);
    return product(own->task_groups, own->channel_pitch, own->tile_c, bytes) <= source_bytes(machine) &&
           row_bytes <= kScratchLimit / 4 * 3 && (!keeps_sums || product(own->sums, bytes) <= most_sums);
  };
  for (int step = 0; step < kMostCuts && !fits(); ++step) {
    CONV_EXT_PLAN_STEP();
    if (own->tile_h > 1) {
      cut_h = min_of(count_h, cut_h + max_of(1, cut_h / 2));
    } else if (product(own->tile_w, own->images) > kFewColumns && own->tile_w > 1) {
      cut_w *= 2;
    } else {
      return;
    }
  }
}

// Lanes are positions: whether those of a row are whole vectors, and neighbours where the result lies.
bool writes_whole_vectors(const PlanInput& input, const WindowsPlan& own) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const Axis horizontal = horizontal_axis(z, pass);
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  return element_bytes(z.dtype) == accumulator_bytes(z.dtype) && parts_of(z.dtype) == 1 && own.images == 1 &&
         !own.flat && horizontal.output_step() == 1 && result_of(pass, strides)[3] == 1 && own.tile_w % lanes == 0 &&
         horizontal.output % lanes == 0;
}

void prepare_with(const Lanes& tile, const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  WindowsPlan& own = plan->own<WindowsPlan>();
  own = {};
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes = accumulator_bytes(z.dtype), lanes = machine.vector_bytes / bytes, taps = z.r * z.s;
  const int64_t channels = source_channels(z, pass), parts = parts_of(z.dtype);
  own.weights = weight_panels(z, pass, strides, lanes, tile.along_channels, 1, tile.widest, ChainsOf::ChannelsAlone);
  own.weights.kept = keeps;
  own.products = max_of(min_of(product(channels, taps, parts), kMostProducts), taps * parts);
  own.images = tile.images;
  own.flat = tile.flat;
  const int64_t slices = own.weights.panels, width = own.weights.panel_channels;
  const bool several_chains = own.weights.blocks(taps).count() > 1;
  own.task_groups = several_chains || tile.along_channels ? 1 : groups_together(z);
  const int64_t fewest = fewest_taps(vertical) * fewest_taps(horizontal);
  own.tile_c = product(ceil_div(max_of(1, channels), own.weights.blocks(fewest).channels), parts);
  const bool share = z.flops() >= kWorthSharing;
  const int64_t enough = share ? kEnoughTasks / 2 : 1;
  // The sums of a few columns and all panels of a task fit. Where lanes are positions a small map is not cut, but the
  // panels are shared out, as long as they repay packing the source once more.
  int64_t least_parts = 1;
  if (several_chains) {
    const int64_t few_sums = product(kFewColumns, own.weights.padded_m, bytes), most_sums = kept_sum_bytes(machine);
    least_parts = min_of(slices, ceil_div(few_sums, most_sums));
    if (!tile.along_channels) {
      cut_tiles(input, enough, true, 1, &own);
      const int64_t all_sums = product(own.sums / width, own.weights.padded_m, bytes);
      least_parts = max_of(least_parts, min_of(ceil_div(all_sums, most_sums), own.weights.padded_m / kRepayPacking));
    }
  }
  cut_tiles(input, enough, several_chains, ceil_div(slices, least_parts), &own);
  own.in_place = tile.along_channels ? result_channels_are_neighbours(z, pass, strides)
                                     : !several_chains && writes_whole_vectors(input, own);
  own.clears = several_chains;
  // Nothing is held: each panel is done with all rows, for as many planes of the result as it has channels.
  if (!tile.along_channels && own.in_place) own.rows = own.tile_h, own.sums = 0;
  const int64_t tiles = product(ceil_div(max_of(1, z.n), own.images), ceil_div(z.groups, own.task_groups),
                                ceil_div(max_of(1, vertical.longest_count()), own.tile_h),
                                ceil_div(max_of(1, horizontal.longest_count()), own.tile_w));
  own.parts_m = max_of(least_parts, share && tiles < enough ? min_of(slices, ceil_div(enough, tiles)) : 1);
  plan->tasks = product(tiles, own.parts_m);
  count_memory(z.dtype, plan, [&, &z = z, &pass = pass](auto number, Carver& workspace, Carver& scratch) {
    windows_workspace<decltype(number)>(z, pass, own, workspace);
    windows_scratch<decltype(number)>(own, scratch);
  });
  count_kept(z, own.weights, plan);
}

// ---- lanes are channels

void prepare_with(const RegisterTile& tile, const PlanInput& input, Plan* plan) {
  prepare_with(Lanes{true, tile.vectors, tile.images, false}, input, plan);
}
void prepare_usual_tile(const PlanInput& input, Plan* plan) { prepare_with(usual_tile(input), input, plan); }

// ---- lanes are positions

// Vectors per output of a plan, where every run of lanes costs some vectors beside its own.
double lane_vectors(const WindowsPlan& own, int64_t pitch, int64_t lanes) {
  const int64_t rows = own.rows, runs = own.flat ? 1 : rows;
  const int64_t all = RowsOfSums::of(own, rows, own.tile_w, pitch, lanes).all;
  return (double(all) / double(lanes) + double(runs) * kNarrowTile) /
         (double(rows) * double(own.tile_w) * double(own.images));
}

void prepare_lanes_of_one_image(const PlanInput& input, Plan* plan) {
  prepare_with(Lanes{false, window_channels(input.machine), 1, false}, input, plan);
}

}  // namespace

// Images side by side fill vectors that one small image cannot. Whether the algorithm declines must not follow from N:
// that is asked of a single image.
void prepare_direct(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (pass == Pass::WeightGrad) return prepare_panels(input, plan);
  const Axis horizontal = horizontal_axis(z, pass);
  const int64_t lanes = machine.vector_bytes / accumulator_bytes(z.dtype);
  const bool share = z.flops() >= kWorthSharing;
  Lanes best{false, window_channels(machine), 1, false};
  double best_cost = 0;
  for (int64_t images = 1; images <= kMostImages; images *= 2) {
    // Enough blocks of images are kept for several threads.
    if (images > 1 && (images >= 2 * z.n || (share && images * 4 > z.n))) break;
    if (images > 1 && z.r * z.s > kManyTaps) break;  // each tile that is planned is a walk over them
    for (const bool flat : {true, false}) {
      const Lanes tile{false, window_channels(machine), images, flat};
      prepare_with(tile, input, plan);
      const WindowsPlan& own = plan->own<WindowsPlan>();
      if (plan->scratch_bytes > kScratchLimit) continue;
      const int64_t pitch = packed_extent(horizontal, own.tile_w).longest;
      const double cost = lane_vectors(own, pitch, lanes) * (images > 1 ? kInterleaveCost : 1.0);
      if (best_cost != 0 && cost >= best_cost) continue;
      best = tile;
      best_cost = cost;
    }
    if (best_cost * double(lanes) < 1.1) break;  // the vectors are full already
  }
  prepare_with(best, input, plan);
}

const char* direct_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (pass == Pass::WeightGrad) return panels_declines(input);
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (z.r > (1 << 20) / z.s) return "the kernel has more than 2^20 taps";
  return memory_declines(input, prepare_lanes_of_one_image,
                         "the smallest packed tile exceeds 16 MiB of scratch for each thread");
}

Work direct_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (pass == Pass::WeightGrad) return kNever;  // that of panels
  const LoopSizes s(z, pass, machine);
  const double lanes = double(s.lanes), vectors = double(window_vectors(machine, window_channels(machine)));
  // Lanes run across rows, whose ends are thrown away, or each row fills its vectors: what takes fewer of them.
  const double pitch = s.row + std::floor(double(z.s - 1) * double(z.dilation_w) / double(z.stride_w));
  const double held = double(sum_bytes(machine) / (window_channels(machine) * accumulator_bytes(z.dtype)));
  const double rows = std::max(1.0, std::min(s.rows, std::floor(held / pitch)));
  const double across = (std::ceil(((rows - 1) * pitch + s.row) / lanes) + kNarrowTile) / (rows * s.row);
  const double within = (std::ceil(s.row / lanes) + kNarrowTile) / s.row;
  const double panels = std::ceil(s.m / double(window_channels(machine)));
  const double tiles = s.results * std::min(across, within) / vectors * panels * s.groups, steps = tiles * s.taps;
  const bool whole = s.horizontal.output % s.lanes == 0 && s.horizontal.longest_count() % s.lanes == 0;
  return {Nest::WindowsPositions,
          {steps * s.c * tile_cycles(machine.rates, s.m / panels, vectors, false), s.source_v, s.result_v,
           whole && !s.phases ? 0 : s.result_v, s.weight_v, steps,
           tiles * std::ceil(s.c * s.taps / double(kPanelProducts)), s.phases ? s.result_v : 0, 0, 1 / kImagesOfCall}};
}

void describe_direct(const PlanInput& input, const Plan& plan, Facts* facts) {
  if (input.pass == Pass::WeightGrad) return describe_panels(input, plan, facts);
  const WindowsPlan& own = plan.own<WindowsPlan>();
  add_facts(facts, {{"lanes", own.flat ? "positions across rows" : "positions within rows"},
                    {"rows", own.tile_h},
                    {"columns", own.tile_w},
                    {"images", own.images},
                    {"channels", own.weights.panel_channels},
                    {"parts of channels", own.parts_m}});
}

// Which tile is the fastest follows from N, whether the algorithm declines may not: that is asked of the usual tile.
void prepare_broadcast(const PlanInput& input, Plan* plan) {
  prepare_with(fastest_tile(input), input, plan);
  if (plan->scratch_bytes > kScratchLimit) prepare_usual_tile(input, plan);
}

const char* broadcast_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (pass == Pass::WeightGrad) return "it is for forward and input_grad";
  if (parts_of(z.dtype) > 1) return "it is for real numbers";
  if (z.r > kPanelProducts / z.s) return "the kernel has more than 192 taps";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  return memory_declines(input, prepare_usual_tile, "the smallest tile exceeds 16 MiB of scratch for each thread");
}

Work broadcast_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (pass == Pass::WeightGrad || parts_of(z.dtype) > 1) return kNever;
  const LoopSizes s(z, pass, machine);
  const int64_t columns = s.horizontal.longest_count(), all_vectors = int64_t(s.vectors(s.m));
  const bool few = columns <= kFewColumns;
  const double row_taps = double(s.vertical.output) * s.down.taps * s.down.inside;
  const double taps_of_row = s.across.taps * double(s.horizontal.output);
  // The register tile as it would be chosen, but for N: of few columns any, and images side by side where that is
  // faster.
  double best = 0, width = 1, slices = 1;
  const int64_t usual = usual_tile(input).vectors;
  for (int64_t vectors = few ? 1 : usual; vectors <= (few ? min_of(kWindowV, all_vectors) : usual); ++vectors) {
    const int64_t longest = window_outputs(machine, vectors), pieces = ceil_div(columns, longest);
    const bool from_second_level =
        std::min(s.c * (double(z.r) * double(z.s)), double(kPanelProducts)) * double(vectors * machine.vector_bytes) >
        double(weight_bytes(machine));
    const auto cycles = [&](double outputs) {
      return tile_cycles(machine.rates, outputs, double(vectors), from_second_level) * double(all_vectors) /
             double(vectors);
    };
    double each = 0;
    if (pieces <= kFewPieces) {
      for (int64_t i = 0; i < pieces; ++i) {
        const Range part = part_of(columns, pieces, i);
        each += taps_met(s.horizontal, part.first, part.last) * cycles(double(part.count()));
      }
    } else {
      const double outputs = s.row / double(pieces);
      each = taps_of_row * s.across.inside / outputs * cycles(outputs);
    }
    if (best == 0 || each <= best) {
      best = each;
      width = s.row / double(pieces);
      slices = double(ceil_div(all_vectors, vectors));
    }
    const double beside = taps_of_row * s.across.inside * cycles(double(longest)) / double(longest) +
                          kPackedBesideImages * s.sources / std::max(1.0, row_taps);
    if (few && beside < best) {
      best = beside;
      width = double(longest);
      slices = double(ceil_div(all_vectors, vectors));
    }
  }
  const double tiles = s.results / width * slices * s.groups;
  const bool narrow = s.c <= 4;
  return {Nest::WindowsChannels,
          {row_taps * best * s.c * s.groups, narrow ? 0 : s.source_v, narrow ? s.source_v : 0, s.result_v, s.weight_v,
           tiles * s.taps, tiles, s.phases ? s.result_v : 0, 0, 1 / kImagesOfCall}};
}

void describe_broadcast(const PlanInput&, const Plan& plan, Facts* facts) {
  const WindowsPlan& own = plan.own<WindowsPlan>();
  add_facts(facts, {{"lanes", "channels"},
                    {"channels", own.weights.panel_channels},
                    {"rows", own.tile_h},
                    {"columns", own.tile_w},
                    {"images", own.images},
                    {"parts of channels", own.parts_m}});
}

}  // namespace conv_ext
