// The implicit matrix product of bfloat16 by AVX512_BF16: forward and input_grad over packed tiles; weight_grad is in
// pairs_weight_grad.h. AMX's is in tiles_gather.h.
//
//   pack all weights: [block of 16 outputs][tap, channel pair][16][2]
//   for each tile of outputs of a group (in parallel):
//     pack the source that it reads: [image][row][column][channel]
//     for each phase, blocks of outputs, line of neighbouring outputs:
//       pairs_tile, write
//
// Where the weights are larger than the source, all of the source is packed first, and the tasks are blocks of outputs.
//
// A tap of an output is a run of channels in the packed tile, and neighbouring columns are one run: a few segments for
// every output, at the same distances from its own place. Start reading at run_implicit_gather, at the end.
#pragma once

#include "pairs_operands.h"

#if defined(CONV_EXT_BF16_DOT)

namespace conv_ext {

template <class T>
struct DotGather {
  const ConvProblem& z;
  const ImplicitGemmPlan& own;
  DotTables tables;
  Pass pass;
  const Buffers& buffers;
  View<T> source, result, weight;  // weight seen as (channels of a group's result, of its source, R, S)
  int64_t group_m, group_channels;
  float* bias;       // (groups, blocks, 16)
  bfloat16* packed;  // what all tasks share: the weights, or the tiles of the source
  const Finish<T, float> finish_sums{z, buffers};

  int64_t blocks() const { return ceil_div(group_m, kDotLanes); }
  int64_t block_size() const { return tables.pairs * kPairBlock; }
  void pack_weights(bfloat16* to, int64_t group, int64_t first, int64_t count) const {
    const DotWeights<T> weights{tables, weight, group_step(z, pass, weight), group_m, pass == Pass::InputGrad};
    weights.pack(to, group, first, count);
  }

  // One tile of outputs of a group and the packed source that it reads.
  struct Tile {
    int64_t group, n0, n1, i0, j0, height, width, rows, pitch;
    bool single;  // every output reads one position
  };
  int64_t tiles_h() const { return ceil_div(tables.taps.vertical.longest_count(), own.tile_h); }
  int64_t tiles_w() const { return ceil_div(tables.taps.horizontal.longest_count(), own.tile_w); }
  int64_t tiles_of_group() const { return ceil_div(z.n, own.images) * tiles_h() * tiles_w(); }
  Tile tile_at(int64_t group, int64_t index) const {
    Tile t;
    t.group = group;
    t.j0 = index % tiles_w() * own.tile_w;
    index /= tiles_w();
    t.i0 = index % tiles_h() * own.tile_h;
    t.n0 = index / tiles_h() * own.images;
    t.n1 = min_of(z.n, t.n0 + own.images);
    t.height = min_of(own.tile_h, tables.taps.vertical.longest_count() - t.i0);
    t.width = min_of(own.tile_w, tables.taps.horizontal.longest_count() - t.j0);
    t.single = tables.down.span == 1 && tables.across.span == 1;
    t.rows = tables.down.extent(t.height);
    t.pitch = t.single ? t.width : tables.pitch;
    return t;
  }
  void pack_tile(bfloat16* to, const Tile& t) const {
    View<T> view = source;
    view.data += t.group * group_channels * view.channel;
    pack_source(to, tables, view, t.n0, t.n1, t.i0, t.j0, t.rows, t.pitch);
  }

  // All phases of a tile for outputs [m_begin, m_end); `weights` holds their blocks.
  void multiply(const Tile& t, const bfloat16* x, const bfloat16* weights, int64_t m_begin, int64_t m_end) const {
    for (int64_t fh = 0; fh < tables.taps.vertical.phases(); ++fh) {
      const int64_t height = min_of(t.height, tables.taps.vertical.count(fh) - t.i0);
      for (int64_t fw = 0; fw < tables.taps.horizontal.phases() && height > 0; ++fw) {
        const int64_t width = min_of(t.width, tables.taps.horizontal.count(fw) - t.j0);
        if (width > 0) multiply_phase(t, fh, fw, height, width, x, weights, m_begin, m_end);
      }
    }
  }

  // Lines are rows of outputs; where every output reads one position, all outputs of the tile are one line.
  void multiply_phase(const Tile& t, int64_t fh, int64_t fw, int64_t height, int64_t width, const bfloat16* x,
                      const bfloat16* weights, int64_t m_begin, int64_t m_end) const {
    alignas(64) float out[kDotRows * 2 * kDotLanes];
    const int64_t phase = fh * tables.taps.horizontal.phases() + fw, images = t.n1 - t.n0;
    const int64_t row_step = tables.taps.vertical.output_step() * result.row;
    const int64_t column_step = tables.taps.horizontal.output_step() * result.column;
    DotRows a;
    a.pitch = tables.across.output_step * group_channels;
    a.segment = tables.segment + tables.segment_begin[phase];
    a.segments = tables.segment_begin[phase + 1] - tables.segment_begin[phase];
    a.block = block_size();
    a.start_pitch = 0;
    a.out = out;
    const bool joined = t.single && width == t.pitch && height == t.rows;
    const int64_t length = joined ? images * height * width : width;
    const int rows = dot_tile_rows(length);
    for (int64_t m = m_begin; m < m_end;) {
      const int blocks_now = dot_tile_blocks(rows, ceil_div(m_end - m, kDotLanes));
      const int64_t lanes = min_of(blocks_now * kDotLanes, m_end - m);
      a.w = weights + (m - m_begin) / kDotLanes * block_size();
      a.start = bias + t.group * blocks() * kDotLanes + m;
      a.out_pitch = blocks_now * kDotLanes;
      T* const corner = result.data + t.n0 * result.n + (t.group * group_m + m) * result.channel +
                        (fh + t.i0 * tables.taps.vertical.output_step()) * result.row +
                        (fw + t.j0 * tables.taps.horizontal.output_step()) * result.column;
      for (int64_t n = 0; n < (joined ? 1 : images); ++n) {
        for (int64_t p = 0; p < (joined ? 1 : height); ++p) {
          const bfloat16* const line = x + (n * t.rows + p * tables.down.output_step) * t.pitch * group_channels;
          T* const to = corner + n * result.n + p * row_step;
          for (int64_t q = 0; q < length; q += rows) {
            const int now = int(min_of(rows, length - q));
            a.x = line + q * a.pitch;
            pairs_tile(a, now, blocks_now);
            if (!joined) {
              write_rows(finish_sums, out, a.out_pitch, now, lanes, to + q * column_step, result.channel, column_step);
              continue;
            }
            for (int64_t i = 0; i < now;) {
              const int64_t column = (q + i) % width, row = (q + i) / width;
              const int64_t count = min_of(now - i, width - column);
              write_rows(finish_sums, out + i * a.out_pitch, a.out_pitch, count, lanes,
                         corner + row / height * result.n + row % height * row_step + column * column_step,
                         result.channel, column_step);
              i += count;
            }
          }
        }
      }
      for (int64_t n = t.n0; n < t.n1; ++n)
        finish_results(finish_sums, true, buffers, 1, {n, t.group * group_m + m, lanes, t.i0, height, t.j0, width});
      m += blocks_now * kDotLanes;
    }
  }

  // Weights are packed once, and each task packs a tile of the source ...
  void run_tile(int64_t index, bfloat16* scratch) const {
    const int64_t parts_m = ceil_div(group_m, own.task_m), m0 = index % parts_m * own.task_m;
    index /= parts_m;
    const Tile t = tile_at(index / tiles_of_group(), index % tiles_of_group());
    pack_tile(scratch, t);
    multiply(t, scratch, packed + (t.group * blocks() + m0 / kDotLanes) * block_size(), m0,
             min_of(group_m, m0 + own.task_m));
  }
  // ... or, where there is more to pack of the weights, the other way round.
  void run_block(int64_t index, bfloat16* scratch) const {
    const int64_t parts_m = ceil_div(group_m, own.task_m), m0 = index % parts_m * own.task_m;
    const int64_t part = index / parts_m % own.splits, group = index / parts_m / own.splits;
    const int64_t m1 = min_of(group_m, m0 + own.task_m), tiles = tiles_of_group();
    pack_weights(scratch, group, m0 / kDotLanes, ceil_div(m1 - m0, kDotLanes));
    for (int64_t i = part_begin(tiles, own.splits, part); i < part_begin(tiles, own.splits, part + 1); ++i)
      multiply(tile_at(group, i), packed + (group * tiles + i) * own.channel_pitch, scratch, m0, m1);
  }
};

template <class T>
void run_implicit_gather(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b,
                         const Executor& executor) {
  const int64_t group_channels = source_channels(z, pass);
  const ImplicitGemmPlan& own = plan.own<ImplicitGemmPlan>();
  Carver memory(b.workspace);
  DotWorkspace<bfloat16> w = dot_workspace<bfloat16>(z, pass, own, memory);
  w.tables.build(own.tile_w, group_channels);
  Carver kept(b.kept);
  if (own.kept) w.packed = dot_weights<bfloat16>(z, pass, kept);
  DotGather<T> task{z,
                    own,
                    w.tables,
                    pass,
                    b,
                    view_of<T>(source_of(pass, b), 1),
                    view_of<T>(result_of(pass, b), 1),
                    weights_by_role<T>(pass, b),
                    result_channels(z, pass),
                    group_channels,
                    w.bias,
                    w.packed};
  const int64_t blocks = task.blocks(), lanes = blocks * kDotLanes;
  for (int64_t group = 0; group < z.groups; ++group)
    pack_bias<T>(task.bias + group * lanes, b, group * task.group_m, task.group_m, lanes);
  if (own.schedule == DotSchedule::Source) {
    CONV_EXT_RUNS("source");
    const int64_t tiles = task.tiles_of_group();
    parallel_for(executor, z.groups * tiles, 0, [&](int64_t index, void*) {
      task.pack_tile(task.packed + index * task.own.channel_pitch, task.tile_at(index / tiles, index % tiles));
    });
    parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
      Carver local(scratch);
      task.run_block(index, dot_scratch<bfloat16>(z, pass, own, local).packed);
    });
    return;
  }
  CONV_EXT_RUNS("weights");
  const int64_t parts = ceil_div(blocks, kDotBlocks);
  parallel_for(executor, b.packed == PackedWeights::Kept ? 0 : z.groups * parts, 0, [&](int64_t index, void*) {
    const int64_t group = index / parts, first = index % parts * kDotBlocks;
    task.pack_weights(task.packed + (group * blocks + first) * task.block_size(), group, first,
                      min_of(kDotBlocks, blocks - first));
  });
  if (b.packed == PackedWeights::Make) return;
  parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
    Carver local(scratch);
    task.run_tile(index, dot_scratch<bfloat16>(z, pass, own, local).packed);
  });
}

}  // namespace conv_ext

#endif
