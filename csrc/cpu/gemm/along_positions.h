// A task of forward or input_grad by panels whose vectors run along positions: the source becomes panels, and the
// weights are read where they lie. Several panels share the weights of a block while these are in the second level of
// cache. Start reading at run.
#pragma once

#include "operands.h"

namespace conv_ext {

template <class A>
struct PanelsAlongPositions {
  typedef ProductChain Block;
  static constexpr int L = kLanes<A>;
  static constexpr int64_t kWidest = kPanelP * L;  // positions of a panel

  const GatherOperands<A>& op;
  const PanelsTask& task;
  AlongPositionsScratch<A> local;
  const GatherPhase& f;
  int64_t m_begin, m;      // channels of the result
  int64_t panels, blocks;  // of positions; of channels and taps
  const A* source;         // of the group

  PanelsAlongPositions(const GatherOperands<A>& operands, const PanelsGatherPlan& own, const PanelsTask& its_task,
                       void* scratch)
      : op(operands), task(its_task), f(its_task.f) {
    Carver memory(scratch);
    local = along_positions_scratch<A>(op.z, own, memory);
    const WeightPanel last = op.slice_at(task.s1 - 1);
    m_begin = op.slice_at(task.s0).m0;
    m = last.m0 + last.m - m_begin;
    panels = task.tiles();
    blocks = f.blocks.count();
    source = op.source.data + task.group * op.channels() * op.source.channel;
    if (own.prefetches && f.taps == 1) list_lines();
  }

  void run() const {
    CONV_EXT_RUNS("positions");
    for (int64_t index = 0; index < blocks; ++index) {
      const Block b = op.block_at(f, index);
      for (int64_t k = 0; k < m; ++k) local.rows[k] = op.weight_at(task.group, m_begin + k, b.c0, 0);
      for (int64_t t = 0; t < b.t; ++t) {
        const int64_t tap = f.weight[b.t0 + t];
        local.offset[t] = tap / op.z.s * op.weight.row + tap % op.z.s * op.weight.column;
      }
      for (int64_t p = 0; p < panels; ++p) run_panel(b, index, p);
    }
  }

 private:
  struct Panel {
    int64_t first, end, vectors;  // positions [first, end), and the vectors that hold them
    int64_t width() const { return vectors * L; }
  };
  Panel panel_at(int64_t i) const {
    const int64_t v0 = task.begin_of(i), v1 = task.begin_of(i + 1);
    return {v0 * L, min_of(f.positions, v1 * L), v1 - v0};
  }

  // The lines of memory that a panel reads, and those of its results, from `start_of` its first position on.
  void list_lines() {
    list_runs(&local.reads, ceil_div(op.channels(), blocks), op.source.channel, source_row(), source_column());
    list_runs(&local.writes, m, op.result.channel, result_row(), op.column_step());
  }
  void list_runs(LinesAhead* lines, int64_t channels, int64_t channel, int64_t row, int64_t column) const {
    constexpr int64_t kBytes = sizeof(A);
    const bool cut = lies_in_rows(row, column);
    const int64_t rows = cut ? 1 + ceil_div(kWidest - 1, f.width) : 1, length = cut ? f.width : kWidest;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < rows; ++i) lines->add_run((c * channel + i * row) * kBytes, length * column * kBytes);
    lines->finish();
  }
  // Whether a panel's positions lie in several rows with something else between them.
  bool lies_in_rows(int64_t row, int64_t column) const { return f.width < kWidest && row != f.width * column; }
  int64_t start_of(int64_t at, int64_t row, int64_t column) const {
    return lies_in_rows(row, column) ? at - at % f.width : at;
  }
  // Elements between what neighbouring rows or columns of positions read, and between their results.
  int64_t source_row() const { return op.vertical.step() * op.source.row; }
  int64_t source_column() const { return op.horizontal.step() * op.source.column; }
  int64_t result_row() const { return op.vertical.output_step() * op.result.row; }

  // What the first tap reads for a position, of channels from c on.
  const A* source_at(int64_t c, int64_t at) const {
    at = start_of(at, source_row(), source_column());
    return source + c * op.source.channel + at / f.width / f.height * op.source.n +
           (at / f.width % f.height * op.vertical.step() + f.row[0]) * op.source.row +
           (at % f.width * op.horizontal.step() + f.column[0]) * op.source.column;
  }
  // The next rows of weights, on their way to the second level of cache: strides defeat the processor's prefetching.
  void prefetch_weights(const WeightPanel& s, const Block& b) const {
    constexpr int64_t kLine = 64 / int64_t(sizeof(A));
    const A* const at = op.weight_at(task.group, s.m0 + s.m, b.c0, 0);
    const bool by_rows = op.weight.channel < op.weight.n;
    const int64_t runs = by_rows ? s.m : b.c, step = by_rows ? op.weight.n : op.weight.channel;
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t i = 0; i < (by_rows ? b.c : s.m) * op.taps(); i += kLine)
        __builtin_prefetch(at + run * step + i, 0, 2);
  }

  // One block of channels and taps of one panel of positions, for all rows of weights.
  void run_panel(const Block& b, int64_t index, int64_t p) const {
    const bool begin = index == 0, end = index + 1 == blocks;
    const Panel panel = panel_at(p);
    const int64_t width = panel.width();
    pack_panel(panel, b);
    // Of a single block the sums are finished before the next panel's.
    A* const sums = local.sums + (blocks > 1 ? (panel.first - task.first * L) * m : 0);
    if (begin && op.buffers.bias != nullptr)
      for (int64_t k = 0; k < m; ++k)
        for (int64_t l = 0; l < width; l += L)
          store(sums + k * width + l, splat(bias_at<A, A>(op.buffers, task.group * op.group_m + m_begin + k)));
    PanelArguments<A> a;
    a.rows_step = 0;
    a.offset = local.offset;
    a.segments = b.t;
    a.count = b.c;
    a.panel = local.panel;
    a.out_row = a.start_row = width;
    a.add = !begin;
    a.finish = end ? op.finish_sums.elsewhere() : nullptr;
    a.step = op.weight.channel;
    // On their way meanwhile: the results of the last block, and what the next panel reads.
    const bool same_block = p + 1 < panels, last = !same_block && end;
    const int64_t written = end ? 0 : local.writes.count, read = last ? local.reads.count : 0;
    LinesAhead writes{local.writes.offset + written, local.writes.count - written};
    LinesAhead reads{local.reads.offset + read, local.reads.count - read};
    const A* const results = result_at(panel.first);
    const int64_t next_position = min_of(same_block ? panel.first + width : task.first * L, f.positions - 1);
    const A* const next = reads.count > 0 ? source_at(same_block ? b.c0 : b.c0 + b.c, next_position) : nullptr;
    for (int64_t i = task.s0; i < task.s1; ++i) {
      const WeightPanel s = op.slice_at(i);
      if (p == 0 && i + 1 < task.s1) prefetch_weights(s, b);
      a.rows = local.rows + (s.m0 - m_begin);
      a.out = sums + (s.m0 - m_begin) * width;
      a.start = begin && op.buffers.bias != nullptr ? a.out : nullptr;
      if (!a.look_ahead(results, &writes, b.c) && !a.look_ahead(next, &reads, b.c)) a.nothing_ahead();
      select_panel_tile<A>(int(s.m), int(panel.vectors))(a);
    }
    if (end) write_panel(sums, panel);
  }
  A* result_at(int64_t at) const {
    at = start_of(at, result_row(), op.column_step());
    return op.result_at(task.group * op.group_m + m_begin, f, at / f.width / f.height, at / f.width % f.height,
                        at % f.width);
  }
  void write_panel(const A* sums, const Panel& panel) const {
    visit_runs(
        panel.first, panel.end, f.height, f.width, [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
          const int64_t channel = task.group * op.group_m + m_begin;
          const bool finished =
              op.write_sums(op.result_at(channel, f, n, i, j), sums + (at - panel.first), panel.width(), 1, m, count);
          op.finish({n, channel, m, i, 1, j, count}, finished);
        });
  }

  void pack_panel(const Panel& panel, const Block& b) const {
    const int64_t width = panel.width();
    if (panel.end < panel.first + width)
      for (int64_t j = 0; j < b.t * b.c; ++j) store(local.panel + (j + 1) * width - L, Vec<A>{});
    for (int64_t t = 0; t < b.t; ++t) pack_tap(local.panel + t * b.c * width, panel, b, b.t0 + t);
  }
  // One tap of a block's channels for the positions of a panel: (channels, width).
  void pack_tap(A* to, const Panel& panel, const Block& b, int64_t t) const {
    const A* const from = source + b.c0 * op.source.channel;
    const int64_t step = op.horizontal.step(), width = panel.width(), columns = op.horizontal.source;
    visit_runs(panel.first, panel.end, f.height, f.width,
               [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
                 A* const run = to + (at - panel.first);
                 const int64_t h = i * op.vertical.step() + f.row[t], w = j * step + f.column[t];
                 const bool outside = h < 0 || h >= op.vertical.source;
                 const Range inside = outside ? Range{count, count} : range_inside(w, step, count, columns);
                 if (inside.first > 0) clear_block(run, width, b.c, inside.first);
                 if (inside.count() > 0)
                   pack_block(run + inside.first, width, 1,
                              from + n * op.source.n + h * op.source.row + (w + inside.first * step) * op.source.column,
                              op.source.channel, step * op.source.column, b.c, inside.count());
                 if (count > inside.last) clear_block(run + inside.last, width, b.c, count - inside.last);
               });
  }
};

}  // namespace conv_ext
