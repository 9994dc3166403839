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
// Where the weights are large and positions few, all of the source is packed first, and the tasks are panels, which
// pack their weights between the products of the first 32 positions. Other schedules of the same sums, for 1x1 kernels,
// are in tiles_line.h, where run_tiles_gather begins.
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

// The same, while the weights are packed: those of a block before its first step.
template <class T, int parts>
struct PackingSteps : GatherSteps {
  PanelPacker<T, parts>* packer;
  int64_t its_block = 0;

  void next() {
    GatherSteps::next();
    if (tap != 0) return;
    packer->pack_until(++its_block + 1);
    tiles_fence();
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
  const Finish<T, float> finish_sums{z, buffers};
  static constexpr int64_t kPartsBytes = parts * kStepBytes;

  const Axis& vertical() const { return tables.taps.taps.vertical; }
  const Axis& horizontal() const { return tables.taps.taps.horizontal; }
  int64_t blocks() const { return tile_blocks(channels); }
  int64_t panels() const { return tile_blocks(group_m); }
  int64_t bytes_of_panel() const { return panel_bytes(z, channels, parts); }
  int64_t part_bytes() const { return own.channel_pitch * int64_t(sizeof(bfloat16)); }
  int64_t bytes_of_tile() const { return packed_tile_bytes(channels, parts, part_bytes()); }
  int64_t tiles() const { return tiles_of_group(z, own, vertical(), horizontal()); }

  // A panel, or of its blocks of channels those from `block` on.
  PanelPacker<T, parts> packer_of(char* to, int64_t group, int64_t m, int64_t block, int64_t last,
                                  typename PanelPacker<T, parts>::Rows& rows) const {
    View<T> w = weight;
    w.data += group * group_step(z, pass, weight) + m * weight.n;
    return {tables, w, min_of(kTileEdge, group_m - m), channels, z.r * z.s, z.s, to, block, last, rows};
  }
  void pack_weights(char* to, int64_t group, int64_t m, int64_t block) const {
    typename PanelPacker<T, parts>::Rows memory;
    PanelPacker<T, parts> packer = packer_of(to, group, m, block, block + 1, memory);
    if (own.schedule != DotSchedule::Lanes) return packer.pack_until(block + 1);
    const TilePacker<T, parts> rows{kStepBytes, 64, min_of(kTileEdge, channels - block * kTileEdge)};
    to += block * kPartsBytes;
    rows.pack(to, packer.weights.data + block * kTileEdge * weight.channel, weight.channel, weight.n, packer.outputs);
    rows.clear(to + packer.outputs * 64, kTileEdge - packer.outputs);
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
  // Scales 16 sums of parts back, and adds the bias. Whether one of them is not finite: parts of Inf and NaN are NaN,
  // and what overflows may have been finite.
  static __attribute__((always_inline)) bool finish(float* sums, __m512 biases) {
    const __m512 v = _mm512_fmadd_ps(_mm512_load_ps(sums), _mm512_set1_ps(parts > 1 ? kSumScale : 1.0f), biases);
    _mm512_store_ps(sums, v);
    return parts > 1 && _mm512_cmp_ps_mask(_mm512_sub_ps(v, v), _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0;
  }
  // Forms such a sum anew.
  void mend(float* sum, int64_t n, int64_t channel, int64_t h, int64_t w) const {
    if (*sum - *sum != 0) *sum = float(sum_again<T>(z, pass, buffers, n, channel, h, w));
  }
  void write_block(float* sums, const Positions& at, int64_t m, int64_t first, int64_t count) const {
    const int64_t lanes = min_of(kTileEdge, group_m - m);
    const float* const biases = bias + at.group * panels() * kTileEdge + m;
    // Neighbours that belong together are columns, between which lie those of the other images.
    const int64_t step = at.images, pitch = step * kTileEdge;
    for (int64_t j = 0; j < min_of(step, count); ++j)
      for (int64_t i = j, run = 0; i < count; i += run * step) {
        const int64_t image = (first + i) % step, position = (first + i) / step;
        const int64_t column = position % at.pitch, row = position / at.pitch;
        run = min_of(ceil_div(count - i, step), (column < at.width ? at.width : at.pitch) - column);
        const int64_t n = at.n0 + row / at.height + image;
        if (column >= at.width || n >= at.n1) continue;
        const int64_t h = at.h0 + row % at.height * at.step_h, w = at.w0 + column * at.step_w;
        bool bad = false;
        for (int64_t q = 0; q < run; ++q)
          for (int64_t e = 0; e < kTileEdge; e += 16)
            bad |= finish(sums + i * kTileEdge + q * pitch + e, _mm512_load_ps(biases + e));
        for (int64_t q = 0; q < run && bad; ++q)
          for (int64_t l = 0; l < lanes; ++l)
            mend(sums + i * kTileEdge + q * pitch + l, n, at.group * group_m + m + l, h, w + q * at.step_w);
        write_rows(
            finish_sums, sums + i * kTileEdge, pitch, run, lanes,
            result.data + n * result.n + (at.group * group_m + m) * result.channel + h * result.row + w * result.column,
            result.channel, at.step_w * result.column);
        finish_results(finish_sums, true, buffers, 1, {n, at.group * group_m + m, lanes, h, 1, w, run});
      }
  }

  // A panel for all phases of a tile. What is not packed of it yet is packed between the first products.
  void multiply_tile(const Tile& t, const char* x, const char* panel, int64_t m,
                     PanelPacker<T, parts>* packer = nullptr) const {
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
        multiply_phase(at, fh * horizontal().phases() + fw, x, panel, m, packer);
      }
    }
  }
  void multiply_phase(const Positions& at, int64_t phase, const char* x, const char* panel, int64_t m,
                      PanelPacker<T, parts>* packer) const {
    alignas(64) float sums[kTileEdge * kTileEdge];
    const int64_t begin = tables.taps.taps.begin[phase], taps = tables.taps.taps.count(phase);
    const TilePitch pitch{kTileBytes, part_bytes(), kTileBytes, kStepBytes};
    for (int64_t f = 0; f < at.count(); f += kTileEdge) {
      const int64_t count = min_of(kTileEdge, at.count() - f);
      const GatherSteps steps{
          x + f * 64, panel + begin * blocks() * kPartsBytes, tables.taps.offset + begin, taps, parts * part_bytes(),
          kPartsBytes};
      if (packer != nullptr && packer->more() && taps > 0) {
        packer->pack_until(1);
        const auto pack_next = [&](int) {
          if (packer->more()) packer->pack_next();
        };
        multiply_rows<parts>(PackingSteps<T, parts>{steps, packer}, blocks() * taps, pitch, count, sums, false,
                             pack_next);
      } else {
        multiply_rows<parts>(steps, blocks() * taps, pitch, count, sums, false);
      }
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
  void run_panels(int64_t index, char* scratch) const {
    const int64_t tasks_m = ceil_div(group_m, own.task_m), m0 = index % tasks_m * own.task_m;
    const int64_t part = index / tasks_m % own.splits, group = index / tasks_m / own.splits;
    const Range its = part_of(tiles(), own.splits, part);
    const TileScope scope;
    for (int64_t i = its.first; i < its.last; ++i)
      for (int64_t m = m0; m < min_of(group_m, m0 + own.task_m); m += kTileEdge) {
        char* const panel = scratch + (m - m0) / kTileEdge * bytes_of_panel();
        const Tile tile = tile_at(group, i);
        const char* const x = packed + (group * tiles() + i) * bytes_of_tile();
        if (i > its.first) {
          multiply_tile(tile, x, panel, m);
          continue;
        }
        typename PanelPacker<T, parts>::Rows rows;
        PanelPacker<T, parts> packer = packer_of(panel, group, m, 0, blocks(), rows);
        multiply_tile(tile, x, panel, m, &packer);
        packer.pack_until(blocks());
      }
  }
};

}  // namespace conv_ext

#endif
