// The depthwise algorithm: one input channel per output channel. Start reading at run_depthwise, at the end.
//
// Vectors run over channels where these lie side by side (channels_last; depthwise_channels.h), else over columns
// (here, for NCHW). Either way operands are read and written where they lie; what lies otherwise, is of another type or
// has a larger stride is copied into rows of the accumulator's type, a block of rows at a time, and the result back.
#pragma once

#include "channels.h"

namespace conv_ext {

template <class T, class A, Pass pass>
struct DepthwiseTask : DepthwiseRows<T, A, pass> {
  using Base = DepthwiseRows<T, A, pass>;
  using Base::Base;
  using Base::biases;
  using Base::chunk_taps;
  using Base::column_step;
  using Base::columns;
  using Base::horizontal;
  using Base::input_grad;
  using Base::L;
  using Base::list_rows;
  using Base::list_step;
  using Base::own;
  using Base::pack_row;
  using Base::pairs;
  using Base::plan;
  using Base::relu;
  using Base::result;
  using Base::result_in_place;
  using Base::rows;
  using Base::same_type;
  using Base::source;
  using Base::source_in_place;
  using Base::source_row;
  using Base::spreads;
  using Base::sums;
  using Base::taps;
  using Base::together;
  using Base::vertical;
  using Base::weight;
  using Base::weight_grad;
  using Base::weights;
  using Base::z;

  // ---- forward and input_grad

  struct Scratch {
    const A** list;
    const A** grad;
    A *packed, *packed_grad, *out;
  };

  void run_plane(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c * source.channel;
    T* const to = result.data + n * result.n + c * result.channel;
    const int64_t step = vertical.output_step();
    if (spreads) {
      for (int64_t row = first; row < last; row += 2 * kMaxDepthwiseRows) {
        const int64_t here = min_of(2 * kMaxDepthwiseRows, last - row);
        list_rows(rows[1], from, row / 2, int(ceil_div(here, 2)), scratch.list, scratch.packed);
        const T* const middle = weight.data + c * weight.n + weight.row + weight.column;
        depthwise_spread<A>({scratch.list, columns[2].segment, columns[2].count, reinterpret_cast<const A*>(middle),
                             -weight.row, -weight.column, reinterpret_cast<A*>(to + row * result.row), result.row, here,
                             horizontal.output, channels, source.channel, weight.n, result.channel});
      }
      return;
    }
    for (int64_t f = 0; f < vertical.phases(); ++f) {
      const int64_t begin = first > f ? ceil_div(first - f, step) : 0, end = last > f ? ceil_div(last - f, step) : 0;
      for (int64_t i = begin; i < end;) {
        const int block = depthwise_rows(end - i, kMaxDepthwiseRows);
        list_rows(rows[f], from, i, block, scratch.list, scratch.packed);
        run_block(rows[f], c, channels, block, to + (f + i * step) * result.row, ahead_of(from, i), scratch);
        i += block;
      }
    }
  }

  void run_block(const PhaseTaps& down, int64_t c, int64_t channels, int block, T* to, const A* ahead,
                 const Scratch& scratch) const {
    const int64_t step = vertical.step(), to_row = vertical.output_step() * result.row;
    const int64_t out_pitch = round_up(horizontal.longest_count(), L);
    const int chunk_r = chunk_taps(down, step);
    RunArguments<A> a;
    a.rows = scratch.list;
    a.row_step = list_step(down, step);
    a.chunks = down.count / chunk_r;
    a.out_row = result_in_place ? to_row : out_pitch;
    const int64_t out_channel = horizontal.phases() * block * out_pitch;
    a.channels = channels;
    a.ahead = ahead;
    a.ahead_row = source.row;
    a.x_channel = source.channel;
    a.weight_channel = same_type ? weight.n : taps();
    a.out_channel = result_in_place ? result.channel : out_channel;
    a.bias = biases + c;
    a.relu = relu && same_type;  // what is rounded afterwards is asked then
    for (int64_t f = 0; f < horizontal.phases(); ++f) {
      const SegmentList& list = columns[f];
      const PhaseTaps& across = list.taps;
      a.columns = across.count;
      if (same_type) {
        a.weight =
            reinterpret_cast<const A*>(weight.data + c * weight.n + down.tap * weight.row + across.tap * weight.column);
        a.weight_r = down.tap_step * weight.row;
        a.weight_s = across.tap_step * weight.column;
      } else {
        a.weight = weights + c * taps() + down.tap * z.s + across.tap;
        a.weight_r = down.tap_step * z.s;
        a.weight_s = across.tap_step;
      }
      a.segment = list.segment;
      a.segments = list.count;
      a.out = result_in_place ? reinterpret_cast<A*>(to) : scratch.out + f * block * out_pitch;
      (column_step == 2 ? select_run<A, !input_grad, 2>(chunk_r, step, block)
                        : select_run<A, !input_grad, 1>(chunk_r, step, block))(a);
    }
    if (result_in_place) return;
    if (relu && !same_type) rectify_all<T>(scratch.out, channels * out_channel);
    for (int64_t i = 0; i < channels; ++i)
      for (int b = 0; b < block; ++b)
        spread_row(to + i * result.channel + b * to_row, scratch.out + i * out_channel + b * out_pitch,
                   block * out_pitch);
  }

  // Writes a row of outputs whose phases lie `apart` from one another.
  void spread_row(T* to, const A* from, int64_t apart) const {
    const int64_t step = horizontal.output_step(), phases = horizontal.phases();
    int64_t done = 0;
    if constexpr (same_type) {
      if (step == 2 && phases == 2 && result.column == 1) {
        Vec<typename IntegerOf<A>::type> low, high;
        for (int l = 0; l < L; ++l) {
          low[l] = l / 2 + l % 2 * L;
          high[l] = low[l] + L / 2;
        }
        A* const out = reinterpret_cast<A*>(to);
        for (; done < horizontal.output; done += 2 * L) {
          const Vec<A> even = load(from + done / 2), odd = load(from + apart + done / 2);
          const int64_t rest = horizontal.output - done;
          const Vec<A> both[2] = {shuffle<A>(even, odd, low), shuffle<A>(even, odd, high)};
          for (int half = 0; half < 2 && rest > half * L; ++half) {
            if (rest >= (half + 1) * L)
              store(out + done + half * L, both[half]);
            else
              store_first(out + done + half * L, both[half], rest - half * L);
          }
        }
        return;
      }
    }
    for (int64_t f = 0; f < phases; ++f) {
      const int64_t count = horizontal.count(f);
      if (step * result.column == 1) {
        copy_back(to, from, count);
      } else {
        for (int64_t i = 0; i < count; ++i) write<T>(to + (f + i * step) * result.column, from[f * apart + i]);
      }
    }
  }

  // ---- weight_grad

  // Adds the share of some rows of one image to sum: (channels, R S, L).
  void add_plane(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, A* sum,
                 const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c * source.channel;
    const T* const grad = result.data + n * result.n + c * result.channel;
    const int64_t grad_row = round_up(horizontal.output, L);
    for (int64_t i = first; i < last;) {
      const int block = depthwise_rows(last - i, kMaxDotRows);
      list_rows(rows[0], from, i, block, scratch.list, scratch.packed);
      for (int b = 0; b < block; ++b) {
        const T* const row = grad + (i + b) * result.row;
        A* const to = scratch.packed_grad + b * grad_row;
        if (!result_in_place) pack_row(to, row, result, horizontal.output, 1);
        scratch.grad[b] = result_in_place ? reinterpret_cast<const A*>(row) : to;
      }
      add_block(block, channels, sum, ahead_of(from, i), scratch);
      i += block;
    }
  }

  void add_block(int block, int64_t channels, A* sum, const A* ahead, const Scratch& scratch) const {
    const SegmentList& list = columns[0];
    const PhaseTaps& down = rows[0];
    const int chunk_r = chunk_taps(down, vertical.step());
    DotArgumentsDepthwise<A> a;
    a.row_step = list_step(down, vertical.step());
    a.grad = scratch.grad;
    a.segment = list.segment;
    a.segments = list.count;
    a.sum_r = z.s * L;
    a.sum_s = L;
    a.channels = channels;
    a.ahead = ahead;
    a.ahead_row = source.row;
    a.x_channel = source.channel;
    a.g_channel = result.channel;
    a.sum_channel = taps() * L;
    for (int64_t s = 0; s < z.s;) {
      const int wide = chunk_r == 3 && column_step == 2 && !pairs ? 1 : columns_of(chunk_r, z.s - s);
      const auto dot = column_step == 2 ? select_dot<A, 2>(chunk_r, vertical.step(), wide, block)
                                        : select_dot<A, 1>(chunk_r, vertical.step(), wide, block);
      a.tap = s;
      for (int64_t r = 0; r < z.r; r += chunk_r) {
        a.rows = scratch.list + r;
        a.sum = sum + (r * z.s + s) * L;
        dot(a);
      }
      s += wide;
    }
  }

  // Where there are channels enough for every thread, maps are not cut: what is prefetched is what comes next.
  bool whole_maps() const { return ceil_div(z.c, own.task_groups) >= 16; }
  int64_t splits() const { return whole_maps() ? 1 : own.splits; }
  int64_t rows_of_unit() const { return whole_maps() ? z.p : own.tile_h; }

  // The sum of the lanes of every tap: (channels, R S).
  void sum_lanes(const A* lanes, int64_t channels, A* to) const {
    const int64_t count = channels * taps();
    int64_t i = 0;
    for (; i + L <= count; i += L) {
      Vec<A> each[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) each[l] = load(lanes + (i + l) * L);
      store(to + i, sum_each<A>(each));
    }
    if (i == count) return;
    Vec<A> each[L] = {};
    for (int64_t l = 0; l < count - i; ++l) each[l] = load(lanes + (i + l) * L);
    store_first(to + i, sum_each<A>(each), count - i);
  }

  // Adds the splits in order.
  void finish(int64_t c0, int64_t c1) const {
    const int64_t split_sums = z.c * taps(), parts = splits();
    const A* at = sums + c0 * taps();
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s, ++at) {
          A total = at[0];
          for (int64_t split = 1; split < parts; ++split) total += at[split * split_sums];
          write<T>(weight.data + c * weight.n + r * weight.row + s * weight.column, total);
        }
  }

  // What is prefetched while outputs from the i-th row on are computed: the rows that they lie over, further on. The
  // smallest maps are read one after the other, which the processor sees by itself.
  const A* ahead_of(const T* plane, int64_t i) const {
    const bool useful = source_in_place && vertical.source * horizontal.source > 64;
    return useful ? reinterpret_cast<const A*>(plane + i * vertical.step() * source.row) + kPrefetch : nullptr;
  }

  // ---- units

  Scratch take_scratch(Carver& local) const {
    const int block = weight_grad ? kMaxDotRows : kMaxDepthwiseRows;
    const int64_t listed = depthwise_listed_rows(vertical, block);
    Scratch scratch{};
    scratch.list = local.take<const A*>(listed);
    scratch.grad = local.take<const A*>(block);
    scratch.packed = local.take<A>(source_in_place ? 0 : listed * source_row);
    if (weight_grad) {
      scratch.packed_grad = local.take<A>(result_in_place ? 0 : block * round_up(horizontal.output, L));
    } else if (!result_in_place) {
      const int64_t row = horizontal.phases() * round_up(horizontal.longest_count(), L);
      scratch.out = local.take<A>(block * together * row);
    }
    return scratch;
  }

  void run(const Executor& executor) {
    const int64_t chunk = own.task_groups, chunks = ceil_div(z.c, chunk);
    if constexpr (weight_grad) {
      const int64_t tiles = ceil_div(z.p, rows_of_unit()), units = z.n * tiles;
      for_each_unit(executor, plan, splits() * chunks, [&](int64_t index, void* memory) {
        const int64_t split = index / chunks, c0 = index % chunks * chunk, c1 = min_of(z.c, c0 + chunk);
        Carver local(memory);
        const Scratch scratch = take_scratch(local);
        A* const sum = local.take<A>(chunk * taps() * L);
        memset(static_cast<void*>(sum), 0, size_t((c1 - c0) * taps() * L) * sizeof(A));
        for (int64_t unit = part_begin(units, splits(), split); unit < part_begin(units, splits(), split + 1); ++unit) {
          const int64_t n = unit / tiles, first = unit % tiles * rows_of_unit(),
                        last = min_of(z.p, first + rows_of_unit());
          for (int64_t c = c0; c < c1; c += together)
            add_plane(n, c, min_of(together, c1 - c), first, last, sum + (c - c0) * taps() * L, scratch);
        }
        sum_lanes(sum, c1 - c0, sums + (split * z.c + c0) * taps());
        if (splits() == 1) finish(c0, c1);
      });
      if (splits() > 1) finish(0, z.c);
    } else {
      const int64_t tile_h = own.tile_h, tiles = ceil_div(vertical.output, tile_h), units = z.n * tiles * chunks;
      for_each_unit(executor, plan, units, [&](int64_t unit, void* memory) {
        Carver local(memory);
        const Scratch scratch = take_scratch(local);
        const int64_t c0 = unit % chunks * chunk, c1 = min_of(z.c, c0 + chunk);
        const int64_t n = unit / chunks / tiles, first = unit / chunks % tiles * tile_h;
        const int64_t last = min_of(vertical.output, first + tile_h);
        for (int64_t c = c0; c < c1; c += together) run_plane(n, c, min_of(together, c1 - c), first, last, scratch);
      });
    }
  }
};

template <class T, class A, Pass pass>
void run_depthwise(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  if (b.input.stride[1] == 1 && b.output.stride[1] == 1 && 2 * z.c >= kLanes<A>)
    DepthwiseChannels<T, A, pass>(z, plan, b).run(executor);
  else
    DepthwiseTask<T, A, pass>(z, plan, b).run(executor);
}

}  // namespace conv_ext
