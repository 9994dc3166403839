// forward and input_grad by panels: of the two operands of the matrix product one is read where it lies, scalar by
// scalar, and the other one becomes panels of vectors.
//
//   channels are neighbours (channels_last)      positions are neighbours
//     pack all weights as panels                   for each panel of positions (in parallel):
//     for each run of positions (in parallel):       for each block of channels and taps:
//       for each panel of weights:                      pack the source as a panel
//         for each block of channels and taps:          for each few rows of weights: panel_tile
//           for each few positions: panel_tile       scatter
//         scatter
//
// Positions are numbered through all images, so that none is lost at the end of a row. The order of the sums is the
// same either way, and follows from the channels and the taps alone. Start reading at run_panels_gather.
#pragma once

#include "operands.h"

namespace conv_ext {

template <class A>
struct PanelsGather : PanelsOperands<A> {
  using Base = PanelsOperands<A>;
  using Base::along_channels, Base::bias, Base::bias_stride, Base::block_at, Base::channels, Base::group_m,
      Base::horizontal, Base::joined, Base::L, Base::packed_at, Base::phase_at, Base::phases, Base::relu, Base::result,
      Base::slice_at, Base::slices, Base::source, Base::vertical, Base::weight, Base::weight_at, Base::z;
  using typename Base::Block;
  using typename Base::Phase;
  using typename Base::Slice;

  const PanelsPlan& own;

  A* result_at(int64_t channel, const Phase& f, int64_t n, int64_t i, int64_t j) const {
    return result.data + n * result.n + channel * result.channel + (f.h + i * vertical.output_step()) * result.row +
           (f.w + j * horizontal.output_step()) * result.column;
  }
  A* result_at_position(int64_t channel, const Phase& f, int64_t at) const {
    return result_at(channel, f, at / f.width / f.height, at / f.width % f.height, at % f.width);
  }
  int64_t column_step() const { return horizontal.output_step() * result.column; }
  // What the first tap reads for a position.
  const A* source_at_position(const A* from, const Phase& f, int64_t at) const {
    return from + at / f.width / f.height * source.n +
           (at / f.width % f.height * vertical.step() + f.row[0]) * source.row +
           (at % f.width * horizontal.step() + f.column[0]) * source.column;
  }
  // Elements between the results of neighbouring positions, throughout all images, with neighbouring channels; or 0.
  int64_t positions_apart(const Phase& f) const {
    const int64_t step = column_step(), row = vertical.output_step() * result.row;
    const bool even = (f.height == 1 || row == f.width * step) && (z.n == 1 || result.n == f.height * f.width * step);
    return even && result.channel == 1 ? step : 0;
  }
  A bias_at(int64_t channel) const { return load_one(bias + channel * bias_stride); }

  // The joined taps of one row where some of them lie in the padding. Returns the end of the copy.
  A* copy_window(A* to, const A* from, int64_t w) const {
    const int64_t each = channels / joined;
    for (int64_t s = 0; s < joined; ++s, ++w, from += each)
      for (int64_t c = 0; c < each; ++c) *to++ = w >= 0 && w < horizontal.source ? load_one(from + c) : A(0);
    return to;
  }
  bool reads_padding(const Phase& f) const {
    bool padded = false;
    for (int64_t t = 0; t < f.taps; ++t)
      padded = padded || f.row[t] < 0 || f.row[t] + (f.height - 1) * vertical.step() >= vertical.source ||
               f.column[t] < 0 || f.column[t] + (f.width - 1) * horizontal.step() + joined > horizontal.source;
    return padded;
  }
  // A run of zeros as long as the channels of a position are apart.
  int64_t zero_elements() const { return max_of(0, (channels - 1) * source.channel + 1); }

  // Vectors along channels: positions [first, last) and slices [s0, s1) of a group.
  void run_positions(const Phase& f, int64_t group, int64_t first, int64_t last, int64_t s0, int64_t s1,
                     void* scratch) const {
    const int64_t widest = ceil_div(ceil_div(group_m, L), slices()), positions = last - first;
    const int64_t tiles = ceil_div(positions, panel_rows(int(widest)));
    // Where no padding is read, the taps are offsets that all positions share; else each position has its own sources,
    // and those in the padding lead to zeros.
    const bool padded = reads_padding(f);
    const int64_t sources = padded ? f.taps : 1;
    Carver local(scratch);
    int64_t* const offset = local.take<int64_t>(f.taps);
    const A** const rows = local.take<const A*>(positions * sources);
    A* const sums = local.take<A>(positions * widest * L);
    A* const biases = local.take<A>(widest * L);
    int32_t* const wanted = local.take<int32_t>(kMostProducts);
    A* const zeros = local.take<A>(padded ? zero_elements() : 0);
    A* windows = local.take<A>(0);
    for (int64_t c = 0; padded && c < zero_elements(); ++c) zeros[c] = A(0);
    const A* const base = source.data + group * channels * source.channel;
    const int64_t step = horizontal.step();
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t k = part_begin(positions, tiles, tile), m = part_begin(positions, tiles, tile + 1) - k;
      const A** const to = rows + k * sources;
      visit_runs(first + k, first + k + m, f.height, f.width,
                 [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
                   const A** const run = to + (at - first - k);
                   const A* const image = base + n * source.n;
                   for (int64_t t = 0; t < sources; ++t) {
                     const int64_t h = i * vertical.step() + (padded ? f.row[t] : 0);
                     const int64_t columns = h >= 0 && h < vertical.source ? horizontal.source : 0;
                     int64_t w = j * step + (padded ? f.column[t] : 0);
                     const A* from = image + h * source.row + w * source.column;
                     for (int64_t l = 0; l < count; ++l, w += step, from += step * source.column) {
                       if (joined > 1 && columns > 0 && (w < 0 || w + joined > columns)) {
                         run[t * m + l] = windows;
                         windows = copy_window(windows, from, w);
                       } else {
                         run[t * m + l] = !padded || uint64_t(w) < uint64_t(columns) ? from : zeros;
                       }
                     }
                   }
                 });
    }
    // Where results lie one position after the other they are written at once.
    const bool straight = positions_apart(f) > 0;
    for (int64_t index = s0; index < s1; ++index) {
      const Slice s = slice_at(index);
      const int v = int(s.width / L);
      const int64_t channel = group * group_m + s.m0;
      const bool at_once = straight && s.m == s.width;
      A* const out = at_once ? result_at_position(channel, f, first) : sums;
      const int64_t out_row = at_once ? positions_apart(f) : s.width;
      for (int64_t l = 0; l < s.width && bias != nullptr; ++l) biases[l] = l < s.m ? bias_at(channel + l) : A(0);
      for (int64_t l = 0; l < kMostProducts; ++l)
        wanted[l] =
            l < panel_rows(v) * v ? int32_t(((panel_rows(v) + l / v) * out_row + l % v * L) * int64_t(sizeof(A))) : 0;
      for (int64_t i = 0; i < f.blocks.count(); ++i) {
        const Block b = block_at(f, i);
        for (int64_t t = 0; t < b.t; ++t)
          offset[t] =
              b.c0 * source.channel + (padded ? 0 : f.row[b.t0 + t] * source.row + f.column[b.t0 + t] * source.column);
        PanelArguments<A> a;
        a.offset = offset;
        a.segments = b.t;
        a.count = b.c;
        a.step = source.channel;
        a.panel = packed_at(group, f, s, b);
        a.nothing_ahead();
        a.start = i == 0 && bias != nullptr ? biases : nullptr;
        a.start_row = 0;
        a.add = i > 0;
        a.out_row = out_row;
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t k = part_begin(positions, tiles, tile), m = part_begin(positions, tiles, tile + 1) - k;
          // What the next tile reads, on its way: its strides defeat the processor's own prefetching.
          const A** const next = rows + (k + m) * sources + (padded ? b.t0 * m : 0);
          for (int64_t l = 0; l < (padded ? b.t * m : m) && tile + 2 < tiles; ++l)
            for (int64_t c = 0; c < b.c && source.channel == 1; c += 64 / int64_t(sizeof(A)))
              __builtin_prefetch(next[l] + (padded ? 0 : offset[0]) + b.c0 + c);
          a.rows = rows + k * sources + (padded ? b.t0 * m : 0);
          a.rows_step = padded ? m : 0;
          a.out = out + k * out_row;
          if (at_once && i == 0 && tile + 1 < tiles) {
            a.look_ahead(a.out, wanted);
          } else {
            a.nothing_ahead();
          }
          select_panel_tile<A>(int(m), v)(a);
        }
      }
      if (relu)
        for (int64_t k = 0; k < (at_once ? positions : 1); ++k)
          rectify_all<A>(out + k * out_row, at_once ? s.width : positions * s.width);
      if (at_once) continue;
      visit_runs(first, last, f.height, f.width, [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
        A* const to = result_at(channel, f, n, i, j);
        const A* const from = sums + (at - first) * s.width;
        if (result.channel == 1)
          pack_block(to, column_step(), 1, from, s.width, 1, count, s.m);
        else
          pack_block(to, result.channel, column_step(), from, 1, s.width, s.m, count);
      });
    }
  }

  // The next rows of weights, on their way to the second level of cache: strides defeat the processor's prefetching.
  void prefetch_weights(int64_t group, int64_t m0, int64_t m, const Block& b) const {
    constexpr int64_t kLine = 64 / int64_t(sizeof(A));
    const int64_t taps = z.r * z.s;
    const A* const at = weight_at(group, m0, b.c0, 0);
    const bool by_rows = weight.channel < weight.n;
    const int64_t runs = by_rows ? m : b.c, step = by_rows ? weight.n : weight.channel;
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t i = 0; i < (by_rows ? b.c : m) * taps; i += kLine) __builtin_prefetch(at + run * step + i, 0, 2);
  }

  // Vectors along positions: vectors [first, last) of positions, slices [s0, s1) of a group. Several panels share the
  // weights of a block while these are in the second level of cache.
  void run_panels(const Phase& f, int64_t group, int64_t first, int64_t last, int64_t s0, int64_t s1,
                  void* scratch) const {
    const int64_t m_begin = slice_at(s0).m0, m_end = s1 < slices() ? slice_at(s1).m0 : group_m, m = m_end - m_begin;
    const int64_t panels = ceil_div(last - first, kPanelP);
    Carver local(scratch);
    int64_t* const offset = local.take<int64_t>(f.taps);
    const A** const rows = local.take<const A*>(m);
    A* const panel = local.take<A>(f.blocks.longest(channels, f.taps) * kPanelP * L);
    A* const sums = local.take<A>(m * (last - first) * L);
    const A* const base = source.data + group * channels * source.channel;
    const int64_t blocks = f.blocks.count();
    LinesAhead reads{local.take<int32_t>(kLinesAhead + kMostProducts), 0},
        writes{local.take<int32_t>(kLinesAhead + kMostProducts), 0};
    if (f.taps == 1 && z.bytes() > kWorthPrefetching) {
      const int64_t run = kPanelP * L * int64_t(sizeof(A));
      for (int64_t c = 0; c < ceil_div(channels, blocks); ++c)
        reads.add_run(c * source.channel * int64_t(sizeof(A)), run * horizontal.step() * source.column);
      for (int64_t k = 0; k < m; ++k) writes.add_run(k * result.channel * int64_t(sizeof(A)), run * column_step());
      reads.finish();
      writes.finish();
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const Block b = block_at(f, i);
      for (int64_t k = 0; k < m; ++k) rows[k] = weight_at(group, m_begin + k, b.c0, 0);
      for (int64_t t = 0; t < b.t; ++t) {
        const int64_t tap = f.weight[b.t0 + t];
        offset[t] = tap / z.s * weight.row + tap % z.s * weight.column;
      }
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t v0 = first + part_begin(last - first, panels, p),
                      v1 = first + part_begin(last - first, panels, p + 1);
        const int64_t width = (v1 - v0) * L, end = min_of(f.positions, v1 * L);
        if (end < v1 * L)
          for (int64_t j = 0; j < b.t * b.c; ++j) store(panel + (j + 1) * width - L, Vec<A>{});
        for (int64_t t = 0; t < b.t; ++t)
          pack_positions(panel + t * b.c * width, width, f, b.t0 + t, base + b.c0 * source.channel, b.c, v0 * L, end);
        // Of a single block the sums are finished before the next panel's.
        A* const sum = sums + (blocks > 1 ? (v0 - first) * L * m : 0);
        if (i == 0 && bias != nullptr)
          for (int64_t k = 0; k < m; ++k)
            for (int64_t l = 0; l < width; l += L)
              store(sum + k * width + l, splat(bias_at(group * group_m + m_begin + k)));
        PanelArguments<A> a;
        a.rows_step = 0;
        a.offset = offset;
        a.segments = b.t;
        a.count = b.c;
        a.panel = panel;
        a.out_row = a.start_row = width;
        a.add = i > 0;
        a.step = weight.channel;
        // On their way meanwhile: the results of this panel, and what the next one reads.
        int64_t written = i + 1 == blocks ? 0 : writes.count, read = 0;
        const bool same = p + 1 < panels;
        const int64_t next_v = same ? v1 : first, next_c = same ? b.c0 : b.c0 + b.c;
        if (!same && i + 1 == blocks) read = reads.count;
        const A* const next =
            source_at_position(base + next_c * source.channel, f, min_of(next_v * L, f.positions - 1));
        for (int64_t index = s0; index < s1; ++index) {
          const Slice s = slice_at(index);
          if (p == 0 && index + 1 < s1) prefetch_weights(group, s.m0 + s.m, s.m, b);
          a.rows = rows + (s.m0 - m_begin);
          a.out = sum + (s.m0 - m_begin) * width;
          a.start = i == 0 && bias != nullptr ? a.out : nullptr;
          a.nothing_ahead();
          if (written < writes.count) {
            a.look_ahead(result_at_position(group * group_m + m_begin, f, v0 * L), writes.offset + written);
            written += b.c;
          } else if (read < reads.count) {
            a.look_ahead(next, reads.offset + read);
            read += b.c;
          }
          select_panel_tile<A>(int(s.m), int(v1 - v0))(a);
        }
        if (relu && i + 1 == blocks) rectify_all<A>(sum, m * width);
        if (i + 1 == blocks) scatter_panel(sum, width, f, group, m_begin, m, v0 * L, end);
      }
    }
  }
  void scatter_panel(const A* sum, int64_t width, const Phase& f, int64_t group, int64_t m0, int64_t m, int64_t first,
                     int64_t last) const {
    visit_runs(first, last, f.height, f.width, [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
      A* const to = result_at(group * group_m + m0, f, n, i, j);
      if (result.channel == 1)
        pack_block(to, column_step(), 1, sum + (at - first), 1, width, count, m);
      else
        pack_block(to, result.channel, column_step(), sum + (at - first), width, 1, m, count);
    });
  }

  // One tap of some channels for positions [first, last): (channels, width).
  void pack_positions(A* to, int64_t width, const Phase& f, int64_t t, const A* from, int64_t count_c, int64_t first,
                      int64_t last) const {
    visit_runs(first, last, f.height, f.width, [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
      A* const run = to + (at - first);
      const int64_t h = i * vertical.step() + f.row[t], step = horizontal.step(), w = j * step + f.column[t];
      // Positions [low, high) of the run read the source, the others the padding.
      const bool outside = h < 0 || h >= vertical.source;
      const int64_t low = outside ? count : min_of(count, w < 0 ? ceil_div(-w, step) : 0);
      const int64_t high =
          outside ? count
                  : max_of(low, min_of(count, w < horizontal.source ? ceil_div(horizontal.source - w, step) : 0));
      if (low > 0) clear_block(run, width, count_c, low);
      if (high > low)
        pack_block(run + low, width, 1, from + n * source.n + h * source.row + (w + low * step) * source.column,
                   source.channel, step * source.column, count_c, high - low);
      if (count > high) clear_block(run + high, width, count_c, count - high);
    });
  }

  void run_task(int64_t index, void* scratch) const {
    const PanelTasks& p = along_channels ? own.along_channels : own.along_positions;
    const int64_t part = index % p.parts_m;
    index /= p.parts_m;
    const int64_t block = index % p.blocks;
    index /= p.blocks;
    const Phase f = phase_at(index % phases());
    const int64_t group = index / phases();
    const int64_t units = along_channels ? f.positions : ceil_div(f.positions, L);
    const int64_t blocks = min_of(p.blocks, ceil_div(units, p.block));
    if (block >= blocks) return;
    const int64_t first = part_begin(units, blocks, block), last = part_begin(units, blocks, block + 1);
    const int64_t s0 = part_begin(slices(), p.parts_m, part), s1 = part_begin(slices(), p.parts_m, part + 1);
    if (first == last || s0 == s1) return;
    if (along_channels) {
      run_positions(f, group, first, last, s0, s1, scratch);
    } else {
      run_panels(f, group, first, last, s0, s1, scratch);
    }
  }
};

// What is computed position by position sees an image whose rows follow one another as one row.
template <class A>
inline ConvProblem one_row(ConvProblem z, const View<A>& source, const View<A>& result) {
  const bool positions = reads_in_place(z) && z.stride_h == 1 && z.stride_w == 1;
  if (positions && source.row == z.w * source.column && result.row == z.w * result.column) {
    z.w = z.q = z.h * z.w;
    z.h = z.p = 1;
  }
  return z;
}

template <class A>
void run_panels_gather(const ConvProblem& given, Pass pass, const Plan& plan, const Buffers& b,
                       const Executor& executor) {
  const bool inverse = pass == Pass::InputGrad;
  Carver memory(b.workspace);
  View<A> weight = view_of<A>(b.weight, 1);
  if (inverse) weight = {weight.data, weight.channel, weight.n, weight.row, weight.column};
  const View<A> source = view_of<A>(inverse ? b.output : b.input, 1),
                result = view_of<A>(inverse ? b.input : b.output, 1);
  const ConvProblem z = one_row(given, source, result);
  PanelsGather<A> task{{z,
                        vertical_axis(z, pass),
                        horizontal_axis(z, pass),
                        {},
                        source,
                        result,
                        weight,
                        inverse ? z.group_c() : z.group_k(),
                        inverse ? z.group_k() : z.group_c(),
                        false,
                        1,
                        nullptr,
                        static_cast<const A*>(b.bias),
                        b.bias_stride,
                        b.relu},
                       plan.own<PanelsPlan>()};
  const int64_t taps = z.r * z.s, phases = task.phases();
  // Few channels do not repay packing positions.
  const bool few = task.group_m <= kFewChannels && source.channel > 0 && task.zero_elements() <= kMostZeros;
  task.along_channels = (source.channel == 1 && result.channel == 1) || few;
  if (source.channel == 1 && result.channel == 1 && !inverse && z.groups == 1 && joins_taps(z) &&
      source.column == z.c && weight.channel == 1 && weight.column == z.c) {
    task.joined = z.s;
    task.channels *= z.s;
  }
  task.table.build(task.vertical, task.horizontal, task.joined, memory);
  task.packed_weight = memory.take<A>(z.groups * task.padded_m() * task.channels * (taps / task.joined));
  if (task.along_channels) task.pack_weights(executor);
  const PanelTasks& p = task.along_channels ? task.own.along_channels : task.own.along_positions;
  parallel_for(executor, z.groups * phases * p.blocks * p.parts_m, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });
}

}  // namespace conv_ext
