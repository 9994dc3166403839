// The direct algorithm: an implicit matrix product over packed tiles, written once for every type, pass and layout.
//
//   forward, input_grad                          weight_grad
//     pack all weights                             for each block of K x C (in parallel):
//     for each tile of outputs (in parallel):        for each tile of outputs:
//       pack the source that it reads                   pack the upstream gradient and the input
//       for each phase, block of channels, lanes:       for each block of K, of taps:
//         gather_tile, scatter                             dot_tile
//                                                  add the parts, write
//
// Start reading at run_direct, at the end. The operands' roles stand in common/roles.h.
#pragma once

#include "../base/pack.h"
#include "../base/reduction.h"
#include "../base/roles.h"
#include "tile.h"
#include "layout.h"

namespace conv_ext {

// Packs a tile of one group's channels from channel `first` on; both parts of complex numbers become channels.
template <class T, class A>
void pack_channels(A* packed, const DirectPlan& own, int64_t pitch, View<T> view, int64_t parts, int64_t first,
                   int64_t channels, int64_t n0, int64_t n1, const AxisTable& rows, const AxisTable& columns,
                   int64_t i0, int64_t j0, int64_t height) {
  const PackedTile layout{own.images, pitch, own.channel_pitch * parts};
  view.data += first * view.channel;
  for (int64_t part = 0; part < parts; ++part, ++view.data)
    pack_tile(packed + part * own.channel_pitch, layout, view, channels, n0, n1, rows, columns, i0, j0, height);
}

// forward and input_grad: everything that the tasks share.
template <class T, class A>
struct Gather {
  const ConvProblem& z;
  const Plan& plan;
  PackedTaps tables;
  View<T> source, result, weight;  // weight seen as (gemm_m, channels, R, S)
  int64_t weight_group;            // elements between the weights of two groups
  int64_t parts, group_m, group_channels;
  A* packed_weight;
  A* bias;  // (groups * group_m * parts)
  bool relu;
  const DirectPlan& own = plan.own<DirectPlan>();

  int64_t taps() const { return z.r * z.s; }
  int64_t rows_m() const { return group_m * parts; }
  int64_t channels() const { return group_channels * parts; }
  // Blocks of one pair of phases: (M / block)[channels][taps][block]; those of row m0 begin at m0 * channels * taps.
  A* packed_block(int64_t group, int64_t phase, int64_t m0) const {
    const int64_t begin = tables.taps.begin[phase], count = tables.taps.count(phase);
    return packed_weight + (group * taps() + begin) * rows_m() * channels() + m0 * channels() * count;
  }

  // One row of M of a complex weight: (out_re, out_im) = (wr xr - wi xi, wi xr + wr xi).
  A weight_at(int64_t group, int64_t m, int64_t c, int64_t tap) const {
    const int64_t mi = m / parts, ci = c / parts, mp = m % parts, cp = c % parts;
    const T* w = weight.data + group * weight_group + mi * weight.n + ci * weight.channel + tap / z.s * weight.row +
                 tap % z.s * weight.column;
    const A value = read<A>(w + (mp != cp));
    return mp == 0 && cp == 1 ? -value : value;
  }

  void pack_weights(const Executor& executor) const {
    const int64_t blocks = ceil_div(rows_m(), kGatherM);
    const int64_t small = int64_t(1) << 15;  // elements worth a task of their own
    const int64_t each = max_of(1, small / max_of(1, kGatherM * channels() * taps()));
    const int64_t count = z.groups * blocks;
    parallel_for(executor, ceil_div(count, each), 0, [&](int64_t task, void*) {
      for (int64_t item = task * each; item < min_of(count, (task + 1) * each); ++item) {
        const int64_t group = item / blocks, begin = item % blocks * kGatherM;
        for (int64_t phase = 0; phase < tables.taps.phases(); ++phase) {
          const int64_t first = tables.taps.begin[phase], last = tables.taps.begin[phase + 1];
          for (int64_t m0 = begin; m0 < min_of(rows_m(), begin + kGatherM);) {
            const int rows = block_rows(rows_m() - m0, kGatherM);
            A* to = packed_block(group, phase, m0);
            for (int64_t c = 0; c < channels(); ++c)
              for (int64_t t = first; t < last; ++t)
                for (int m = 0; m < rows; ++m) *to++ = weight_at(group, m0 + m, c, tables.taps.tap[t]);
            m0 += rows;
          }
        }
      }
    });
  }

  // Copies the lanes of a register tile, or their ReLU, to their places: lane l of the block is at (row, column, image)
  // of the phase.
  template <bool rectified>
  void scatter(const A* out, int vectors, int rows, int64_t group, int64_t m0, int64_t lane, int64_t lanes,
               int64_t pitch, int64_t width, int64_t n0, int64_t n1, int64_t h0, int64_t w0) const {
    const int64_t row_step = tables.taps.vertical.output_step() * result.row;
    const int64_t column_step = tables.taps.horizontal.output_step() * result.column;
    T* const base = result.data + n0 * result.n + h0 * result.row + w0 * result.column;
    const int64_t images = own.images, stride = vectors * kLanes<A>;
    int64_t p = lane / (pitch * images), q = lane % (pitch * images);
    for (int64_t l = 0; l < lanes;) {
      const int64_t length = min_of(lanes - l, width * images - q);
      for (int m = 0; m < rows && length > 0; ++m) {
        const int64_t row = m0 + m;
        T* to = base + (group * group_m + row / parts) * result.channel + row % parts + p * row_step;
        const A* from = out + m * stride + l;
        const auto one = [&](int64_t i) { return rectified ? rectify_one<T>(from[i]) : from[i]; };
        const auto lanes_at = [&](int64_t i) { return rectified ? rectify<T, A>(load(from + i)) : load(from + i); };
        if (images > 1) {
          for (int64_t i = 0; i < length; ++i) {
            const int64_t image = (q + i) % images;
            if (n0 + image < n1) write<T>(to + image * result.n + (q + i) / images * column_step, one(i));
          }
        } else if (column_step == 1) {
          constexpr int L = kLanes<A>;
          int64_t i = 0;
          for (; i + L <= length; i += L) write_lanes<T, A>(to + q + i, lanes_at(i));
          if (i < length) write_lanes<T, A>(to + q + i, lanes_at(i), length - i);
        } else {
          for (int64_t i = 0; i < length; ++i) write<T>(to + (q + i) * column_step, one(i));
        }
      }
      l += pitch * images - q;  // on to the next row, past what lies between
      q = 0;
      ++p;
    }
  }

  void run_tile(int64_t index, A* packed) const {
    const int64_t count_h = tables.taps.vertical.longest_count(), count_w = tables.taps.horizontal.longest_count();
    const int64_t tiles_h = ceil_div(count_h, own.tile_h), tiles_w = ceil_div(count_w, own.tile_w);
    const int64_t parts_m = ceil_div(rows_m(), own.task_m);
    const int64_t part = index % parts_m;
    index /= parts_m;
    const int64_t j0 = index % tiles_w * own.tile_w;
    index /= tiles_w;
    const int64_t i0 = index % tiles_h * own.tile_h;
    index /= tiles_h;
    const int64_t blocks = ceil_div(z.groups, own.task_groups);
    const int64_t first_group = index % blocks * own.task_groups;
    const int64_t last_group = min_of(z.groups, first_group + own.task_groups);
    const int64_t n0 = index / blocks * own.images, n1 = min_of(z.n, n0 + own.images);
    const int64_t pitch = tables.columns.longest;
    pack_channels(packed, own, pitch, source, parts, first_group * group_channels,
                  (last_group - first_group) * group_channels, n0, n1, tables.rows, tables.columns, i0, j0,
                  min_of(own.tile_h, count_h - i0));
    const int64_t m_begin = part * own.task_m, m_end = min_of(rows_m(), m_begin + own.task_m);
    // Asked for here: within scatter the question costs 5 % of LeNet's c1; a pass over the register tile, 12 % of a
    // ReLU.
    const auto run = relu ? &Gather::template run_phase<true> : &Gather::template run_phase<false>;
    for (int64_t fh = 0; fh < tables.taps.vertical.phases(); ++fh) {
      const int64_t height = min_of(own.tile_h, tables.taps.vertical.count(fh) - i0);
      for (int64_t fw = 0; fw < tables.taps.horizontal.phases() && height > 0; ++fw) {
        const int64_t width = min_of(own.tile_w, tables.taps.horizontal.count(fw) - j0);
        if (width <= 0) continue;
        const int64_t h0 = fh + i0 * tables.taps.vertical.output_step(),
                      w0 = fw + j0 * tables.taps.horizontal.output_step();
        const int64_t phase = fh * tables.taps.horizontal.phases() + fw;
        for (int64_t group = first_group; group < last_group; ++group)
          (this->*run)(phase, group, m_begin, m_end, packed + (group - first_group) * channels() * own.channel_pitch,
                       height, width, n0, n1, h0, w0);
      }
    }
  }

  template <bool rectified>
  void run_phase(int64_t phase, int64_t group, int64_t m_begin, int64_t m_end, const A* packed, int64_t height,
                 int64_t width, int64_t n0, int64_t n1, int64_t h0, int64_t w0) const {
    constexpr int L = kLanes<A>;
    const int64_t pitch = tables.columns.longest, images = own.images;
    const int64_t first = tables.taps.begin[phase];
    // Either one run of lanes through all rows, or one for each row.
    const int64_t run_rows = own.flat ? height : 1;
    const int64_t run_lanes = ((run_rows - 1) * pitch + width) * images;
    alignas(64) A out[kGatherM * kMaxTileVectors * L];
    GatherArguments<A> a;
    a.channels = channels();
    a.channel_pitch = own.channel_pitch;
    a.offset = tables.offset + first;
    a.taps = tables.taps.count(phase);
    a.out = out;
    for (int64_t m0 = m_begin; m0 < m_end;) {
      const int rows = block_rows(m_end - m0, kGatherM);
      a.weight = packed_block(group, phase, m0);
      a.bias = bias + group * rows_m() + m0;
      for (int64_t p = 0; p < height; p += run_rows) {
        for (int64_t lane = 0; lane < run_lanes;) {
          // Evenly wide blocks: one that is left with a single vector would wait for each of its own sums.
          const int64_t left = ceil_div(run_lanes - lane, L);
          const int vectors = int(ceil_div(left, ceil_div(left, max_vectors(rows))));
          const int64_t at = p * pitch * images + lane;
          a.x = packed + at;
          select_gather_tile<A>(rows, vectors)(a);
          const int64_t lanes = min_of(vectors * L, run_lanes - lane);
          scatter<rectified>(out, vectors, rows, group, m0, at, lanes, pitch, width, n0, n1, h0, w0);
          lane += vectors * L;
        }
      }
      m0 += rows;
    }
  }
};

template <class T, class A>
void run_gather(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  const int64_t parts = parts_of(z.dtype);
  const DirectPlan& own = plan.own<DirectPlan>();
  Carver memory(b.workspace);
  DirectWorkspace<A> w = direct_workspace<A>(z, pass, own, memory);
  w.tables.build(own.tile_h, own.tile_w, own.images);
  const View<T> weight = weights_by_role<T>(pass, b, parts);
  Gather<T, A> task{z,
                    plan,
                    w.tables,
                    view_of<T>(source_of(pass, b), parts),
                    view_of<T>(result_of(pass, b), parts),
                    weight,
                    group_step(z, pass, weight),
                    parts,
                    result_channels(z, pass),
                    source_channels(z, pass),
                    w.packed_weight,
                    w.bias,
                    b.relu};
  const int64_t all_m = z.groups * task.rows_m();
  pack_bias<T>(w.bias, b, 0, all_m, all_m, parts);
  task.pack_weights(executor);
  parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
    Carver local(scratch);
    task.run_tile(index, direct_scratch<A>(z, pass, own, local).source);
  });
}

// weight_grad: everything that the tasks share.
template <class T, class A>
struct WeightGrad {
  const ConvProblem& z;
  const DirectPlan& own;
  const PackedTaps& tables;
  View<T> input, grad, result;
  int64_t parts;
  A* sums;  // of every pair of real rows: (splits, groups, K/g parts, C/g parts, R S)

  static constexpr int L = kLanes<A>;
  int64_t taps() const { return z.r * z.s; }
  // Members, because the divisions in them take long beside what the loops do.
  const int64_t row_sums = z.group_c() * parts * z.r * z.s, group_sums = z.group_k() * parts * row_sums;
  int64_t grad_channel() const { return own.tile_h * own.grad_pitch; }

  // Some groups, and of each a block of K x C, in one part of the reduction.
  struct Block {
    int64_t group, groups, split, k0, c0;
    int64_t rows_k, rows_c, tap_rows;  // real rows of either operand, and those of the input with the taps of each
  };
  Block block_at(int64_t index) const {
    const int64_t blocks_k = ceil_div(z.group_k(), own.tile_k), blocks_c = ceil_div(z.group_c(), own.tile_c);
    const int64_t group_blocks = ceil_div(z.groups, own.task_groups);
    Block b;
    b.c0 = index % blocks_c * own.tile_c;
    index /= blocks_c;
    b.k0 = index % blocks_k * own.tile_k;
    index /= blocks_k;
    b.group = index % group_blocks * own.task_groups;
    b.groups = min_of(own.task_groups, z.groups - b.group);
    b.split = index / group_blocks;
    b.rows_k = min_of(own.tile_k, z.group_k() - b.k0) * parts;
    b.rows_c = min_of(own.tile_c, z.group_c() - b.c0) * parts;
    b.tap_rows = b.rows_c * taps();
    return b;
  }
  // The sums of a row of K and the block's rows of the input.
  A* sums_of(const Block& b, int64_t group, int64_t k) const {
    return sums + (b.split * z.groups + b.group + group) * group_sums + (b.k0 * parts + k) * row_sums +
           b.c0 * parts * taps();
  }

  struct Tile {  // of outputs
    int64_t n0, n1, i0, j0, height, width;
  };

  void run_task(int64_t index, const DirectScratch<A>& s) const {
    const Block b = block_at(index);
    for (int64_t c = 0; c < b.rows_c; ++c)
      for (int64_t t = 0; t < taps(); ++t) s.offset[c * taps() + t] = c * own.channel_pitch + tables.offset[t];
    for (int64_t k = 0; k < b.groups * b.rows_k; ++k) {
      A* const row = sums_of(b, k / b.rows_k, k % b.rows_k);
      for (int64_t t = 0; t < b.tap_rows; ++t) row[t] = A(0);
    }
    const int64_t tiles_h = ceil_div(z.p, own.tile_h), tiles_w = ceil_div(z.q, own.tile_w);
    const int64_t units = ceil_div(z.n, own.images) * tiles_h * tiles_w;
    for (int64_t u = part_begin(units, own.splits, b.split); u < part_begin(units, own.splits, b.split + 1); ++u) {
      Tile t;
      t.j0 = u % tiles_w * own.tile_w;
      t.i0 = u / tiles_w % tiles_h * own.tile_h;
      t.n0 = u / tiles_w / tiles_h * own.images;
      t.n1 = min_of(z.n, t.n0 + own.images);
      t.height = min_of(own.tile_h, z.p - t.i0);
      t.width = min_of(own.tile_w, z.q - t.j0);
      pack_channels(s.source, own, tables.columns.longest, input, parts, b.group * z.group_c() + b.c0,
                    b.groups * b.rows_c / parts, t.n0, t.n1, tables.rows, tables.columns, t.i0, t.j0, t.height);
      pack_grad(b, t, s.grad);
      multiply(b, t, s);
    }
  }

  // The upstream gradient: rows of width * images lanes, filled up with zeros to whole vectors.
  void pack_grad(const Block& b, const Tile& t, A* to) const {
    const int64_t lanes = t.width * own.images;
    for (int64_t k = 0; k < b.groups * b.rows_k; ++k)
      for (int64_t p = 0; p < t.height; ++p)
        for (int64_t i = t.n1 - t.n0 < own.images ? 0 : lanes; i < round_up(lanes, L); ++i)
          to[k * grad_channel() + p * own.grad_pitch + i] = A(0);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t p = 0; p < t.height; ++p)
        for (int64_t n = t.n0; n < t.n1; ++n)
          pack_block(to + part * grad_channel() + p * own.grad_pitch + (n - t.n0), grad_channel() * parts, own.images,
                     grad.data + n * grad.n + (b.group * z.group_k() + b.k0) * grad.channel + (t.i0 + p) * grad.row +
                         t.j0 * grad.column + part,
                     grad.channel, grad.column, b.groups * b.rows_k / parts, t.width);
  }

  void multiply(const Block& b, const Tile& t, const DirectScratch<A>& s) const {
    const int64_t lanes = t.width * own.images, pitch = tables.columns.longest;
    DotArguments<A> a;
    a.g_channel = grad_channel();
    // Where no column lies between two rows, they are one.
    const bool joined = t.width == pitch && round_up(lanes, L) == lanes && own.grad_pitch == lanes;
    a.rows = joined ? 1 : t.height;
    a.lanes = joined ? lanes * t.height : lanes;
    a.g_row = own.grad_pitch;
    a.x_row = pitch * own.images;
    a.out_pitch = row_sums;
    for (int64_t group = 0; group < b.groups; ++group) {
      a.x = s.source + group * b.rows_c * own.channel_pitch;
      for (int64_t k = 0; k < b.rows_k;) {
        const int block = block_rows(b.rows_k - k, kDotM);
        a.g = s.grad + (group * b.rows_k + k) * grad_channel();
        A* const sums_k = sums_of(b, group, k);
        for (int64_t row = 0; row < b.tap_rows;) {
          const int block_t = block_taps(b.tap_rows - row);
          a.offset = s.offset + row;
          a.out = sums_k + row;
          select_dot_tile<A>(block, block_t)(a);
          row += block_t;
        }
        k += block;
      }
    }
  }

  // The parts of the reduction in order, then (re, im) = (gr xr - gi xi, gr xi + gi xr).
  void write_row(int64_t k) const {
    const int64_t group = k / z.group_k(), row = k % z.group_k(), channels = z.group_c(), count = taps();
    A* const its_sums = sums + group * group_sums + row * parts * row_sums;
    add_parts(its_sums, parts * row_sums, own.splits, z.groups * group_sums);
    const auto total = [&](int64_t gp, int64_t c, int64_t xp, int64_t t) {
      return its_sums[gp * row_sums + (c * parts + xp) * count + t];
    };
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tap = tables.taps.tap[t];
        T* to = result.data + k * result.n + c * result.channel + tap / z.s * result.row + tap % z.s * result.column;
        if (parts == 1) {
          write<T>(to, total(0, c, 0, t));
        } else {
          write<T>(to, A(total(0, c, 0, t) - total(1, c, 1, t)));
          write<T>(to + 1, A(total(0, c, 1, t) + total(1, c, 0, t)));
        }
      }
  }
};

template <class T, class A>
void run_weight_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const int64_t parts = parts_of(z.dtype);
  const DirectPlan& own = plan.own<DirectPlan>();
  Carver memory(b.workspace);
  DirectWorkspace<A> w = direct_workspace<A>(z, Pass::WeightGrad, own, memory);
  w.tables.build(own.tile_h, own.tile_w, own.images);
  const WeightGrad<T, A> task{
      z,     own,   w.tables, view_of<T>(b.input, parts), view_of<T>(b.output, parts), view_of<T>(b.weight, parts),
      parts, w.sums};
  parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
    Carver local(scratch);
    task.run_task(index, direct_scratch<A>(z, Pass::WeightGrad, own, local));
  });
  parallel_for(executor, z.k, 0, [&](int64_t k, void*) { task.write_row(k); });
}

template <class T, class A, Pass pass>
void run_direct(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  if constexpr (pass == Pass::WeightGrad) {
    run_weight_grad<T, A>(problem, plan, buffers, executor);
  } else {
    run_gather<T, A>(problem, pass, plan, buffers, executor);
  }
}

}  // namespace conv_ext
