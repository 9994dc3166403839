// The direct algorithm: an implicit matrix product over packed tiles, written once for every type and layout, forward
// and input_grad.
//
//   pack all weights
//   for each tile of outputs (in parallel):
//     pack the source that it reads
//     for each phase, block of channels, lanes: gather_tile, scatter
//
// Start reading at run_direct, at the end. The operands' roles stand in common/roles.h.
#pragma once

#include "../base/pack.h"
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

// Everything that the tasks share.
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
  DirectWorkspace<A> w = direct_workspace<A>(z, pass, memory);
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

template <class T, class A, Pass pass>
void run_direct(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  run_gather<T, A>(problem, pass, plan, buffers, executor);
}

}  // namespace conv_ext
