// forward and input_grad with vectors along the result's channels: each number of the source is spread over a vector
// and multiplied with the weights of kLanes channels. For few input channels, small maps and channels_last results.
//
//   pack all weights as panels
//   for each tile of outputs (in parallel):
//     pack the source that it reads
//     for each panel of weights, for each block of channels, for each few neighbouring outputs: broadcast_tile
//     scatter
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
  const A* x;             // packed source of the first output
  const int64_t* offset;  // (products)
  const A* weight;        // (products, V * kLanes)
  int64_t count, segments,
      apart;      // products that take part: `segments` runs of `count` whose beginnings are so far apart
  const A* bias;  // (V * kLanes), with which the sums begin, or nullptr
  A* out;         // J times V * kLanes, out_pitch apart
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
    const int64_t* offset = a.offset + s * a.apart;
    const A* weight = a.weight + s * a.apart * (V * L);
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

// The one place where the extent of such a tile becomes a template argument.
template <class A>
using BroadcastTile = void (*)(const BroadcastArguments<A>&);
template <class A, int V, int J = int(broadcast_positions(kVectorBytes, V))>
inline BroadcastTile<A> broadcast_tile_of_length(int64_t j) {
  if constexpr (J > 1) {
    if (j < J) return broadcast_tile_of_length<A, V, J - 1>(j);
  }
  return broadcast_tile<A, J, V>;
}
template <class A, int V = int(kBroadcastV)>
inline BroadcastTile<A> select_broadcast_tile(int64_t j, int64_t v) {
  if constexpr (V > 1) {
    if (v < V) return select_broadcast_tile<A, V - 1>(j, v);
  }
  return broadcast_tile_of_length<A, V>(j);
}

template <class A>
struct Broadcast : PanelsOperands<A> {
  using Base = PanelsOperands<A>;
  using Base::block_at, Base::channels, Base::group_m, Base::horizontal, Base::L, Base::packed_at, Base::padded_m,
      Base::phase_at, Base::phases, Base::relu, Base::result, Base::slice_at, Base::slices, Base::source,
      Base::vertical, Base::weight_at, Base::z;
  using typename Base::Block;
  using typename Base::Phase;
  using typename Base::Slice;

  Tables tables;
  A* packed_bias;  // (groups, padded_m), or nullptr
  // Whether products of the padding may show, and are added too: a weight is not finite, or a bias is -0.
  int32_t* whole;
  const BroadcastPlan& own;

  struct Range {
    int64_t first, last;
  };
  // Neighbouring outputs of a row: lanes of the packed source, and the columns of taps that take part.
  struct Run {
    int64_t column, image, count;
    Range taps;
  };
  struct Tile {
    int64_t n0, n1, i0, j0, height, width;
    int64_t packed_first, packed_count;  // channels
    const A* packed;
    Range* rows;  // (height) rows of taps
    Run* runs;
    int64_t* offset;
    A* sums;
  };

  // Of `count` taps, offset[i * step], those that lead outputs [first, last) to the source: they are neighbours.
  Range taps_of(const Axis& axis, const int64_t* offset, int64_t step, int64_t count, int64_t first,
                int64_t last) const {
    if (*whole != 0) return {0, count};
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
  int64_t cut_row(const Tile& t, const Phase& f, int64_t taps_w, int64_t longest) const {
    int64_t count = 0;
    const auto add = [&](int64_t column, int64_t columns, int64_t image, int64_t length) {
      t.runs[count++] = {column, image, length,
                         taps_of(horizontal, f.column, 1, taps_w, t.j0 + column, t.j0 + column + columns)};
    };
    const int64_t images = t.n1 - t.n0;
    if (own.images == 1) {
      const int64_t parts = ceil_div(t.width, longest);
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t column = part_begin(t.width, parts, i), length = part_begin(t.width, parts, i + 1) - column;
        add(column, length, 0, length);
      }
      return count;
    }
    const int64_t parts = ceil_div(images, longest);
    for (int64_t column = 0; column < t.width; ++column)
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t image = part_begin(images, parts, i);
        add(column, 1, image, part_begin(images, parts, i + 1) - image);
      }
    return count;
  }

  A* result_at(int64_t channel, const Phase& f, int64_t n, int64_t i, int64_t j) const {
    return result.data + n * result.n + channel * result.channel + (f.h + i * vertical.output_step()) * result.row +
           (f.w + j * horizontal.output_step()) * result.column;
  }
  int64_t column_step() const { return horizontal.output_step() * result.column; }

  // A block of channels for rows [first, last) of a tile, with one panel of weights. Whole vectors of a channels_last
  // result are summed where they belong, others in t.sums.
  bool in_place(const Slice& s) const { return result.channel == 1 && s.m == s.width; }
  void run_rows(const Tile& t, const Phase& f, int64_t group, const Slice& s, const Block& b, int64_t taps_w, A* sums,
                int64_t first, int64_t last, bool begin, bool end) const {
    const int64_t images = own.images, pitch = tables.columns.longest, v = s.width / L;
    const int64_t channel = group * group_m + s.m0;
    const int64_t runs = cut_row(t, f, taps_w, broadcast_positions(kVectorBytes, v));
    const A* const weight = packed_at(group, f, s, b);
    BroadcastArguments<A> a;
    a.bias = begin && packed_bias != nullptr ? packed_bias + group * padded_m() + s.m0 : nullptr;
    a.add = !begin;
    // A sum of products that round to zero may be -0, and padding would make it +0: it is, whatever is left out. Where
    // nothing is, -0 changes nothing.
    a.zero = *whole != 0 ? -A(0) : A(0);
    a.apart = taps_w * b.c;
    for (int64_t i = first; i < last; ++i) {
      const Range down = t.rows[i];
      for (int64_t q = 0; q < runs; ++q) {
        const Run& run = t.runs[q];
        const int64_t skipped = (down.first * taps_w + run.taps.first) * b.c;
        a.count = (run.taps.last - run.taps.first) * b.c;
        a.segments = down.last - down.first;
        if (a.count == a.apart) {
          a.count *= a.segments;
          a.segments = 1;
        }
        a.x = t.packed + (i * pitch + run.column) * images + run.image;
        a.offset = t.offset + skipped;
        a.weight = weight + skipped * s.width;
        if (in_place(s)) {
          a.out = result_at(channel, f, t.n0 + run.image, t.i0 + i, t.j0 + run.column);
          a.out_pitch = images > 1 ? result.n : column_step();
        } else {
          a.out = sums + (((i - first) * t.width + run.column) * (t.n1 - t.n0) + run.image) * s.width;
          a.out_pitch = s.width;
        }
        select_broadcast_tile<A>(run.count, v)(a);
        if (end && relu && in_place(s))
          for (int64_t j = 0; j < run.count; ++j) rectify_all<A>(a.out + j * a.out_pitch, s.width);
      }
    }
    if (end && !in_place(s)) scatter(t, f, channel, s, sums, first, last);
  }

  void scatter(const Tile& t, const Phase& f, int64_t channel, const Slice& s, A* sums, int64_t first,
               int64_t last) const {
    const int64_t images = t.n1 - t.n0, rows = last - first, apart = images * s.width;
    if (relu) rectify_all<A>(sums, images * rows * t.width * s.width);
    const bool joined = vertical.output_step() == 1 && result.row == t.width * column_step();
    for (int64_t n = t.n0; n < t.n1; ++n)
      for (int64_t i = first; i < last; i += joined ? rows : 1) {
        const A* const from = sums + (i - first) * t.width * apart + (n - t.n0) * s.width;
        const int64_t count = joined ? rows * t.width : t.width;
        A* const to = result_at(channel, f, n, t.i0 + i, t.j0);
        if (result.channel == 1)
          pack_block(to, column_step(), 1, from, apart, 1, count, s.m);
        else
          pack_block(to, result.channel, column_step(), from, 1, apart, s.m, count);
      }
  }

  // One phase of a tile, panels [s0, s1) of the weights. Where there are several blocks of channels, each is packed
  // when its turn comes, and the sums of all panels are kept; else they are written by a few rows at a time.
  void run_phase(Tile& t, const Phase& f, View<A> view, int64_t group, int64_t s0, int64_t s1, A* packed,
                 int64_t packed_height) const {
    t.height = min_of(own.tile_h, f.height - t.i0);
    t.width = min_of(own.tile_w, f.width - t.j0);
    if (t.height <= 0 || t.width <= 0) return;
    int64_t taps_w = 0;
    for (int64_t tap = 0; tap < z.s; ++tap) taps_w += horizontal.phase_of(tap) == f.w;
    for (int64_t i = 0; i < t.height; ++i)
      t.rows[i] = taps_of(vertical, f.row, taps_w, taps_w > 0 ? f.taps / taps_w : 0, t.i0 + i, t.i0 + i + 1);
    const int64_t blocks = f.blocks.count(), rows = own.rows;
    const int64_t images = t.n1 - t.n0, each = rows * t.width * images;
    for (int64_t index = 0; index < blocks; ++index) {
      const Block b = block_at(f, index);
      const bool begin = index == 0, end = index + 1 == blocks;
      if (f.taps > 0 && (t.packed_first != b.c0 || t.packed_count != b.c)) {
        t.packed_first = b.c0;
        t.packed_count = b.c;
        View<A> from = view;
        from.data += b.c0 * view.channel;
        pack_tile(packed, PackedTile{own.images, tables.columns.longest, own.channel_pitch}, from, b.c, t.n0, t.n1,
                  tables.rows, tables.columns, t.i0, t.j0, packed_height, false);
      }
      for (int64_t tap = 0; tap < f.taps; ++tap)
        for (int64_t c = 0; c < b.c; ++c)
          t.offset[tap * b.c + c] = tables.tap_offset[f.begin + tap] + c * own.channel_pitch;
      for (int64_t i = 0; i < t.height; i += rows)
        for (int64_t index_s = s0; index_s < s1; ++index_s) {
          const Slice s = slice_at(index_s);
          A* const sums = begin && end ? t.sums : t.sums + each * (s.m0 - slice_at(s0).m0);
          run_rows(t, f, group, s, b, taps_w, sums, i, min_of(t.height, i + rows), begin, end);
        }
    }
  }

  void run_task(int64_t index, void* scratch) const {
    const int64_t count_h = vertical.longest_count(), count_w = horizontal.longest_count();
    const int64_t tiles_h = ceil_div(count_h, own.tile_h), tiles_w = ceil_div(count_w, own.tile_w);
    const int64_t part = index % own.parts_m;
    index /= own.parts_m;
    Tile t;
    t.j0 = index % tiles_w * own.tile_w;
    index /= tiles_w;
    t.i0 = index % tiles_h * own.tile_h;
    index /= tiles_h;
    const int64_t group = index % z.groups;
    t.n0 = index / z.groups * own.images;
    t.n1 = min_of(z.n, t.n0 + own.images);
    t.packed_first = t.packed_count = -1;
    Carver local(scratch);
    t.rows = local.take<Range>(own.tile_h);
    t.runs = local.take<Run>(own.tile_w * own.images);
    t.offset = local.take<int64_t>(own.products);
    A* const packed = local.take<A>(own.tile_c * own.channel_pitch);
    t.packed = packed;
    memset(packed, 0, size_t(own.tile_c * own.channel_pitch) * sizeof(A));  // the padding
    t.sums = local.take<A>(0);
    View<A> view = source;
    view.data += group * channels * source.channel;
    const int64_t s0 = part_begin(slices(), own.parts_m, part), s1 = part_begin(slices(), own.parts_m, part + 1);
    for (int64_t phase = 0; phase < phases(); ++phase)
      run_phase(t, phase_at(phase), view, group, s0, s1, packed, min_of(own.tile_h, count_h - t.i0));
  }

  void pack_bias_and_weights(const Executor& executor) const {
    if (packed_bias != nullptr)
      for (int64_t m = 0; m < z.groups * padded_m(); ++m) {
        const int64_t group = m / padded_m(), channel = m % padded_m();
        const A value =
            channel < group_m ? load_one(Base::bias + (group * group_m + channel) * Base::bias_stride) : A(0);
        packed_bias[m] = value;
        if (value == A(0) && __builtin_signbit(value)) *whole = 1;
      }
    const int64_t small = int64_t(1) << 15;  // elements worth a task of their own
    const int64_t each = max_of(1, small / max_of(1, slice_at(0).width * channels * z.r * z.s));
    const int64_t count = z.groups * slices();
    parallel_for(executor, ceil_div(count, each), 0, [&](int64_t task, void*) {
      for (int64_t i = task * each; i < min_of(count, (task + 1) * each); ++i)
        for (int64_t f = 0; f < phases(); ++f) pack_checked(i / slices(), phase_at(f), slice_at(i % slices()));
    });
  }
  void pack_checked(int64_t group, const Phase& f, const Slice& s) const {
    Base::pack_slice(group, f, s);
    const A* const packed = packed_at(group, f, s, block_at(f, 0));
    Vec<A> zeros{};
    for (int64_t i = 0; i < f.taps * channels * s.width; i += L) zeros += load(packed + i) * A(0);
    bool finite = true;
    for (int l = 0; l < L; ++l) finite = finite && zeros[l] == A(0);
    if (!finite) __atomic_store_n(whole, 1, __ATOMIC_RELAXED);
  }
};

template <class A>
void run_broadcast(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  const bool inverse = pass == Pass::InputGrad;
  const BroadcastPlan& own = plan.own<BroadcastPlan>();
  Carver memory(b.workspace);
  View<A> weight = view_of<A>(b.weight, 1);
  if (inverse) weight = {weight.data, weight.channel, weight.n, weight.row, weight.column};
  Broadcast<A> task{{z,
                     vertical_axis(z, pass),
                     horizontal_axis(z, pass),
                     {},
                     view_of<A>(inverse ? b.output : b.input, 1),
                     view_of<A>(inverse ? b.input : b.output, 1),
                     weight,
                     inverse ? z.group_c() : z.group_k(),
                     inverse ? z.group_k() : z.group_c(),
                     true,
                     1,
                     nullptr,
                     static_cast<const A*>(b.bias),
                     b.bias_stride,
                     b.relu,
                     own.vectors},
                    make_tables(z, pass, own.tile_h, own.tile_w, own.images, memory),
                    nullptr,
                    nullptr,
                    own};
  task.table.build(task.vertical, task.horizontal, 1, memory);
  task.whole = memory.take<int32_t>(1);
  *task.whole = 0;
  if (b.bias != nullptr) task.packed_bias = memory.take<A>(z.groups * task.padded_m());
  task.packed_weight = memory.take<A>(z.groups * task.padded_m() * task.channels * z.r * z.s);
  task.pack_bias_and_weights(executor);
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });
}

}  // namespace conv_ext
