// The depthwise algorithm where lanes are channels (channels_last): rows of outputs from the first to the last, in each
// all the columns, for each block of columns all the channels. Start reading at run, at the end.
//
// Operands are read and written where they lie, except float16, which is copied into rows of float32, and back. These
// layers are bound by memory. What fits the last cache is done in the order that loads each vector least often, what
// does not in an order in which little lies between the rows that meet, and the next are fetched.
#pragma once

#include "channels_tile.h"
#include "padding.h"
#include "layout.h"
#include "../base/lanes.h"

namespace conv_ext {

// Bytes of operands and result beyond which they come from memory; the same where a row of results has several phases.
// Measured on two threads with a last cache of 32 MiB. Results are written through the caches at any size: past them,
// a layer and a pass that reads its result took 1.25 to 1.6 times as long together.
constexpr double kFarBytes = 18 << 20, kFarPhasesBytes = 14 << 20;
// Elements of a strip of columns whose rows stay in the first cache: of its columns and channels.
constexpr int64_t kStrip = 1792, kStripChannels = 256;
// weight_grad: the same in the second cache; channels of a task, whose sums stay in the first.
constexpr int64_t kDotStrip = 7168, kDotChannels = 512;
// forward, input_grad: tasks that a call is cut into, between rows.
constexpr int64_t kRunUnits = 32;

template <bool in_place, class T, class A>
struct ElementOf {
  typedef T type;
};
template <class T, class A>
struct ElementOf<false, T, A> {
  typedef A type;
};

template <class T, class A, Pass pass>
struct DepthwiseChannels {
  static constexpr int L = kLanes<A>;
  static constexpr bool input_grad = pass == Pass::InputGrad, weight_grad = pass == Pass::WeightGrad;
  // float16 is copied: to widen it takes too long to be done for every tap.
  static constexpr bool in_place = !is_same<T, float16>;
  typedef typename ElementOf<in_place, T, A>::type E;  // what the loops read and write
  typedef T Element;
  typedef A Sum;

  struct Scratch {
    const E** list;
    E *packed, *packed_result;
  };

  const ConvProblem& z;
  const Plan& plan;
  const DepthwisePlan& own;
  const Axis vertical, horizontal;
  const View<T> source, result, weight;  // weight_grad: `result` is the upstream gradient
  const bool relu, far;
  bool row_blocks;
  bool special = false;  // padding shows somewhere
  int64_t chunk, x_column, result_column;
  PhaseTaps* down = nullptr;  // (vertical phases)
  Across* across = nullptr;   // (horizontal phases)
  A *weights = nullptr, *biases = nullptr, *sums = nullptr;

  int64_t taps() const { return z.r * z.s; }
  int64_t pitch() const { return round_up(z.c, L); }

  DepthwiseChannels(const ConvProblem& problem, const Plan& p, const Buffers& b)
      : z(problem),
        plan(p),
        own(p.own<DepthwisePlan>()),
        vertical(vertical_axis(problem, pass)),
        horizontal(horizontal_axis(problem, pass)),
        source(view_of<T>(input_grad ? b.output : b.input, 1)),
        result(view_of<T>(input_grad ? b.input : b.output, 1)),
        weight(view_of<T>(b.weight, 1)),
        relu(b.relu),
        far(in_place && problem.bytes() > (horizontal.phases() > 1 ? kFarPhasesBytes : kFarBytes)) {
    chunk = !in_place ? own.tile_c : weight_grad ? min_of(pitch(), kDotChannels) : pitch();
    x_column = in_place ? source.column : chunk;
    result_column = in_place ? result.column : chunk;
    row_blocks = in_place && z.r == 3 && z.s == 3 && z.dilation_h == 1 && z.dilation_w == 1 &&
                 z.stride_h == z.stride_w && z.stride_h <= (input_grad ? 1 : 2);
    Carver memory(b.workspace);
    down = memory.take<PhaseTaps>(vertical.phases());
    across = memory.take<Across>(horizontal.phases());
    for (int64_t f = 0; f < vertical.phases(); ++f) down[f] = PhaseTaps::of(vertical, f);
    for (int64_t f = 0; f < horizontal.phases(); ++f) across[f] = across_of(f);
    if constexpr (weight_grad) {
      sums = memory.take<A>(own.splits * pitch() * taps());
    } else {
      weights = memory.take<A>(pitch() * taps());
      biases = memory.take<A>(pitch());
      for (int64_t c = 0; c < pitch(); ++c)
        biases[c] = b.bias && c < z.c ? read<A>(static_cast<const T*>(b.bias) + c * b.bias_stride) : A(0);
      pack_weights();
      special = !all_finite(weights, pitch() * taps());
      for (int64_t c = 0; c < z.c; ++c) special |= is_minus_zero(biases[c]);
    }
  }

  Across across_of(int64_t phase) const {
    Across a{PhaseTaps::of(horizontal, phase), horizontal.count(phase), 0, 0, false};
    const int64_t step = horizontal.step(), last = a.taps.offset + (a.taps.count - 1) * a.taps.offset_step;
    a.low = a.taps.count ? min_of(a.count, max_of(0, ceil_div(max_of(0, -a.taps.offset), step))) : 0;
    a.high = a.taps.count ? min_of(a.count, floor_div(horizontal.source - 1 - last, step) + 1) : a.count;
    a.shared = columns_shared(a.taps.count, a.taps.offset_step, step);
    return a;
  }

  // (C / L, R S, L)
  void pack_weights() {
    for_each_kernel_row<L>(z, weight, [&](int64_t c, int64_t tap, int64_t count, int64_t lanes, const T* row) {
      positions_to_lanes<A>(weights + (c * taps() + tap * L), row, weight.n, weight.column, lanes, count);
    });
  }

  // Which of `count` positions, so far apart, lie in the source.
  uint32_t inside_of(int64_t first, int64_t count, int64_t apart) const {
    const int64_t low = min_of(first < 0 ? ceil_div(-first, apart) : 0, count);
    const int64_t end = first < horizontal.source ? floor_div(horizontal.source - 1 - first, apart) + 1 : 0;
    const int64_t high = max_of(low, min_of(count, end));
    return uint32_t((uint64_t(1) << high) - (uint64_t(1) << low));
  }

  // ---- rows of the source

  // Lists what outputs from the i-th on read, nullptr for what lies outside: `lines` rows, copied where they have to
  // be.
  void list_rows(const PhaseTaps& taps, int64_t lines, const T* plane, int64_t i, int64_t channels,
                 const Scratch& scratch) const {
    for (int64_t j = 0; j < lines; ++j) {
      const int64_t at = i * vertical.step() + taps.offset + j * taps.offset_step;
      const T* const row = plane + at * source.row;
      if (at < 0 || at >= vertical.source) {
        scratch.list[j] = nullptr;
      } else if constexpr (in_place) {
        scratch.list[j] = row;
      } else {
        E* const to = scratch.packed + j * horizontal.source * chunk;
        pack_row(to, row, source, horizontal.source, channels);
        scratch.list[j] = to;
      }
    }
  }
  void pack_row(E* to, const T* from, const View<T>& view, int64_t columns, int64_t channels) const {
    for (int64_t i = 0; i < columns; ++i) copy_lanes(to + i * chunk, from + i * view.column, channels);
  }

  // ---- forward and input_grad

  void run_plane(int64_t n, int64_t c0, int64_t channels, int64_t first, int64_t last, const Scratch& scratch) const {
    const int64_t parts = far ? ceil_div(channels, kStripChannels) : 1;
    const int64_t each = round_up(ceil_div(channels, parts), L), longest = horizontal.longest_count();
    const int64_t wide =
        far ? kMostColumns * max_of(1, kStrip / (each * kMostColumns * horizontal.step())) : max_of(1, longest);
    for (int64_t c = c0; c < c0 + channels; c += each)
      for (int64_t strip = 0; strip < longest; strip += wide)
        run_strip(n, c, min_of(each, c0 + channels - c), first, last, strip, min_of(longest, strip + wide), scratch);
  }

  void run_strip(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, int64_t begin, int64_t end,
                 const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c;
    T* const to = result.data + n * result.n + c;
    const int64_t step = vertical.step(), out_step = vertical.output_step();
    ColumnsArguments<E> a{};
    a.bias = biases + c;
    a.weight_vector = taps() * L;
    a.relu = relu && in_place;  // what is rounded afterwards is asked then
    a.out_row = result.row;
    a.out_column = horizontal.output_step() * result_column;
    a.out_ahead = far ? result.row : 0;
    for (int64_t row = first; row < last;) {
      const PhaseTaps& rows = down[row % out_step];
      const int64_t rest = last - row;
      const int block = !row_blocks || far || rest == 1 ? 1 : rest == 2 || rest == 4 ? 2 : kMostRunRows;
      list_rows(rows, rows.count + (block - 1) * step, from, row / out_step, channels, scratch);
      a.rows = scratch.list;
      a.row_count = rows.count;
      a.weight = weights + c * taps() + rows.tap * z.s * L;
      a.weight_r = rows.tap_step * z.s * L;
      // The last phase reads the newest rows.
      a.fresh = row % out_step + 1 == out_step ? rows.count - step : rows.count;
      T* const line = to + row * result.row;
      a.out = in_place ? reinterpret_cast<E*>(line) : scratch.packed_result;
      // The phases of a few columns after one another: their results are neighbours.
      E* const out = a.out;
      const A* const weight_row = a.weight;
      const int64_t together = horizontal.phases() == 1 ? end - begin : kMostColumns;
      for (int64_t few = begin; few < end; few += together)
        for (int64_t f = 0; f < horizontal.phases(); ++f) {
          a.ahead = far && f + 1 == horizontal.phases() ? source.row * step : 0;
          a.weight = weight_row + across[f].taps.tap * L;
          run_columns(a, block, f, few, min_of(few + together, min_of(end, across[f].count)), channels,
                      out + f * result_column);
        }
      if constexpr (!in_place) {
        for (int64_t i = 0; i < horizontal.output; ++i) {
          E* const pixel = scratch.packed_result + i * chunk;
          if (relu) rectify_all<T>(pixel, channels);
          copy_back(line + i * result.column, pixel, channels);
        }
      }
      row += block;
    }
  }

  void run_columns(ColumnsArguments<E>& a, int block, int64_t phase, int64_t begin, int64_t end, int64_t channels,
                   E* out) const {
    const Across& p = across[phase];
    const int64_t step = horizontal.step(), count = p.taps.count, apart = count == 1 ? step : p.taps.offset_step;
    a.taps = count;
    a.weight_s = p.taps.tap_step * L;
    a.x = {0, apart * x_column, 0, step * x_column, 0, step, apart, horizontal.source};
    a.x_block = kMostColumns * step * x_column;
    a.out_block = kMostColumns * a.out_column;
    for (int64_t j = begin, wide; j < end; j += wide * a.blocks) {
      wide = end - j >= kMostColumns ? kMostColumns : end - j >= 2 ? 2 : 1;
      const bool margins = wide < kMostColumns || j < p.low || j + wide > p.high;
      a.blocks = margins ? 1 : (min_of(end, p.high) - j) / kMostColumns;
      a.x.first = j * step + p.taps.offset;
      a.x.at = a.x.first * x_column;
      if (p.shared && margins) a.x.inside = inside_of(a.x.first, count == 1 ? wide : (wide - 1) * step + count, apart);
      a.out = out + j * a.out_column;
      if (block > 1 && wide == kMostColumns) {
        run_vectors(select_rows_run<E>(step, block, margins), a, channels);
        continue;
      }
      const auto run = select_columns_run<E>(count, p.taps.offset_step, step, int(wide), margins);
      run_vectors(run, a, channels);
      for (int b = 1; b < block; ++b) {
        a.rows += vertical.step();
        a.out += result.row;
        run_vectors(run, a, channels);
      }
      a.rows -= (block - 1) * vertical.step();
    }
  }

  static void run_vectors(ColumnsRun<E> run, ColumnsArguments<E>& a, int64_t channels) {
    const int64_t vectors = channels / L, rest = channels % L;
    a.lanes = kAllLanes<A>;
    a.vectors = vectors;
    if (vectors > 0) run(a);
    if (rest == 0) return;
    ColumnsArguments<E> last = a;
    last.lanes = lanes_between<A>(0, rest);
    last.vectors = 1;
    last.x.at += vectors * L;
    last.out += vectors * L;
    last.bias += vectors * L;
    last.weight += vectors * a.weight_vector;
    run(last);
  }

  // ---- weight_grad

  // Adds the share of some rows of one image to sum: (channels / L, R S, L).
  void add_plane(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, A* sum,
                 const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c;
    const T* const grad = result.data + n * result.n + c;
    const int64_t blocks = kDotStrip / (round_up(channels, L) * kMostColumns * horizontal.step());
    const int64_t wide = kMostColumns * min_of(kMostBlocks, max_of(1, blocks));
    for (int64_t strip = 0; strip < horizontal.output; strip += wide)
      for (int64_t i = first; i < last;) {
        const int block = row_blocks && last - i >= kMostDotRows ? kMostDotRows : 1;
        list_rows(down[0], z.r + (block - 1) * vertical.step(), from, i, channels, scratch);
        const T* const line = grad + i * result.row;
        if constexpr (!in_place) pack_row(scratch.packed_result, line, result, horizontal.output, channels);
        add_rows(in_place ? reinterpret_cast<const E*>(line) : scratch.packed_result, block, strip,
                 min_of(horizontal.output, strip + wide), channels, sum, scratch);
        i += block;
      }
  }

  void add_rows(const E* grad, int block, int64_t begin, int64_t end, int64_t channels, A* sum,
                const Scratch& scratch) const {
    const PhaseTaps& taps = across[0].taps;
    const int64_t step = horizontal.step();
    const bool neighbours = taps.offset_step == 1 && step <= 2 && z.s > 1;
    uint32_t inside[kMostBlocks];
    ColumnsDotArguments<E> a{};
    a.grad_column = result_column;
    a.grad_row = result.row;
    a.inside = inside;
    a.sum_r = z.s * L;
    a.sum_s = L;
    a.sum_vector = this->taps() * L;
    a.ahead = far ? block * vertical.step() * source.row : 0;
    a.grad_ahead = far ? block * result.row : 0;
    for (int64_t s = 0, wide_s; s < z.s; s += wide_s) {
      const int64_t rest = z.s - s;
      wide_s = !neighbours ? 1 : rest == 5 || (rest == 7 && step == 1) ? rest : rest >= 3 ? 3 : 1;
      const int64_t apart = wide_s == 1 ? step : 1;
      for (int64_t r = 0, wide_r; r < z.r; r += wide_r) {
        wide_r = z.r - r >= 3 && wide_s < 5 ? 3 : 1;
        a.rows = scratch.list + r;
        a.sum = sum + (r * z.s + s) * L;
        a.x_column = apart * x_column;
        for (int64_t j = begin; j < end;) {
          const int64_t wide = end - j >= kMostColumns ? kMostColumns : 1;
          a.blocks = min_of(kMostBlocks, (end - j) / wide);
          a.x_block = wide * step * x_column;
          a.grad_block = wide * a.grad_column;
          a.grad = grad + j * a.grad_column;
          const int64_t first = j * step + taps.offset + s * taps.offset_step;
          a.x_at = first * x_column;
          const int64_t positions = wide_s == 1 ? wide : (wide - 1) * step + wide_s;
          for (int64_t i = 0; i < a.blocks; ++i) inside[i] = inside_of(first + i * wide * step, positions, apart);
          add_vectors(select_columns_dot<E>(wide_r, wide_s, step, block, int(wide)), a, channels);
          j += wide * a.blocks;
        }
      }
    }
  }

  static void add_vectors(ColumnsDot<E> dot, ColumnsDotArguments<E>& a, int64_t channels) {
    const int64_t vectors = channels / L, rest = channels % L;
    a.lanes = kAllLanes<A>;
    a.vectors = vectors;
    if (vectors > 0) dot(a);
    if (rest == 0) return;
    ColumnsDotArguments<E> last = a;
    last.lanes = lanes_between<A>(0, rest);
    last.vectors = 1;
    last.x_at += vectors * L;
    last.grad += vectors * L;
    last.sum += vectors * a.sum_vector;
    dot(last);
  }

  // Adds the splits in order, and writes the weights' gradient.
  void finish(const Executor& executor) const {
    const int64_t split_sums = pitch() * taps(), chunks = ceil_div(z.c, chunk);
    for (int64_t i = 0; i < split_sums; i += L) {
      Vec<A> total = load(sums + i);
      for (int64_t split = 1; split < own.splits; ++split) total += load(sums + split * split_sums + i);
      store(sums + i, total);
    }
    if (padding_may_show(vertical, horizontal, sums, split_sums))
      for_each_unit(executor, plan, chunks, [&](int64_t index, void*) {
        const int64_t c = index * chunk;
        for (int64_t n = 0; n < z.n; ++n) add_padding(*this, n, c, min_of(chunk, z.c - c), sums + c * taps());
      });
    for_each_kernel_row<L>(z, weight, [&](int64_t c, int64_t tap, int64_t count, int64_t lanes, T* row) {
      lanes_to_positions_within(sums + (c * taps() + tap * L), row, weight.n, weight.column, lanes, count);
    });
  }

  // ---- units

  Scratch take_scratch(void* memory) const {
    Carver local(memory);
    Scratch scratch{};
    const int64_t lines = depthwise_lines(vertical);
    scratch.list = local.take<const E*>(lines);
    scratch.packed = local.take<E>(in_place ? 0 : lines * horizontal.source * chunk);
    scratch.packed_result = local.take<E>(in_place ? 0 : horizontal.output * chunk);
    return scratch;
  }

  void run(const Executor& executor) {
    const int64_t chunks = ceil_div(z.c, chunk);
    const auto channels_of = [&](int64_t index) { return min_of(chunk, z.c - index % chunks * chunk); };
    if constexpr (weight_grad) {
      const int64_t tiles = ceil_div(z.p, own.tile_h), units = z.n * tiles;
      for_each_unit(executor, plan, own.splits * chunks, [&](int64_t index, void* memory) {
        const Scratch scratch = take_scratch(memory);
        const int64_t split = index / chunks, c = index % chunks * chunk, channels = channels_of(index);
        A* const sum = sums + (split * pitch() + c) * taps();
        memset(static_cast<void*>(sum), 0, size_t(round_up(channels, L) * taps()) * sizeof(A));
        for (int64_t unit = part_begin(units, own.splits, split), end = part_begin(units, own.splits, split + 1);
             unit < end; ++unit) {
          const int64_t first = unit % tiles * own.tile_h;
          add_plane(unit / tiles, c, channels, first, min_of(z.p, first + own.tile_h), sum, scratch);
        }
      });
      finish(executor);
    } else {
      const int64_t wanted = plan.tasks == 1 ? 1 : ceil_div(kRunUnits, z.n * chunks);
      const int64_t tile_h = round_up(ceil_div(vertical.output, wanted), vertical.output_step());
      const int64_t tiles = ceil_div(vertical.output, tile_h);
      for_each_unit(executor, plan, z.n * tiles * chunks, [&](int64_t unit, void* memory) {
        const int64_t first = unit / chunks % tiles * tile_h;
        const int64_t last = min_of(vertical.output, first + tile_h), n = unit / chunks / tiles;
        const int64_t c = unit % chunks * chunk, channels = channels_of(unit);
        run_plane(n, c, channels, first, last, take_scratch(memory));
        for (int64_t i = 0; i < channels && special; ++i) sum_with_padding(*this, n, c + i, first, last);
      });
    }
  }
};

}  // namespace conv_ext
