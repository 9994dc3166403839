// The transforms of blocks of tiles, and the two orders of forward and input_grad; the algorithm is told in winograd.h.
#pragma once

#include "layout.h"
#include "../base/lanes.h"
#include "../base/roles.h"
#include "../reference/reference.h"
#include "product.h"
#include "toom_cook.h"

namespace conv_ext {

// A tile's error is that of all its sums, which an output that reads hardly anything but padding cannot hide: fewer
// products than these are summed directly. Beside 16 of them the largest error was 15 rounding units of the products'
// size, beside 1 (11 x 11, one channel, padding 10) 1,465, and without any the result has to be the bias alone.
constexpr int64_t kFewTerms = 24;

// A block of tiles: of images [n0, n0 + images), tile rows from ty on, tile columns from tx on.
struct TileBlock {
  int64_t n0, images, ty, tx, height, width;
  int64_t rows() const { return images * height * width; }
};

template <class T, class A, int M, int R>
struct Winograd {
  typedef ToomCook<M, R> Matrices;
  static constexpr int E = Matrices::T, L = kLanes<A>;
  typedef Expand<typename Matrices::B, E, A> SourceTransform;
  typedef Expand<typename Matrices::G, E, A> WeightTransform;
  typedef Expand<typename Matrices::A, E, A> GradTransform;
  typedef Contract<typename Matrices::A, E, A> ResultTransform;
  typedef Contract<typename Matrices::G, E, A> WeightGradTransform;

  const ConvProblem& z;
  const Plan& plan;
  WinogradSizes size;
  Axis vertical, horizontal;  // of the pass, taken for a gather with stride 1
  const Buffers& buffers;
  View<T> source, result, weight;  // weight seen as (channels of a group's result, of its source, R, S)
  int64_t weight_group;            // elements between the weights of two groups
  int64_t group_m, group_channels;
  bool rotated;  // input_grad: the kernel turned by 180 degrees
  const WinogradPlan& own = plan.own<WinogradPlan>();
  const Finish<T, A> finish_sums{z, buffers}, finish_none{};

  Pass pass() const { return rotated ? Pass::InputGrad : Pass::Forward; }
  int64_t taps() const { return z.r * z.s; }
  int64_t pieces_s() const { return ceil_div(z.s, R); }
  // Source position that output 0 reads through its first tap.
  int64_t origin_h() const { return rotated ? z.pad_top - (z.r - 1) : -z.pad_top; }
  int64_t origin_w() const { return rotated ? z.pad_left - (z.s - 1) : -z.pad_left; }
  // The place in memory of tap t of the unrotated gather.
  int64_t tap_offset(int64_t t) const {
    const int64_t tap = rotated ? taps() - 1 - t : t;
    return tap / z.s * weight.row + tap % z.s * weight.column;
  }

  TileBlock block_at(int64_t index) const {
    const int64_t across = ceil_div(size.tiles_w, own.tile_w), down = ceil_div(size.tiles_h, own.tile_h);
    TileBlock b;
    b.tx = index % across * own.tile_w;
    b.ty = index / across % down * own.tile_h;
    b.n0 = index / across / down * own.images;
    b.width = min_of(own.tile_w, size.tiles_w - b.tx);
    b.height = min_of(own.tile_h, size.tiles_h - b.ty);
    b.images = min_of(own.images, z.n - b.n0);
    return b;
  }

  // values[points][tile][(lane block, piece, lane)] of the group's channels in lane blocks [first, last).
  void transform_source(const TileBlock& b, int64_t group, int64_t first, int64_t last, A* values, A* window) const {
    const int64_t rows = b.height * M + (z.r + R - 1) / R * R - 1, columns = b.width * M + pieces_s() * R - 1;
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = block * L, channels = min_of(L, group_channels - c);
      A* to = values + (block - first) * size.pieces * L;
      for (int64_t i = 0; i < b.images; ++i) {
        View<T> image = source;
        image.data += (b.n0 + i) * source.n + (group * group_channels + c) * source.channel;
        window_to_lanes(window, image, vertical.source, horizontal.source, b.ty * M + origin_h(), b.tx * M + origin_w(),
                        rows, columns, channels);
        for (int64_t tile = 0; tile < b.height * b.width; ++tile, to += size.value_pitch) {
          const A* at = window + (tile / b.width * M * columns + tile % b.width * M) * L;
          for (int64_t piece = 0; piece < size.pieces; ++piece) {
            A* const place = to + piece * L;
            const int64_t slice = size.value_slice;
            transform_both_axes<SourceTransform>(
                at + (piece / pieces_s() * R * columns + piece % pieces_s() * R) * L, columns * L, L,
                [=](int u, int v, Vec<A> value) { store(place + (u * E + v) * slice, value); });
          }
        }
      }
    }
  }

  // local[tap][channel][lane] of kLanes rows of gemm_m from m on, and kLanes channels from c on; what is not there is
  // zero.
  void gather_weights(int64_t group, int64_t m, int64_t c, A* local) const {
    const int64_t lanes = min_of(L, group_m - m), channels = min_of(L, group_channels - c), tap_count = taps();
    const T* const from = weight.data + group * weight_group + m * weight.n + c * weight.channel;
    const bool joined = weight.column == 1 && weight.row == z.s;
    const auto place = [&](int64_t tap, int64_t channel) {
      return local + ((rotated ? tap_count - 1 - tap : tap) * L + channel) * L;
    };
    Vec<A> square[L];
    if (joined && weight.channel == tap_count) {
      // One run of channels and taps for each lane.
      for (int64_t e = 0; e < channels * tap_count; e += L) {
        const int64_t count = min_of(L, channels * tap_count - e);
        load_square<A>(square, from + e, weight.n, lanes, count);
        for (int64_t j = 0; j < count; ++j) store(place((e + j) % tap_count, (e + j) / tap_count), square[j]);
      }
    } else if (joined) {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t tap = 0; tap < tap_count; tap += L) {
          const int64_t count = min_of(L, tap_count - tap);
          load_square<A>(square, from + i * weight.channel + tap, weight.n, lanes, count);
          for (int64_t j = 0; j < count; ++j) store(place(tap + j, i), square[j]);
        }
    } else {
      // Lanes or channels may be neighbours (channels_last): then these are copies or squares turned round.
      A turned[L * L];
      for (int64_t tap = 0; tap < tap_count; ++tap) {
        const T* const at = from + tap / z.s * weight.row + tap % z.s * weight.column;
        positions_to_lanes(turned, at, weight.n, weight.channel, lanes, channels);
        for (int64_t i = 0; i < channels; ++i) store(place(tap, i), load(turned + i * L));
      }
    }
    for (int64_t tap = 0; tap < tap_count; ++tap)
      for (int64_t i = channels; i < L; ++i) store(local + (tap * L + i) * L, Vec<A>{});
  }

  // weights[points][column - first][panel lane] of one panel, for the columns of lane blocks [first, last).
  void transform_weights(int64_t group, int64_t panel, int64_t first, int64_t last, A* weights, A* local) const {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t m = panel * size.panel + half * L;
      if (m >= group_m) break;
      for (int64_t block = first; block < last; ++block) {
        gather_weights(group, m, block * L, local);
        for (int64_t piece = 0; piece < size.pieces; ++piece) {
          const int64_t r0 = piece / pieces_s() * R, s0 = piece % pieces_s() * R;
          A* to = weights + ((block - first) * size.pieces + piece) * L * size.panel + half * L;
          for (int64_t c = 0; c < L; ++c, to += size.panel) {
            A taps_of[R * R * L];
            for (int r = 0; r < R; ++r)
              for (int s = 0; s < R; ++s)
                store(taps_of + (r * R + s) * L,
                      r0 + r < z.r && s0 + s < z.s ? load(local + (((r0 + r) * z.s + s0 + s) * L + c) * L) : Vec<A>{});
            const int64_t slice = size.weight_slice;
            transform_both_axes<WeightTransform>(
                taps_of, R * L, L, [=](int u, int v, Vec<A> value) { store(to + (u * E + v) * slice, value); });
          }
        }
      }
    }
  }

  // The taps of an axis that lead an output to the source.
  Range rows_inside(int64_t y) const { return range_inside(y + origin_h(), 1, z.r, vertical.source); }
  Range columns_inside(int64_t x) const { return range_inside(x + origin_w(), 1, z.s, horizontal.source); }
  // The products of an output that are not of padding.
  int64_t terms_of(int64_t y, int64_t x) const {
    return rows_inside(y).count() * columns_inside(x).count() * group_channels;
  }
  // Whether an output of a block of rows and columns has few: fewest are those at its ends.
  bool few_terms(int64_t row0, int64_t rows, int64_t column0, int64_t columns) const {
    if (rows < 1 || columns < 1) return false;
    const int64_t down = min_of(rows_inside(row0).count(), rows_inside(row0 + rows - 1).count());
    const int64_t across = min_of(columns_inside(column0).count(), columns_inside(column0 + columns - 1).count());
    return down * across * group_channels < kFewTerms;
  }

  // Outputs of kLanes rows of gemm_m from m on, out of sums[points][tile][lane].
  void transform_result(const TileBlock& b, int64_t group, int64_t m, const A* sums, A* window) const {
    const int64_t channels = min_of(L, group_m - m), first = group * group_m + m;
    const int64_t row0 = b.ty * M, column0 = b.tx * M;
    const int64_t rows = min_of(b.height * M, vertical.output - row0);
    const int64_t columns = min_of(b.width * M, horizontal.output - column0), pitch = b.width * M;
    A shift[L];
    pack_bias<T>(shift, buffers, first, channels, L);
    const Vec<A> added = load(shift);
    const bool few = few_terms(row0, rows, column0, columns);
    for (int64_t i = 0; i < b.images; ++i) {
      Vec<A> finite{};
      for (int64_t tile = 0; tile < b.height * b.width; ++tile, sums += size.sum_pitch) {
        A* const to = window + (tile / b.width * M * pitch + tile % b.width * M) * L;
        transform_both_axes<ResultTransform>(sums, E * size.sum_slice, size.sum_slice, [&](int u, int v, Vec<A> value) {
          value += added;
          finite += value * A(0);  // NaN from the first value on that is not finite
          store(to + (u * pitch + v) * L, value);
        });
      }
      bool all_finite = true;
      for (int l = 0; l < L; ++l) all_finite &= finite[l] == finite[l];
      const bool repeat = few || !all_finite;
      T* const image = result.data + (b.n0 + i) * result.n + first * result.channel;
      // What is to be repeated must still be seen: -Inf would be 0.
      const Finish<T, A>& finish = repeat ? finish_none : finish_sums;
      for (int64_t row = 0; row < rows; ++row)
        lanes_to_positions(window + row * pitch * L, image + (row0 + row) * result.row + column0 * result.column,
                           result.channel, result.column, channels, columns, finish);
      const ResultBox box{b.n0 + i, first, channels, row0, rows, column0, columns};
      if (repeat) {
        repeat_outputs(b.n0 + i, group, m, channels, row0, rows, column0, columns, all_finite);
        if (buffers.epilogue.any()) finish_box<T, A>(buffers, 1, box);
      } else {
        finish_results(finish_sums, true, buffers, 1, box);
      }
    }
  }

  // Those of few terms, which are a few at the ends, and if not all are finite, those that are not.
  __attribute__((noinline)) void repeat_outputs(int64_t n, int64_t group, int64_t m, int64_t channels, int64_t row0,
                                                int64_t rows, int64_t column0, int64_t columns, bool finite) const {
    for (int64_t y = row0; y < row0 + rows; ++y)
      for (int64_t x = column0; x < column0 + columns; ++x) {
        const bool few = terms_of(y, x) < kFewTerms;
        for (int64_t l = 0; l < channels && (few || !finite); ++l) {
          const int64_t k = group * group_m + m + l;
          T* const to = result.data + n * result.n + k * result.channel + y * result.row + x * result.column;
          A value = read<A>(to);
          if (value - value != A(0))
            value = A(sum_again<T>(z, pass(), buffers, n, k, y, x));
          else if (few)
            value = A(direct_sum(n, group, m + l, y, x) + bias_at<T, double>(buffers, k));
          write<T>(to, value);
        }
      }
  }
  // Few terms are found among the taps; what is finite does without the padding's zeros.
  double direct_sum(int64_t n, int64_t group, int64_t m, int64_t y, int64_t x) const {
    const Range down = rows_inside(y), across = columns_inside(x);
    double sum = 0;
    for (int64_t c = 0; c < group_channels; ++c) {
      const T* const from = source.data + n * source.n + (group * group_channels + c) * source.channel +
                            (y + origin_h()) * source.row + (x + origin_w()) * source.column;
      const T* const weights = weight.data + group * weight_group + m * weight.n + c * weight.channel;
      for (int64_t r = down.first; r < down.last; ++r)
        for (int64_t s = across.first; s < across.last; ++s)
          sum +=
              read<double>(from + r * source.row + s * source.column) * read<double>(weights + tap_offset(r * z.s + s));
    }
    return sum;
  }

  int64_t lane_blocks() const { return ceil_div(group_channels, L); }
  int64_t panel_vectors(int64_t panel) const { return min_of(2, ceil_div(group_m - panel * size.panel, L)); }

  // The weights first, then every block of tiles by itself.
  void run_weights_first(const Executor& executor, const WinogradWorkspace<A>& memory) const {
    CONV_EXT_RUNS("weights");
    Carver kept(buffers.kept);
    A* const weights = own.kept ? transformed_weights<A>(z, size, kept) : memory.weights;
    const auto weights_of = [&](int64_t group, int64_t panel) {
      return weights + group * size.points * size.weight_slice + panel * size.columns * size.panel;
    };
    const int64_t step = max_of(1, 64 / L), chunks = ceil_div(lane_blocks(), step);
    const bool there = buffers.packed == PackedWeights::Kept;
    parallel_for(executor, there ? 0 : z.groups * size.panels * chunks, taps() * L * L * int64_t(sizeof(A)),
                 [&](int64_t index, void* scratch) {
                   const int64_t first = index % chunks * step, panel = index / chunks % size.panels;
                   const int64_t group = index / chunks / size.panels;
                   transform_weights(group, panel, first, min_of(first + step, lane_blocks()),
                                     weights_of(group, panel) + first * size.pieces * L * size.panel,
                                     static_cast<A*>(scratch));
                 });
    if (buffers.packed == PackedWeights::Make) return;
    const int64_t task_panels = own.task_m / size.panel, parts = ceil_div(size.panels, task_panels);
    parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
      const int64_t first = index % parts * task_panels, group = index / parts % z.groups;
      const TileBlock block = block_at(index / parts / z.groups);
      Carver local(scratch);
      const WinogradScratch<A> s = winograd_scratch<A>(z, pass(), own, size, local);
      A *const values = s.values, *const sums = s.sums, *const window = s.window;
      transform_source(block, group, 0, lane_blocks(), values, window);
      const int64_t last = min_of(first + task_panels, size.panels);
      for (int64_t p = 0; p < size.points; ++p)
        for (int64_t panel = first; panel < last; ++panel)
          product<A, false>({values + p * size.value_slice, size.value_pitch, 1,
                             weights_of(group, panel) + p * size.weight_slice, size.panel, size.columns,
                             sums + p * size.sum_slice + (panel - first) * size.panel, size.sum_pitch, false},
                            block.rows(), panel_vectors(panel));
      for (int64_t m = first * size.panel; m < min_of(last * size.panel, group_m); m += L)
        transform_result(block, group, m, sums + m - first * size.panel, window);
    });
  }

  // The source first, then every panel of the weights by itself.
  void run_source_first(const Executor& executor, const WinogradWorkspace<A>& memory) const {
    const int64_t each = size.points * size.value_slice;  // of a chunk of a block
    CONV_EXT_RUNS("source");
    A* const values = memory.values;
    parallel_for(executor, z.groups * size.blocks * lane_blocks(), size.window_elements * int64_t(sizeof(A)),
                 [&](int64_t index, void* scratch) {
                   const int64_t lane_block = index % lane_blocks(), place = index / lane_blocks();
                   transform_source(block_at(place % size.blocks), place / size.blocks, lane_block, lane_block + 1,
                                    values + (place * size.chunks + lane_block / size.chunk_blocks) * each +
                                        lane_block % size.chunk_blocks * size.pieces * L,
                                    static_cast<A*>(scratch));
                 });
    parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
      const int64_t panel = index % size.panels, group = index / size.panels, vectors = panel_vectors(panel);
      Carver local(scratch);
      const WinogradScratch<A> s = winograd_scratch<A>(z, pass(), own, size, local);
      A *const weights = s.weights, *const sums = s.sums, *const window = s.window;
      for (int64_t b = 0; b < size.blocks; ++b) {
        const TileBlock block = block_at(b);
        for (int64_t chunk = 0; chunk < size.chunks; ++chunk) {
          const int64_t first = chunk * size.chunk_blocks, last = min_of(first + size.chunk_blocks, lane_blocks());
          A* const of_chunk = weights + chunk * size.points * size.weight_slice;
          // While they are in the cache, the first block uses them.
          if (b == 0) transform_weights(group, panel, first, last, of_chunk, window);
          const A* at = values + ((group * size.blocks + b) * size.chunks + chunk) * each;
          for (int64_t p = 0; p < size.points; ++p)
            product<A, false>(
                {at + p * size.value_slice, size.value_pitch, 1, of_chunk + p * size.weight_slice, size.panel,
                 (last - first) * size.pieces * L, sums + p * size.sum_slice, size.sum_pitch, chunk > 0},
                block.rows(), vectors);
        }
        for (int64_t v = 0; v < vectors; ++v)
          transform_result(block, group, panel * size.panel + v * L, sums + v * L, window);
      }
    });
  }
};

}  // namespace conv_ext
