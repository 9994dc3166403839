// forward and input_grad with vectors along the result's channels: each number of the source is spread over a vector
// and multiplied with the weights of kLanes channels. For few input channels, small maps and channels_last results.
//
//   pack all weights as panels
//   for each tile of outputs (in parallel):
//     pack the source that it reads
//     for each panel of weights, for each block of channels, for each few neighbouring outputs: broadcast_tile
//     write the results
//
// The source is packed as for the direct algorithm, so that neighbouring outputs find their numbers side by side,
// whatever the layout, stride and dilation; where rows are short the neighbours are images. Taps that read nothing but
// padding are left out. Start reading at run_broadcast.
#pragma once

#include "../direct/direct.h"
#include "../panels/operands.h"
#include "layout.h"

namespace conv_ext {

template <class A>
struct BroadcastArguments {
  const A* x;                             // packed source of the first output
  const int64_t* offset;                  // (products)
  const A* weight;                        // (products, V * kLanes)
  int64_t count, segments, segment_step;  // products that take part: `segments` runs of `count`, so far apart
  const A* bias;                          // (V * kLanes), with which the sums begin, or nullptr
  A* out;                                 // J times V * kLanes, out_pitch apart
  int64_t out_pitch;
  bool add;  // the sums are added to what `out` holds
  A zero;    // added to every sum
};

template <class A, int J, int V>
void broadcast_tile(const BroadcastArguments<A>& a) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[J][V];
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[j][v] = a.bias != nullptr ? load(a.bias + v * L) : Vec<A>{};
  A* const out = a.out;
  const int64_t pitch = a.out_pitch;
  const bool add = a.add;
  if (add) {
    for (int64_t j = 0; j < J; ++j)
      for (int v = 0; v < V; ++v) __builtin_prefetch(out + j * pitch + v * L, 1);
  }
  for (int64_t s = 0; s < a.segments; ++s) {
    const int64_t* offset = a.offset + s * a.segment_step;
    const A* weight = a.weight + s * a.segment_step * (V * L);
    for (int64_t n = a.count; n > 0; --n) {
      const A* const x = a.x + *offset++;
      Vec<A> lanes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) lanes[v] = load(weight + v * L);
      weight += V * L;
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) {
        const Vec<A> number = splat(x[j]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[j][v] += number * lanes[v];
      }
    }
  }
  const Vec<A> zero = splat(a.zero);
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      A* const to = out + j * pitch + v * L;
      store(to, (add ? load(to) + sum[j][v] : sum[j][v]) + zero);
    }
}

template <class A>
using BroadcastTile = void (*)(const BroadcastArguments<A>&);
template <class A>
inline BroadcastTile<A> select_broadcast_tile(int64_t j, int64_t v) {
  return with_extent<int(kBroadcastV)>(v, [j](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    return with_extent<int(broadcast_positions(kMachine, V))>(
        j, [](auto outputs) -> BroadcastTile<A> { return broadcast_tile<A, decltype(outputs)::value, V>; });
  });
}

template <class A>
struct Broadcast {
  static constexpr int L = kLanes<A>;

  const BroadcastPlan& own;
  const PanelsOperands<A>& op;
  const PackedTaps& tables;
  A* packed_bias;  // (groups, padded_m)
  // Not 0: products of the padding may show, and are added too, for a weight is not finite, or a bias is -0.
  int32_t* adds_padding;

  struct Tile {
    int64_t n0, n1, i0, j0, height, width, group;
    int64_t s0, s1;                      // panels of weights
    int64_t packed_first, packed_count;  // channels whose source is packed
    BroadcastScratch<A> local;
    int64_t images() const { return n1 - n0; }
  };
  // What stays the same for the rows of a phase with one panel of weights.
  struct Chain {
    PanelsSlice s;
    PanelsChain b;
    int64_t taps_w;
    A* sums;
    bool begin, end;
  };

  // Of `count` taps, offset[i * step], those that lead outputs [first, last) to the source: they are neighbours.
  Range taps_of(const Axis& axis, const int64_t* offset, int64_t step, int64_t count, int64_t first,
                int64_t last) const {
    if (*adds_padding != 0) return {0, count};
    const auto reads = [&](int64_t i) {
      const int64_t low = first * axis.step() + offset[i * step], high = (last - 1) * axis.step() + offset[i * step];
      return high >= 0 && low < axis.source;
    };
    Range range{0, count};
    while (range.first < count && !reads(range.first)) ++range.first;
    while (range.last > range.first && !reads(range.last - 1)) --range.last;
    return range;
  }

  // Cuts a row of outputs into runs of at most `longest`; returns how many.
  int64_t cut_row(const Tile& t, const PanelsPhase& f, int64_t taps_w, int64_t longest) const {
    int64_t count = 0;
    const auto add = [&](int64_t column, int64_t columns, int64_t image, int64_t length) {
      t.local.runs[count++] = {column, image, length,
                               taps_of(op.horizontal, f.column, 1, taps_w, t.j0 + column, t.j0 + column + columns)};
    };
    if (own.images == 1) {
      const int64_t parts = ceil_div(t.width, longest);
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t column = part_begin(t.width, parts, i), length = part_begin(t.width, parts, i + 1) - column;
        add(column, length, 0, length);
      }
      return count;
    }
    const int64_t parts = ceil_div(t.images(), longest);
    for (int64_t column = 0; column < t.width; ++column)
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t image = part_begin(t.images(), parts, i);
        add(column, 1, image, part_begin(t.images(), parts, i + 1) - image);
      }
    return count;
  }

  // The last panel may have lanes without channels, and is then summed in the scratch and copied.
  bool is_in_place(const PanelsSlice& s) const { return own.in_place && s.m == s.width; }

  // A block of channels for rows [first, last) of a tile, with one panel of weights.
  void run_rows(const Tile& t, const PanelsPhase& f, const Chain& chain, int64_t first, int64_t last) const {
    const PanelsSlice& s = chain.s;
    const int64_t pitch = tables.columns.longest, v = s.width / L, taps_w = chain.taps_w;
    const int64_t channel = t.group * op.group_m + s.m0;
    const int64_t runs = cut_row(t, f, taps_w, broadcast_positions(kMachine, v));
    const A* const weight = op.packed_at(t.group, f, s, chain.b);
    const bool begin = chain.begin, end = chain.end, in_place = is_in_place(s);
    BroadcastArguments<A> a;
    a.bias = begin && op.buffers.bias != nullptr ? packed_bias + t.group * op.plan.padded_m + s.m0 : nullptr;
    a.add = !begin;
    // A sum of products that round to zero may be -0, and padding would make it +0: it is, whatever is left out. Where
    // nothing is, -0 changes nothing.
    a.zero = *adds_padding != 0 ? -A(0) : A(0);
    a.segment_step = taps_w * chain.b.c;
    for (int64_t i = first; i < last; ++i) {
      const Range down = t.local.rows[i];
      for (int64_t q = 0; q < runs; ++q) {
        const OutputRun& run = t.local.runs[q];
        const int64_t skipped = (down.first * taps_w + run.taps.first) * chain.b.c;
        a.count = (run.taps.last - run.taps.first) * chain.b.c;
        a.segments = down.last - down.first;
        if (a.count == a.segment_step) {
          a.count *= a.segments;
          a.segments = 1;
        }
        a.x = t.local.source + (i * pitch + run.column) * own.images + run.image;
        a.offset = t.local.offset + skipped;
        a.weight = weight + skipped * s.width;
        if (in_place) {
          a.out = op.result_at(channel, f, t.n0 + run.image, t.i0 + i, t.j0 + run.column);
          a.out_pitch = own.images > 1 ? op.result.n : op.column_step();
        } else {
          a.out = chain.sums + (((i - first) * t.width + run.column) * t.images() + run.image) * s.width;
          a.out_pitch = s.width;
        }
        select_broadcast_tile<A>(run.count, v)(a);
        if (end && op.buffers.relu && in_place)
          for (int64_t j = 0; j < run.count; ++j) rectify_all<A>(a.out + j * a.out_pitch, s.width);
      }
    }
    if (end && !in_place) scatter(t, f, channel, s, chain.sums, first, last);
  }

  // Copies the sums of rows [first, last) to their places.
  void scatter(const Tile& t, const PanelsPhase& f, int64_t channel, const PanelsSlice& s, A* sums, int64_t first,
               int64_t last) const {
    const int64_t rows = last - first, position_step = t.images() * s.width;
    if (op.buffers.relu) rectify_all<A>(sums, rows * t.width * position_step);
    const bool joined = op.vertical.output_step() == 1 && op.result.row == t.width * op.column_step();
    for (int64_t n = t.n0; n < t.n1; ++n)
      for (int64_t i = first; i < last; i += joined ? rows : 1) {
        const A* const from = sums + (i - first) * t.width * position_step + (n - t.n0) * s.width;
        const int64_t count = joined ? rows * t.width : t.width;
        op.write_sums(op.result_at(channel, f, n, t.i0 + i, t.j0), from, 1, position_step, s.m, count);
      }
  }

  // One phase of a tile. Where there are several blocks of channels, each is packed when its turn comes, and the sums
  // of all panels are kept; else they are written by a few rows at a time.
  void run_phase(Tile& t, const PanelsPhase& f, int64_t packed_height) const {
    t.height = min_of(own.tile_h, f.height - t.i0);
    t.width = min_of(own.tile_w, f.width - t.j0);
    if (t.height <= 0 || t.width <= 0) return;
    Chain chain{};
    for (int64_t tap = 0; tap < op.z.s; ++tap) chain.taps_w += op.horizontal.phase_of(tap) == f.w;
    const int64_t taps_h = chain.taps_w > 0 ? f.taps / chain.taps_w : 0;
    for (int64_t i = 0; i < t.height; ++i)
      t.local.rows[i] = taps_of(op.vertical, f.row, chain.taps_w, taps_h, t.i0 + i, t.i0 + i + 1);
    const int64_t blocks = f.blocks.count(), panel_sums = own.rows * t.width * t.images();
    for (int64_t index = 0; index < blocks; ++index) {
      chain.b = op.block_at(f, index);
      chain.begin = index == 0;
      chain.end = index + 1 == blocks;
      if (f.taps > 0) pack_source(t, chain.b, packed_height);
      for (int64_t tap = 0; tap < f.taps; ++tap)
        for (int64_t c = 0; c < chain.b.c; ++c)
          t.local.offset[tap * chain.b.c + c] = tables.offset[f.begin + tap] + c * own.channel_pitch;
      for (int64_t i = 0; i < t.height; i += own.rows)
        for (int64_t index_s = t.s0; index_s < t.s1; ++index_s) {
          chain.s = op.slice_at(index_s);
          chain.sums = t.local.sums + (blocks == 1 ? 0 : panel_sums * (chain.s.m0 - op.slice_at(t.s0).m0));
          run_rows(t, f, chain, i, min_of(t.height, i + own.rows));
        }
    }
  }
  // Packs the source of a block of channels, unless it is there.
  void pack_source(Tile& t, const PanelsChain& b, int64_t height) const {
    if (t.packed_first == b.c0 && t.packed_count == b.c) return;
    t.packed_first = b.c0;
    t.packed_count = b.c;
    View<A> from = op.source;
    from.data += (t.group * op.channels() + b.c0) * from.channel;
    pack_tile(t.local.source, PackedTile{own.images, tables.columns.longest, own.channel_pitch}, from, b.c, t.n0, t.n1,
              tables.rows, tables.columns, t.i0, t.j0, height, false);
  }

  void run_task(int64_t index, void* scratch) const {
    const int64_t count_h = op.vertical.longest_count(), count_w = op.horizontal.longest_count();
    const int64_t tiles_h = ceil_div(count_h, own.tile_h), tiles_w = ceil_div(count_w, own.tile_w);
    const int64_t part = index % own.parts_m;
    index /= own.parts_m;
    Tile t;
    t.j0 = index % tiles_w * own.tile_w;
    index /= tiles_w;
    t.i0 = index % tiles_h * own.tile_h;
    index /= tiles_h;
    t.group = index % op.z.groups;
    t.n0 = index / op.z.groups * own.images;
    t.n1 = min_of(op.z.n, t.n0 + own.images);
    t.s0 = part_begin(op.plan.panels, own.parts_m, part);
    t.s1 = part_begin(op.plan.panels, own.parts_m, part + 1);
    t.packed_first = t.packed_count = -1;
    Carver memory(scratch);
    t.local = broadcast_scratch<A>(own, memory);
    A* const packed = t.local.source;
    memset(packed, 0, size_t(own.tile_c * own.channel_pitch) * sizeof(A));  // the padding
    for (int64_t phase = 0; phase < op.phases(); ++phase)
      run_phase(t, op.phase_at(phase), min_of(own.tile_h, count_h - t.i0));
  }

  void pack_bias() const {
    const int64_t group_m = op.group_m, padded_m = op.plan.padded_m;
    for (int64_t group = 0; group < op.z.groups; ++group) {
      A* const biases = packed_bias + group * padded_m;
      conv_ext::pack_bias<A>(biases, op.buffers, group * group_m, group_m, padded_m);
      for (int64_t m = 0; m < group_m; ++m)
        if (biases[m] == A(0) && __builtin_signbit(biases[m])) *adds_padding = 1;
    }
  }
  void pack_checked(int64_t group, const PanelsPhase& f, const PanelsSlice& s) const {
    op.pack_slice(group, f, s);
    const A* const packed = op.packed_at(group, f, s, op.block_at(f, 0));
    Vec<A> zeros{};
    for (int64_t i = 0; i < f.taps * op.channels() * s.width; i += L) zeros += load(packed + i) * A(0);
    bool finite = true;
    for (int l = 0; l < L; ++l) finite = finite && zeros[l] == A(0);
    if (!finite) __atomic_store_n(adds_padding, 1, __ATOMIC_RELAXED);
  }
};

template <class A>
void run_broadcast(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  const BroadcastPlan& own = plan.own<BroadcastPlan>();
  Carver memory(b.workspace);
  BroadcastWorkspace<A> workspace = broadcast_workspace<A>(z, pass, own, memory);
  workspace.tables.build(own.tile_h, own.tile_w, own.images);
  const PanelsOperands<A> op(z, pass, own.weights, workspace.tables.taps, workspace.weights, b);
  const Broadcast<A> task{own, op, workspace.tables, workspace.bias, workspace.adds_padding};
  *workspace.adds_padding = 0;
  if (b.bias != nullptr) task.pack_bias();
  op.pack_weights(executor, [&](int64_t group, const auto& f, const auto& s) { task.pack_checked(group, f, s); });
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });
}

}  // namespace conv_ext
