// The matrix product in AMX's tiles, forward and input_grad: rows are positions, lanes the result's channels.
//
//   pack all weights: panels of 32 outputs
//   for each tile of outputs of a group (in parallel):
//     pack the source that it reads: [c/32][part][position][32], a plane for each residue of the stride
//     for each panel, phase, 32 positions: multiply all channels and taps; scale, add the bias, write
//
// Positions are numbered through the padded width, several images side by side where they are small: a tap is the same
// distance for all of them, and what is between two rows is computed and not written.
//
// Other schedules of the same sums, with the same bits: all of the source is packed first, and the tasks are panels,
// which pack their weights (deep layers: large weights, few positions); or positions are a line, of which the next 32
// are packed between the products of these (1x1 kernels whose source has neighbouring channels). Start reading at
// run_tiles_gather, at the end.
#pragma once

#include "../reference/reference.h"
#include "tiles_pack.h"

#if defined(CONV_EXT_AMX)

namespace conv_ext {

// The steps of a block: 32 channels at a time, of these all taps.
struct GatherSteps {
  const char *block, *weights;
  const int64_t* offset;  // (taps) positions
  int64_t taps, block_pitch, weights_pitch;
  int64_t tap = 0;

  const char* x() const { return block + offset[tap] * 64; }
  const char* w() const { return weights; }
  void next() {
    weights += weights_pitch;
    if (++tap < taps) return;
    tap = 0;
    block += block_pitch;
  }
};

// Packs 32 positions of a line, one position's 32 channels at a time.
template <class T, int parts>
struct LinePacker {
  TilePacker<T, parts> packer;
  View<T> view;
  int64_t height, width;
  int64_t position, last;  // in the line of all images
  char* to;
  int64_t channel = 0;
  const T* from = nullptr;

  bool more() const { return position < last; }
  __attribute__((always_inline)) void pack_next() {
    if (channel == 0) {
      const int64_t row = position / width;
      from = view.data + row / height * view.n + row % height * view.row + position % width * view.column;
    }
    packer.pack_neighbours(to + channel / kTileEdge * packer.block_pitch(), from, channel);
    channel += kTileEdge;
    if (channel < packer.channels) return;
    channel = 0;
    ++position;
    to += packer.position_pitch;
  }
};

template <class T, int parts>
struct TilesGather {
  const ConvProblem& z;
  const ImplicitGemmPlan& own;
  Pass pass;
  const Buffers& buffers;
  TileTables tables;
  View<T> source, result, weight;  // weight seen as (channels of a group's result, of its source, R, S)
  float* bias;                     // (groups, panels, 32)
  char* packed;                    // what all tasks share: the weights, or the tiles of the source
  int64_t group_m, channels;
  static constexpr int64_t kPartsBytes = parts * kStepBytes;

  const Axis& vertical() const { return tables.taps.taps.vertical; }
  const Axis& horizontal() const { return tables.taps.taps.horizontal; }
  int64_t blocks() const { return tile_blocks(channels); }
  int64_t panels() const { return tile_blocks(group_m); }
  int64_t bytes_of_panel() const { return panel_bytes(z, channels, parts); }
  int64_t part_bytes() const { return own.channel_pitch * int64_t(sizeof(bfloat16)); }
  int64_t bytes_of_tile() const { return packed_tile_bytes(channels, parts, part_bytes()); }
  int64_t tiles() const { return tiles_of_group(z, own, vertical(), horizontal()); }

  void pack_weights(char* to, int64_t group, int64_t panel, int64_t block) const {
    View<T> w = weight;
    w.data += group * group_step(z, pass, weight) + panel * kTileEdge * weight.n + block * kTileEdge * weight.channel;
    const PanelPacker<T, parts> packer{tables, z.r * z.s, z.s};
    packer.pack(to, w, min_of(kTileEdge, group_m - panel * kTileEdge), min_of(kTileEdge, channels - block * kTileEdge),
                block);
  }

  // One tile of outputs of a group.
  struct Tile {
    int64_t group, n0, n1, i0, j0, height, width;
  };
  Tile tile_at(int64_t group, int64_t index) const {
    const int64_t across = ceil_div(horizontal().longest_count(), own.tile_w);
    const int64_t down = ceil_div(vertical().longest_count(), own.tile_h);
    Tile t;
    t.group = group;
    t.j0 = index % across * own.tile_w;
    t.i0 = index / across % down * own.tile_h;
    t.n0 = index / across / down * own.images;
    t.n1 = min_of(z.n, t.n0 + own.images);
    t.height = min_of(own.tile_h, vertical().longest_count() - t.i0);
    t.width = min_of(own.tile_w, horizontal().longest_count() - t.j0);
    return t;
  }
  View<T> source_of_group(int64_t group) const {
    View<T> view = source;
    view.data += group * channels * source.channel;
    return view;
  }
  void pack_tile(char* to, const Tile& t) const {
    const TilePacker<T, parts> packer{part_bytes(), own.images * 64, channels};
    const View<T> view = source_of_group(t.group);
    for_each_run(
        tables.taps, own.images, view, t.n0, t.n1, t.i0, t.j0, t.height,
        [&](int64_t at, int64_t positions, const T* from) {
          packer.pack(to + at * 64, from, view.channel, tables.taps.columns.step * view.column, positions);
        },
        [&](int64_t at, int64_t positions) { packer.clear(to + at * 64, positions); });
  }

  // The positions of one phase that sums belong to: columns of rows of images, number by number.
  struct Positions {
    int64_t group, n0, n1, h0, w0;  // the first output, in the result
    int64_t height, width, pitch, rows,
        images;              // width of `pitch` are outputs; `images` of one position are neighbours
    int64_t step_h, step_w;  // between outputs, in the result
    int64_t count() const { return ((rows - 1) * pitch + width) * images; }
  };
  // Sums of parts are scaled back. Parts of Inf and NaN are NaN, and what overflows may have been finite: such sums are
  // formed anew.
  void finish(float* sums, int64_t rows, int64_t lanes, const float* biases, const Positions& at, int64_t n, int64_t m,
              int64_t h, int64_t w) const {
    const __m512 scale = _mm512_set1_ps(parts > 1 ? kSumScale : 1.0f);
    __m512 check = _mm512_setzero_ps();
    for (int64_t i = 0; i < rows * kTileEdge; i += 16) {
      const __m512 v = _mm512_fmadd_ps(_mm512_load_ps(sums + i), scale, _mm512_load_ps(biases + i % kTileEdge));
      _mm512_store_ps(sums + i, v);
      check = _mm512_fmadd_ps(v, _mm512_setzero_ps(), check);
    }
    if (parts > 1 && _mm512_cmp_ps_mask(check, check, _CMP_UNORD_Q) != 0)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t l = 0; l < lanes; ++l)
          if (float* const sum = sums + i * kTileEdge + l; *sum - *sum != 0)
            *sum = float(sum_again<T>(z, pass, buffers, n, at.group * group_m + m + l, h, w + i * at.step_w));
    if (buffers.relu) rectify_all<T, float>(sums, rows * kTileEdge);
  }
  void write_block(float* sums, const Positions& at, int64_t m, int64_t first, int64_t count) const {
    const int64_t lanes = min_of(kTileEdge, group_m - m);
    const float* const biases = bias + at.group * panels() * kTileEdge + m;
    for (int64_t i = 0, run = 0; i < count; i += run) {
      const int64_t image = (first + i) % at.images, position = (first + i) / at.images;
      const int64_t column = position % at.pitch, row = position / at.pitch;
      // Neighbours that belong together: columns, or images of one of them.
      run = at.images > 1 ? 1 : min_of(count - i, (column < at.width ? at.width : at.pitch) - column);
      const int64_t n = at.n0 + row / at.height + image;
      if (column >= at.width || n >= at.n1) continue;
      const int64_t h = at.h0 + row % at.height * at.step_h, w = at.w0 + column * at.step_w;
      finish(sums + i * kTileEdge, run, lanes, biases, at, n, m, h, w);
      write_rows(
          sums + i * kTileEdge, kTileEdge, run, lanes,
          result.data + n * result.n + (at.group * group_m + m) * result.channel + h * result.row + w * result.column,
          result.channel, at.step_w * result.column);
    }
  }

  // A panel for all phases of a tile.
  void multiply_tile(const Tile& t, const char* x, const char* panel, int64_t m) const {
    const int64_t step_h = vertical().output_step(), step_w = horizontal().output_step();
    const int64_t pitch = tables.taps.columns.longest;
    for (int64_t fh = 0; fh < vertical().phases(); ++fh) {
      const int64_t height = min_of(t.height, vertical().count(fh) - t.i0);
      for (int64_t fw = 0; fw < horizontal().phases() && height > 0; ++fw) {
        const int64_t width = min_of(t.width, horizontal().count(fw) - t.j0);
        if (width <= 0) continue;
        const Positions at{
            t.group,    t.n0,   t.n1,  fh + t.i0 * step_h, fw + t.j0 * step_w, height, width, pitch, height,
            own.images, step_h, step_w};
        multiply_phase(at, fh * horizontal().phases() + fw, x, panel, m);
      }
    }
  }
  void multiply_phase(const Positions& at, int64_t phase, const char* x, const char* panel, int64_t m) const {
    alignas(64) float sums[kTileEdge * kTileEdge];
    const int64_t begin = tables.taps.taps.begin[phase], taps = tables.taps.taps.count(phase);
    const TilePitch pitch{kTileBytes, part_bytes(), kTileBytes, kStepBytes};
    for (int64_t f = 0; f < at.count(); f += kTileEdge) {
      const int64_t count = min_of(kTileEdge, at.count() - f);
      const GatherSteps steps{
          x + f * 64, panel + begin * blocks() * kPartsBytes, tables.taps.offset + begin, taps, parts * part_bytes(),
          kPartsBytes};
      multiply_block<parts>(steps, blocks() * taps, pitch, count, sums, false);
      write_block(sums, at, m, f, count);
    }
  }

  char* shared_panel(int64_t group, int64_t panel) const {
    return packed + (group * panels() + panel) * bytes_of_panel();
  }
  void run_tile(int64_t index, char* scratch) const {
    const int64_t tasks_m = ceil_div(group_m, own.task_m), m0 = index % tasks_m * own.task_m;
    index /= tasks_m;
    const Tile t = tile_at(index / tiles(), index % tiles());
    pack_tile(scratch, t);
    const TileScope scope;
    for (int64_t m = m0; m < min_of(group_m, m0 + own.task_m); m += kTileEdge)
      multiply_tile(t, scratch, shared_panel(t.group, m / kTileEdge), m);
  }
  void run_panel(int64_t index, char* scratch) const {
    const int64_t m = index % panels() * kTileEdge;
    const int64_t part = index / panels() % own.splits, group = index / panels() / own.splits;
    for (int64_t block = 0; block < blocks(); ++block) pack_weights(scratch, group, m / kTileEdge, block);
    const TileScope scope;
    const Range its = part_of(tiles(), own.splits, part);
    for (int64_t i = its.first; i < its.last; ++i)
      multiply_tile(tile_at(group, i), packed + (group * tiles() + i) * bytes_of_tile(), scratch, m);
  }

  // A part of the line of all positions of a group, by 32.
  void run_line(int64_t index, char* scratch) const {
    static constexpr int64_t kNoOffset = 0;
    const int64_t group = index / own.splits, length = product(z.n, z.p, z.q);
    const Range its = part_of(ceil_div(length, kTileEdge), own.splits, index % own.splits);
    const Positions at{group, 0, z.n, 0, 0, z.p, z.q, z.q, z.n * z.p, 1, 1, 1};
    const int64_t block_bytes = blocks() * kPartsBytes;
    const auto packer_of = [&](int64_t block) {
      return LinePacker<T, parts>{{kStepBytes, 64, channels},
                                  source_of_group(group),
                                  z.p,
                                  z.q,
                                  block * kTileEdge,
                                  block < its.last ? min_of(length, (block + 1) * kTileEdge) : 0,
                                  scratch + block % 2 * block_bytes};
    };
    const TilePitch pitch{kTileBytes, kStepBytes, kTileBytes, kStepBytes};
    alignas(64) float sums[kTileEdge * kTileEdge];
    const TileScope scope;
    LinePacker<T, parts> packer = packer_of(its.first);
    while (packer.more()) packer.pack_next();
    // So many positions' 32 channels are packed in each step that the next block is done with the last panel.
    const int64_t each = ceil_div(kTileEdge, panels());
    for (int64_t block = its.first; block < its.last; ++block) {
      packer = packer_of(block + 1);
      const auto pack_next = [&](int i) __attribute__((always_inline)) {
        for (int64_t unit = part_of(each, kProducts<parts>, i).count(); unit > 0 && packer.more(); --unit)
          packer.pack_next();
      };
      const int64_t count = min_of(kTileEdge, length - block * kTileEdge);
      for (int64_t panel = 0; panel < panels(); ++panel) {
        const GatherSteps steps{
            scratch + block % 2 * block_bytes, shared_panel(group, panel), &kNoOffset, 1, kPartsBytes, kPartsBytes};
        multiply_block<parts>(steps, blocks(), pitch, count, sums, false, pack_next);
        write_block(sums, at, panel * kTileEdge, block * kTileEdge, count);
      }
      while (packer.more()) packer.pack_next();
    }
  }
};

template <class T, int parts>
void run_tiles_gather(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  const ImplicitGemmPlan& own = plan.own<ImplicitGemmPlan>();
  Carver memory(b.workspace);
  const TileWorkspace w = tile_workspace(z, pass, own, memory);
  TilesGather<T, parts> task{z,
                             own,
                             pass,
                             b,
                             w.tables,
                             view_of<T>(source_of(pass, b), 1),
                             view_of<T>(result_of(pass, b), 1),
                             weights_by_role<T>(pass, b),
                             w.bias,
                             w.packed,
                             result_channels(z, pass),
                             source_channels(z, pass)};
  const int64_t panels = task.panels(), blocks = task.blocks();
  task.tables.build(own, blocks);
  for (int64_t group = 0; group < z.groups; ++group)
    pack_bias<T>(task.bias + group * panels * kTileEdge, b, group * task.group_m, task.group_m, panels * kTileEdge);
  const auto scratch_of = [&](void* scratch) {
    Carver local(scratch);
    return tile_scratch(z, pass, own, local).packed;
  };
  if (own.schedule == DotSchedule::Source) {
    CONV_EXT_RUNS("source");
    parallel_for(executor, z.groups * task.tiles(), 0, [&](int64_t index, void*) {
      task.pack_tile(task.packed + index * task.bytes_of_tile(),
                     task.tile_at(index / task.tiles(), index % task.tiles()));
    });
    parallel_for(executor, plan.tasks, plan.scratch_bytes,
                 [&](int64_t index, void* scratch) { task.run_panel(index, scratch_of(scratch)); });
    return;
  }
  parallel_for(executor, z.groups * panels * blocks, 0, [&](int64_t index, void*) {
    const int64_t panel = index / blocks;
    task.pack_weights(task.shared_panel(0, panel), panel / panels, panel % panels, index % blocks);
  });
  if (own.schedule == DotSchedule::Line) {
    CONV_EXT_RUNS("line");
    parallel_for(executor, plan.tasks, plan.scratch_bytes,
                 [&](int64_t index, void* scratch) { task.run_line(index, scratch_of(scratch)); });
    return;
  }
  CONV_EXT_RUNS("weights");
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_tile(index, scratch_of(scratch)); });
}

}  // namespace conv_ext

#endif
