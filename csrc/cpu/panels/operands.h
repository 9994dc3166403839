// The operands of forward and input_grad by panels: how channels, taps and phases are cut, and the packing of weights.
#pragma once

#include "../base/pack.h"
#include "tile.h"
#include "layout.h"

namespace conv_ext {

// The taps of one phase after the other.
struct TapTable {
  int64_t* row;  // (R S) source position of the tap for output 0 of its phase
  int64_t* column;
  int64_t* weight;  // (R S) r * S + s
  int64_t* begin;   // (phases + 1)

  // Every `joined` taps of a row are one.
  void build(const Axis& vertical, const Axis& horizontal, int64_t joined, Carver& memory) {
    const int64_t taps = vertical.taps * horizontal.taps, phases = vertical.phases() * horizontal.phases();
    row = memory.take<int64_t>(taps);
    column = memory.take<int64_t>(taps);
    weight = memory.take<int64_t>(taps);
    begin = memory.take<int64_t>(phases + 1);
    int64_t next = 0;
    for (int64_t f = 0; f < phases; ++f) {
      begin[f] = next;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t r = tap / horizontal.taps, s = tap % horizontal.taps;
        if (vertical.phase_of(r) != f / horizontal.phases() || horizontal.phase_of(s) != f % horizontal.phases())
          continue;
        if (s % joined != 0) continue;
        row[next] = vertical.offset(r);
        column[next] = horizontal.offset(s);
        weight[next++] = tap;
      }
    }
    begin[phases] = next;
  }
};

// Where positions [first, last) of a phase lie, row by row of the output: visit(first position, n, i, j, count).
template <class Visit>
inline void visit_runs(int64_t first, int64_t last, int64_t height, int64_t width, Visit visit) {
  int64_t j = first % width, i = first / width % height, n = first / width / height;
  while (first < last) {
    const int64_t count = min_of(width - j, last - first);
    visit(first, n, i, j, count);
    first += count;
    j = 0;
    if (++i == height) i = 0, ++n;
  }
}

template <class A>
struct PanelsOperands {
  const ConvProblem& z;
  Axis vertical, horizontal;
  TapTable table;
  View<A> source, result, weight;  // weight seen as (gemm_m, channels, R, S)
  int64_t group_m, channels;
  bool along_channels;  // vectors run along the result's channels
  int64_t joined;       // taps of a row that are read as channels, being their neighbours; else 1
  A* packed_weight;
  const A* bias;
  int64_t bias_stride;
  bool relu;
  int64_t widest = kPanelV;  // vectors of a panel of weights

  static constexpr int L = kLanes<A>;

  // A panel: vectors [v0, v0 + v) of a group's channels, or rows [v0, v0 + v) where the vectors run along positions.
  struct Slice {
    int64_t m0, m, width;  // first channel, how many, and with those that fill up the last vector
  };
  int64_t slices() const {
    return along_channels ? ceil_div(ceil_div(group_m, L), widest) : ceil_div(group_m, panel_rows(1));
  }
  Slice slice_at(int64_t i) const {
    if (along_channels) {
      const int64_t vectors = ceil_div(group_m, L), v0 = part_begin(vectors, slices(), i),
                    v1 = part_begin(vectors, slices(), i + 1);
      return {v0 * L, min_of(group_m, v1 * L) - v0 * L, (v1 - v0) * L};
    }
    const int64_t m0 = part_begin(group_m, slices(), i), m = part_begin(group_m, slices(), i + 1) - m0;
    return {m0, m, m};
  }
  int64_t padded_m() const { return along_channels ? round_up(group_m, L) : group_m; }

  struct Phase {
    int64_t h, w, height, width, positions;
    const int64_t *row, *column, *weight;
    int64_t begin, taps;
    PanelBlocks blocks;
  };
  Phase phase_at(int64_t index) const {
    Phase f;
    f.h = index / horizontal.phases();
    f.w = index % horizontal.phases();
    f.height = vertical.count(f.h);
    f.width = horizontal.count(f.w);
    f.positions = z.n * f.height * f.width;
    f.begin = table.begin[index];
    f.taps = table.begin[index + 1] - f.begin;
    f.row = table.row + f.begin;
    f.column = table.column + f.begin;
    f.weight = table.weight + f.begin;
    f.blocks = panel_blocks(channels, f.taps);
    return f;
  }
  // One block of channels and taps is summed in one chain.
  struct Block {
    int64_t c0, c, t0, t;
    int64_t before;  // products of the blocks before it
  };
  Block block_at(const Phase& f, int64_t index) const {
    const PanelBlocks& p = f.blocks;
    const int64_t ic = index / p.taps, it = index % p.taps;
    Block b;
    b.c0 = part_begin(channels, p.channels, ic);
    b.c = part_begin(channels, p.channels, ic + 1) - b.c0;
    b.t0 = part_begin(f.taps, p.taps, it);
    b.t = part_begin(f.taps, p.taps, it + 1) - b.t0;
    b.before = b.c0 * f.taps + b.t0 * b.c;
    return b;
  }
  // (taps, channels, width) of a block.
  A* packed_at(int64_t group, const Phase& f, const Slice& s, const Block& b) const {
    return packed_weight + (group * z.r * z.s + f.begin) * padded_m() * channels + s.m0 * f.taps * channels +
           b.before * s.width;
  }
  const A* weight_at(int64_t group, int64_t m, int64_t c, int64_t tap) const {
    // (K, C/g): of a group's block, gemm_m is K for forward and C for input_grad.
    const bool inverse = vertical.inverse;
    const int64_t first = group * (inverse ? channels * weight.channel : group_m * weight.n);
    return weight.data + first + m * weight.n + c * weight.channel + tap / z.s * weight.row + tap % z.s * weight.column;
  }

  void pack_slice(int64_t group, const Phase& f, const Slice& s) const {
    // Whole vectors of taps are turned round, of which a phase with few of them would throw most away.
    const bool joined_taps = weight.n != 1 && weight.channel != 1 && weight.column == 1 && weight.row == z.s;
    const bool turned = joined_taps && 4 * f.taps >= z.r * z.s;
    for (int64_t i = 0; i < f.blocks.count(); ++i) {
      const Block b = block_at(f, i);
      A* const to = packed_at(group, f, s, b);
      if (s.m < s.width)
        for (int64_t j = 0; j < b.t * b.c; ++j)
          for (int64_t m = s.m; m < s.width; ++m) to[j * s.width + m] = A(0);
      if (turned) pack_joined(to, group, f, s, b);
    }
    // Tap by tap through all channels, so that memory is read in long runs.
    for (int64_t t = 0; t < f.taps && !turned; ++t)
      for (int64_t i = 0; i < f.blocks.count(); ++i) {
        const Block b = block_at(f, i);
        if (t >= b.t0 && t < b.t0 + b.t)
          pack_block(packed_at(group, f, s, b) + (t - b.t0) * b.c * s.width, s.width, 1,
                     weight_at(group, s.m0, b.c0, f.weight[t]), weight.channel, weight.n, b.c, s.m);
      }
  }
  // The taps of a channel, or of all channels, are neighbours in memory: they are turned round by whole vectors.
  void pack_joined(A* to, int64_t group, const Phase& f, const Slice& s, const Block& b) const {
    const int64_t taps = z.r * z.s;
    const bool joined = weight.channel == taps;
    const int64_t runs = joined ? 1 : b.c, length = joined ? b.c * taps : taps;
    for (int64_t run = 0; run < runs; ++run) {
      const A* const from = weight_at(group, s.m0, b.c0 + run, 0);
      for (int64_t m = 0; m < s.m; m += L) {
        const int64_t rows = min_of(L, s.m - m);
        int64_t tap = 0, c = run;
        for (int64_t j = 0; j < length; j += L) {
          const int64_t count = min_of(L, length - j);
          Vec<A> square[L];
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) square[l] = read_some<A>(from + (m + l) * weight.n + j, l < rows ? count : 0);
          transpose<A>(square);
          A row[L * L];
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) store(row + l * L, square[l]);
          for (int64_t l = 0; l < count; ++l) {
            const int64_t t = place_of(f, tap) - b.t0;
            if (t >= 0 && t < b.t) write_some<A, A>(to + (t * b.c + c) * s.width + m, load(row + l * L), rows);
            if (++tap == taps) tap = 0, ++c;
          }
        }
      }
    }
  }
  // A tap's place in its phase; -1 if it belongs to another one.
  int64_t place_of(const Phase& f, int64_t tap) const {
    if (f.taps == z.r * z.s) return tap;
    for (int64_t t = 0; t < f.taps; ++t)
      if (f.weight[t] == tap) return t;
    return -1;
  }

  int64_t phases() const { return vertical.phases() * horizontal.phases(); }

  void pack_weights(const Executor& executor) const {
    const int64_t small = int64_t(1) << 15;  // elements worth a task of their own
    const int64_t each = max_of(1, small / max_of(1, slice_at(0).width * channels * z.r * z.s));
    const int64_t count = z.groups * slices();
    parallel_for(executor, ceil_div(count, each), 0, [&](int64_t task, void*) {
      for (int64_t i = task * each; i < min_of(count, (task + 1) * each); ++i)
        for (int64_t f = 0; f < phases(); ++f) pack_slice(i / slices(), phase_at(f), slice_at(i % slices()));
    });
  }
};

}  // namespace conv_ext
