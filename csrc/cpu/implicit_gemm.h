// The implicit matrix product of bfloat16: forward and input_grad over packed tiles; weight_grad is in its neighbour,
// implicit_weight_grad.h.
//
//   pack all weights: [block of 16 outputs][tap, channel pair][16][2]
//   for each tile of outputs of a group (in parallel):
//     pack the source that it reads: [image][row][column][channel]
//     for each phase, blocks of outputs, line of neighbouring outputs:
//       dot_tile, write
//
// Where the weights are larger than the source, all of the source is packed first, and the tasks are blocks of outputs.
//
// A tap of an output is a run of channels in the packed tile, and neighbouring columns are one run: a few segments for
// every output, at the same distances from its own place. Start reading at run_implicit_gather, at the end.
#pragma once

#include "dot_bf16.h"
#include "pack_bf16.h"

namespace conv_ext {

#if defined(__AVX512BF16__)

// The order of the reduction: taps by ascending packed position, with all channels of a tap together.
struct DotTables {
  Axis vertical, horizontal;
  Reach down, across;
  int64_t channels;
  int64_t pitch;           // packed positions between two rows
  Segment* segment;        // those of one pair of phases together
  int64_t* first_tap;      // (segments) where in `tap` a segment begins
  int64_t* segment_begin;  // (phases + 1)
  int64_t* tap;            // (R S) r * S + s
  int64_t* tap_pair;       // (R S) of tap r * S + s: pairs before its first channel; -1: it touches no output
  int64_t pairs;           // of all phases

  static DotTables make(const ConvProblem& z, Pass pass, int64_t tile_w, int64_t channels, Carver& memory) {
    DotTables t;
    t.vertical = vertical_axis(z, pass);
    t.horizontal = horizontal_axis(z, pass);
    t.down = reach_of(t.vertical);
    t.across = reach_of(t.horizontal);
    t.channels = channels;
    t.pitch = t.across.extent(tile_w);
    const int64_t taps = z.r * z.s, phases_h = t.vertical.phases(), phases_w = t.horizontal.phases();
    t.segment = memory.take<Segment>(taps);
    t.first_tap = memory.take<int64_t>(taps);
    t.tap = memory.take<int64_t>(taps);
    t.tap_pair = memory.take<int64_t>(taps);
    t.segment_begin = memory.take<int64_t>(phases_h * phases_w + 1);
    for (int64_t i = 0; i < taps; ++i) t.tap_pair[i] = -1;
    int64_t next = 0, taken = 0;
    t.pairs = 0;
    for (int64_t fh = 0; fh < phases_h; ++fh) {
      for (int64_t fw = 0; fw < phases_w; ++fw) {
        t.segment_begin[fh * phases_w + fw] = next;
        for (int64_t i = 0; i < z.r; ++i) {
          const int64_t r = t.vertical.inverse ? z.r - 1 - i : i;
          if (t.vertical.phase_of(r) != fh) continue;
          const int64_t row = (t.vertical.offset(r) - t.down.low) * t.pitch;
          int64_t end = -1;  // the position after the last tap of the segment that is open
          for (int64_t j = 0; j < z.s; ++j) {
            const int64_t s = t.horizontal.inverse ? z.s - 1 - j : j;
            if (t.horizontal.phase_of(s) != fw) continue;
            const int64_t at = row + t.horizontal.offset(s) - t.across.low;
            if (at != end) {
              t.first_tap[next] = taken;
              t.segment[next++] = {at * channels, t.pairs, 0};
            }
            Segment& open = t.segment[next - 1];
            t.tap_pair[r * z.s + s] = open.w + open.elements / 2;
            open.elements += channels;
            t.pairs = open.w + ceil_div(open.elements, 2);
            t.tap[taken++] = r * z.s + s;
            end = at + 1;
          }
        }
      }
    }
    t.segment_begin[phases_h * phases_w] = next;
    return t;
  }
};

// The source that outputs from (i0, j0) on read, with zeros for the padding: [image][row][column][channel], of `rows`
// packed rows of `columns` positions. The view starts at the first channel.
template <class T>
void pack_source(bfloat16* to, const DotTables& t, View<T> view, int64_t n0, int64_t n1, int64_t i0, int64_t j0,
                 int64_t rows, int64_t columns) {
  const int64_t channels = t.channels, length = columns * channels;
  const int64_t left = t.across.low + j0 * t.horizontal.step(), step = t.across.source_step;
  const int64_t inside = min_of(left < 0 ? ceil_div(-left, step) : 0, columns);
  const int64_t rest = t.horizontal.source - left;
  const int64_t outside = max_of(inside, min_of(rest > 0 ? ceil_div(rest, step) : 0, columns));
  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t y = 0; y < rows; ++y, to += length) {
      const int64_t row = t.down.low + i0 * t.vertical.step() + y * t.down.source_step;
      if (row < 0 || row >= t.vertical.source) {
        memset(to, 0, size_t(length) * sizeof(bfloat16));
        continue;
      }
      memset(to, 0, size_t(inside * channels) * sizeof(bfloat16));
      pack_bf16(to + inside * channels, 1, channels,
                view.data + n * view.n + row * view.row + (left + inside * step) * view.column, view.channel,
                step * view.column, channels, outside - inside);
      memset(to + outside * channels, 0, size_t((columns - outside) * channels) * sizeof(bfloat16));
    }
  }
}

template <class T>
struct DotGather {
  const ConvProblem& z;
  const Plan& plan;
  DotTables tables;
  View<T> source, result, weight;  // weight seen as (gemm_m, channels, R, S)
  int64_t group_m, group_channels;
  bool input_grad;
  float* bias;       // (groups, blocks, 16)
  bfloat16* packed;  // what all tasks share: the weights, or the tiles of the source

  int64_t blocks() const { return ceil_div(group_m, kDotLanes); }
  int64_t block_size() const { return tables.pairs * kPairBlock; }

  // Sixteen outputs' weights of one group, by 16 x 16 squares of pairs wherever the memory allows.
  void pack_block(bfloat16* to, int64_t group, int64_t block) const {
    const int64_t first = block * kDotLanes, lanes = min_of(kDotLanes, group_m - first), taps = z.r * z.s;
    const int64_t channels = group_channels;
    const int64_t lane_step = input_grad ? weight.channel : weight.n;
    const int64_t channel_step = input_grad ? weight.n : weight.channel;
    const T* const from = weight.data + group * (input_grad ? channels : group_m) * weight.n + first * lane_step;
    const bool whole_pairs = channels % 2 == 0 || tables.across.span == 1;
    const auto second = [&](int64_t c, const T* p, int64_t count) __attribute__((always_inline)) {
      return c + 1 < channels ? bits16(p + channel_step, count) : _mm512_setzero_si512();
    };
    const auto tap_at = [&](int64_t tap) { return from + tap / z.s * weight.row + tap % z.s * weight.column; };
    __m512i row[kDotLanes];
    if (whole_pairs && lane_step == 1) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        if (tables.tap_pair[tap] < 0) continue;
        bfloat16* t = to + tables.tap_pair[tap] * kPairBlock;
        const T* f = tap_at(tap);
        for (int64_t c = 0; c < channels; c += 2, t += kPairBlock, f += 2 * channel_step)
          _mm512_storeu_si512(t, pairs16(bits16(f, lanes), second(c, f, lanes)));
      }
    } else if (whole_pairs && channel_step == 1) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        if (tables.tap_pair[tap] < 0) continue;
        for (int64_t c = 0; c < channels; c += kPairBlock) {
          const int64_t count = min_of(kPairBlock, channels - c);
          alignas(64) bfloat16 line[kPairBlock];
          for (int l = 0; l < kDotLanes; ++l) {
            row[l] = _mm512_setzero_si512();
            if (l >= lanes) continue;
            _mm512_store_si512(line, row[l]);
            copy_run(line, tap_at(tap) + l * lane_step + c, count);
            row[l] = _mm512_load_si512(line);
          }
          turn_square(row);
          bfloat16* const t = to + (tables.tap_pair[tap] + c / 2) * kPairBlock;
          for (int64_t i = 0; i < ceil_div(count, 2); ++i) _mm512_storeu_si512(t + i * kPairBlock, row[i]);
        }
      }
    } else if (whole_pairs && weight.column == 1 && weight.row == z.s) {
      for (int64_t c = 0; c < channels; c += 2) {
        for (int64_t tap = 0; tap < taps; tap += kDotLanes) {
          const int64_t count = min_of(kDotLanes, taps - tap);
#pragma GCC unroll 16
          for (int l = 0; l < kDotLanes; ++l) {
            const T* const f = from + l * lane_step + c * channel_step + tap;
            row[l] = l < lanes ? pairs16(bits16(f, count), second(c, f, count)) : _mm512_setzero_si512();
          }
          turn_square(row);
          alignas(64) __m512i turned[kDotLanes];
#pragma GCC unroll 16
          for (int i = 0; i < kDotLanes; ++i) turned[i] = row[i];
          for (int64_t i = 0; i < count; ++i) {
            const int64_t pair = tables.tap_pair[tap + i];
            if (pair >= 0) _mm512_storeu_si512(to + (pair + c / 2) * kPairBlock, turned[i]);
          }
        }
      }
    } else {
      memset(to, 0, size_t(block_size()) * sizeof(bfloat16));
      const int64_t segments = tables.segment_begin[tables.vertical.phases() * tables.horizontal.phases()];
      for (int64_t i = 0; i < segments; ++i) {
        const Segment& segment = tables.segment[i];
        for (int64_t e = 0; e < segment.elements; ++e) {
          const T* const f = tap_at(tables.tap[tables.first_tap[i] + e / channels]) + e % channels * channel_step;
          bfloat16* const t = to + (segment.w + e / 2) * kPairBlock + e % 2;
          for (int64_t l = 0; l < lanes; ++l) t[2 * l] = read_bf16(f + l * lane_step);
        }
      }
    }
  }

  // One tile of outputs of a group and the packed source that it reads.
  struct Tile {
    int64_t group, n0, n1, i0, j0, height, width, rows, pitch;
    bool single;  // every output reads one position
  };
  int64_t tiles_h() const { return ceil_div(tables.vertical.longest_count(), plan.tile_h); }
  int64_t tiles_w() const { return ceil_div(tables.horizontal.longest_count(), plan.tile_w); }
  int64_t tiles_of_group() const { return ceil_div(z.n, plan.images) * tiles_h() * tiles_w(); }
  Tile tile_at(int64_t group, int64_t index) const {
    Tile t;
    t.group = group;
    t.j0 = index % tiles_w() * plan.tile_w;
    index /= tiles_w();
    t.i0 = index % tiles_h() * plan.tile_h;
    t.n0 = index / tiles_h() * plan.images;
    t.n1 = min_of(z.n, t.n0 + plan.images);
    t.height = min_of(plan.tile_h, tables.vertical.longest_count() - t.i0);
    t.width = min_of(plan.tile_w, tables.horizontal.longest_count() - t.j0);
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

  // Sums [row][lane] to a row of outputs: rows are neighbouring columns, lanes output channels.
  void write_rows(const float* out, int64_t pitch, int64_t rows, int64_t lanes, T* to) const {
    const int64_t column_step = tables.horizontal.output_step() * result.column;
    if (result.channel == 1) {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t l = 0; l < lanes; l += kDotLanes)
          write16(to + i * column_step + l, _mm512_loadu_ps(out + i * pitch + l), lanes - l);
      return;
    }
    for (int64_t l0 = 0; l0 < lanes; l0 += kDotLanes) {
      __m512i square[kDotLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kDotLanes; ++i)
        square[i] = i < rows ? _mm512_loadu_si512(out + i * pitch + l0) : _mm512_setzero_si512();
      turn_square(square);
      alignas(64) __m512i turned[kDotLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kDotLanes; ++i) turned[i] = square[i];
      const int64_t some = min_of(kDotLanes, lanes - l0);
      T* t = to + l0 * result.channel;
      for (int64_t l = 0; l < some; ++l, t += result.channel) {
        if (column_step == 1) {
          write16(t, _mm512_castsi512_ps(turned[l]), rows);
        } else {
          const float* const f = reinterpret_cast<const float*>(turned + l);
          for (int64_t i = 0; i < rows; ++i) write<T>(t + i * column_step, f[i]);
        }
      }
    }
  }

  // All phases of a tile for outputs [m_begin, m_end); `weights` holds their blocks.
  void multiply(const Tile& t, const bfloat16* x, const bfloat16* weights, int64_t m_begin, int64_t m_end) const {
    for (int64_t fh = 0; fh < tables.vertical.phases(); ++fh) {
      const int64_t height = min_of(t.height, tables.vertical.count(fh) - t.i0);
      for (int64_t fw = 0; fw < tables.horizontal.phases() && height > 0; ++fw) {
        const int64_t width = min_of(t.width, tables.horizontal.count(fw) - t.j0);
        if (width > 0) multiply_phase(t, fh, fw, height, width, x, weights, m_begin, m_end);
      }
    }
  }

  // Lines are rows of outputs; where every output reads one position, all outputs of the tile are one line.
  void multiply_phase(const Tile& t, int64_t fh, int64_t fw, int64_t height, int64_t width, const bfloat16* x,
                      const bfloat16* weights, int64_t m_begin, int64_t m_end) const {
    alignas(64) float out[kDotRows * 2 * kDotLanes];
    const int64_t phase = fh * tables.horizontal.phases() + fw, images = t.n1 - t.n0;
    const int64_t row_step = tables.vertical.output_step() * result.row;
    const int64_t column_step = tables.horizontal.output_step() * result.column;
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
                        (fh + t.i0 * tables.vertical.output_step()) * result.row +
                        (fw + t.j0 * tables.horizontal.output_step()) * result.column;
      for (int64_t n = 0; n < (joined ? 1 : images); ++n) {
        for (int64_t p = 0; p < (joined ? 1 : height); ++p) {
          const bfloat16* const line = x + (n * t.rows + p * tables.down.output_step) * t.pitch * group_channels;
          T* const to = corner + n * result.n + p * row_step;
          for (int64_t q = 0; q < length; q += rows) {
            const int now = int(min_of(rows, length - q));
            a.x = line + q * a.pitch;
            dot_tile(a, now, blocks_now);
            if (!joined) {
              write_rows(out, a.out_pitch, now, lanes, to + q * column_step);
              continue;
            }
            for (int64_t i = 0; i < now;) {
              const int64_t column = (q + i) % width, row = (q + i) / width;
              const int64_t count = min_of(now - i, width - column);
              write_rows(out + i * a.out_pitch, a.out_pitch, count, lanes,
                         corner + row / height * result.n + row % height * row_step + column * column_step);
              i += count;
            }
          }
        }
      }
      m += blocks_now * kDotLanes;
    }
  }

  // Weights are packed once, and each task packs a tile of the source ...
  void run_tile(int64_t index, bfloat16* scratch) const {
    const int64_t parts_m = ceil_div(group_m, plan.task_m), m0 = index % parts_m * plan.task_m;
    index /= parts_m;
    const Tile t = tile_at(index / tiles_of_group(), index % tiles_of_group());
    pack_tile(scratch, t);
    multiply(t, scratch, packed + (t.group * blocks() + m0 / kDotLanes) * block_size(), m0,
             min_of(group_m, m0 + plan.task_m));
  }
  // ... or, where there is more to pack of the weights, the other way round.
  void run_block(int64_t index, bfloat16* scratch) const {
    const int64_t parts_m = ceil_div(group_m, plan.task_m), m0 = index % parts_m * plan.task_m;
    const int64_t part = index / parts_m % plan.splits, group = index / parts_m / plan.splits;
    const int64_t m1 = min_of(group_m, m0 + plan.task_m), tiles = tiles_of_group();
    for (int64_t m = m0; m < m1; m += kDotLanes)
      pack_block(scratch + (m - m0) / kDotLanes * block_size(), group, m / kDotLanes);
    for (int64_t i = tiles * part / plan.splits; i < tiles * (part + 1) / plan.splits; ++i)
      multiply(tile_at(group, i), packed + (group * tiles + i) * plan.channel_pitch, scratch, m0, m1);
  }
};

template <class T>
void run_implicit_gather(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b,
                         const Executor& executor) {
  const bool input_grad = pass == Pass::InputGrad;
  const int64_t group_channels = input_grad ? z.group_k() : z.group_c();
  Carver memory{static_cast<char*>(b.workspace)};
  DotGather<T> task{z,
                    plan,
                    DotTables::make(z, pass, plan.tile_w, group_channels, memory),
                    view_of<T>(input_grad ? b.output : b.input, 1),
                    view_of<T>(input_grad ? b.input : b.output, 1),
                    view_of<T>(b.weight, 1),
                    input_grad ? z.group_c() : z.group_k(),
                    group_channels,
                    input_grad,
                    nullptr,
                    nullptr};
  const int64_t blocks = task.blocks(), lanes = z.groups * blocks * kDotLanes;
  task.bias = memory.take<float>(lanes);
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t group = l / (blocks * kDotLanes), m = l % (blocks * kDotLanes);
    task.bias[l] = b.bias && m < task.group_m
                       ? read<float>(static_cast<const T*>(b.bias) + (group * task.group_m + m) * b.bias_stride)
                       : 0.0f;
  }
  if (plan.weights_in_tasks) {
    const int64_t tiles = task.tiles_of_group();
    task.packed = memory.take<bfloat16>(z.groups * tiles * plan.channel_pitch);
    parallel_for(executor, z.groups * tiles, 0, [&](int64_t index, void*) {
      task.pack_tile(task.packed + index * plan.channel_pitch, task.tile_at(index / tiles, index % tiles));
    });
    parallel_for(executor, plan.tasks, plan.scratch_bytes,
                 [&](int64_t index, void* scratch) { task.run_block(index, static_cast<bfloat16*>(scratch)); });
    return;
  }
  task.packed = memory.take<bfloat16>(z.groups * blocks * task.block_size());
  parallel_for(executor, z.groups * blocks, 0, [&](int64_t index, void*) {
    task.pack_block(task.packed + index * task.block_size(), index / blocks, index % blocks);
  });
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_tile(index, static_cast<bfloat16*>(scratch)); });
}

#endif

}  // namespace conv_ext
