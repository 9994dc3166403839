// The implicit matrix product of bfloat16: forward and input_grad over packed tiles; weight_grad is in its neighbour,
// implicit_weight_grad.h.
//
//   pack all weights: [block of 16 outputs][tap, channel pair][16][2]
//   for each tile of outputs of a group (in parallel):
//     pack the source that it reads: [image][row][column][channel]
//     for each phase, blocks of outputs, line of neighbouring outputs:
//       dot_tile, write
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
  bfloat16* packed_weight;
  float* bias;  // (groups, blocks, 16)

  int64_t blocks() const { return ceil_div(group_m, kDotLanes); }
  int64_t block_size() const { return tables.pairs * kPairBlock; }

  // Sixteen outputs' weights of one group, by 16 x 16 squares of pairs wherever the memory allows.
  void pack_block(int64_t group, int64_t block, bool input_grad) const {
    bfloat16* const to = packed_weight + (group * blocks() + block) * block_size();
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

  // Rows of sums to their places: row m is output `first + m` of a line, lane l is output channel m0 + l.
  // Outputs of a line: (image, row, column) numbered through, `width` columns to a row and `height` rows to an image.
  struct Line {
    int64_t n, h, w;  // of output 0
    int64_t width, height, rows_to_image, columns_to_row;
  };
  void write_tile(const float* out, int rows, int blocks_now, int64_t group, int64_t m0, const Line& line,
                  int64_t first) const {
    const int64_t row_step = tables.vertical.output_step() * result.row;
    const int64_t column_step = tables.horizontal.output_step() * result.column;
    const int64_t lanes = min_of(blocks_now * kDotLanes, group_m - m0);
    const int out_pitch = blocks_now * kDotLanes;
    T* const base =
        result.data + (group * group_m + m0) * result.channel + line.h * result.row + line.w * result.column;
    for (int64_t m = 0; m < rows;) {
      // A piece of neighbouring columns.
      const int64_t at = first + m, q = at % line.width, p = at / line.width % line.height;
      const int64_t n = line.n + at / line.width / line.height;
      const int64_t count = min_of(rows - m, line.width - q);
      T* const to = base + n * result.n + p * row_step + q * column_step;
      const float* const from = out + m * out_pitch;
      if (result.channel == 1) {
        for (int64_t i = 0; i < count; ++i)
          for (int64_t l = 0; l < lanes; l += kDotLanes)
            write16(to + i * column_step + l, _mm512_loadu_ps(from + i * out_pitch + l), lanes - l);
      } else {
        for (int64_t l0 = 0; l0 < lanes; l0 += kDotLanes) {
          __m512i square[kDotLanes];
#pragma GCC unroll 16
          for (int i = 0; i < kDotLanes; ++i)
            square[i] = i < count ? _mm512_loadu_si512(from + i * out_pitch + l0) : _mm512_setzero_si512();
          turn_square(square);
          alignas(64) __m512i turned[kDotLanes];
#pragma GCC unroll 16
          for (int i = 0; i < kDotLanes; ++i) turned[i] = square[i];
          for (int64_t l = 0; l < min_of(kDotLanes, lanes - l0); ++l) {
            T* const t = to + (l0 + l) * result.channel;
            if (column_step == 1) {
              write16(t, _mm512_castsi512_ps(turned[l]), count);
            } else {
              const float* const f = reinterpret_cast<const float*>(turned + l);
              for (int64_t i = 0; i < count; ++i) write<T>(t + i * column_step, f[i]);
            }
          }
        }
      }
      m += count;
    }
  }

  void run_tile(int64_t index, bfloat16* packed) const {
    const int64_t count_h = tables.vertical.longest_count(), count_w = tables.horizontal.longest_count();
    const int64_t tiles_h = ceil_div(count_h, plan.tile_h), tiles_w = ceil_div(count_w, plan.tile_w);
    const int64_t parts_m = ceil_div(group_m, plan.task_m);
    const int64_t m0 = index % parts_m * plan.task_m;
    index /= parts_m;
    const int64_t j0 = index % tiles_w * plan.tile_w;
    index /= tiles_w;
    const int64_t i0 = index % tiles_h * plan.tile_h;
    index /= tiles_h;
    const int64_t group = index % z.groups;
    const int64_t n0 = index / z.groups * plan.images, n1 = min_of(z.n, n0 + plan.images);
    const int64_t used_h = min_of(plan.tile_h, count_h - i0), used_w = min_of(plan.tile_w, count_w - j0);
    const bool single = tables.down.span == 1 && tables.across.span == 1;
    const int64_t rows = tables.down.extent(used_h), pitch = single ? used_w : tables.pitch;
    View<T> view = source;
    view.data += group * group_channels * view.channel;
    pack_source(packed, tables, view, n0, n1, i0, j0, rows, pitch);
    for (int64_t fh = 0; fh < tables.vertical.phases(); ++fh) {
      const int64_t height = min_of(used_h, tables.vertical.count(fh) - i0);
      for (int64_t fw = 0; fw < tables.horizontal.phases() && height > 0; ++fw) {
        const int64_t width = min_of(used_w, tables.horizontal.count(fw) - j0);
        if (width <= 0) continue;
        const Line at{n0,
                      fh + i0 * tables.vertical.output_step(),
                      fw + j0 * tables.horizontal.output_step(),
                      width,
                      height,
                      rows,
                      pitch};
        run_phase(fh * tables.horizontal.phases() + fw, group, m0, min_of(group_m, m0 + plan.task_m), packed, at,
                  n1 - n0, single && width == pitch && height == rows);
      }
    }
  }

  // Lines are rows of outputs; where every output reads one position, all outputs of the tile are one line.
  void run_phase(int64_t phase, int64_t group, int64_t m_begin, int64_t m_end, const bfloat16* packed, const Line& at,
                 int64_t images, bool joined) const {
    alignas(64) float out[kDotRows * 2 * kDotLanes];
    DotRows a;
    a.pitch = tables.across.output_step * group_channels;
    a.segment = tables.segment + tables.segment_begin[phase];
    a.segments = tables.segment_begin[phase + 1] - tables.segment_begin[phase];
    a.block = block_size();
    a.start_pitch = 0;
    a.out = out;
    const int64_t length = joined ? images * at.height * at.width : at.width;
    const int64_t lines = joined ? 1 : images * at.height;
    const int rows = dot_tile_rows(length);
    for (int64_t m = m_begin; m < m_end;) {
      const int blocks_now = dot_tile_blocks(rows, ceil_div(m_end - m, kDotLanes));
      const int64_t block = group * blocks() + m / kDotLanes;
      a.w = packed_weight + block * block_size();
      a.start = bias + block * kDotLanes;
      a.out_pitch = blocks_now * kDotLanes;
      for (int64_t line = 0; line < lines; ++line) {
        const int64_t row = line / at.height * at.rows_to_image + line % at.height * tables.down.output_step;
        for (int64_t q = 0; q < length; q += rows) {
          const int now = int(min_of(rows, length - q));
          a.x = packed + row * at.columns_to_row * group_channels + q * a.pitch;
          dot_tile(a, now, blocks_now);
          write_tile(out, now, blocks_now, group, m, at, line * at.width + q);
        }
      }
      m += blocks_now * kDotLanes;
    }
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
  task.packed_weight = memory.take<bfloat16>(z.groups * blocks * task.block_size());
  parallel_for(executor, z.groups * blocks, 0,
               [&](int64_t index, void*) { task.pack_block(index / blocks, index % blocks, input_grad); });
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_tile(index, static_cast<bfloat16*>(scratch)); });
}

#endif

}  // namespace conv_ext
