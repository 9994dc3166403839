// The operands of the implicit matrix product by AVX512_BF16: the order of its reduction, the packed source, the packed
// weights.
#pragma once

#include "dot_bf16.h"
#include "pairs_layout.h"
#include "pack_bf16.h"
#include "../base/roles.h"

#if defined(CONV_EXT_BF16_DOT)

namespace conv_ext {

// The source that outputs from (i0, j0) on read, with zeros for the padding: [image][row][column][channel], of `rows`
// packed rows of `columns` positions. The view starts at the first channel.
template <class T>
void pack_source(bfloat16* to, const DotTables& t, View<T> view, int64_t n0, int64_t n1, int64_t i0, int64_t j0,
                 int64_t rows, int64_t columns) {
  const int64_t channels = t.channels, length = columns * channels;
  const int64_t left = t.across.low + j0 * t.taps.horizontal.step(), step = t.across.source_step;
  const Range inside = range_inside(left, step, columns, t.taps.horizontal.source);
  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t y = 0; y < rows; ++y, to += length) {
      const int64_t row = t.down.low + i0 * t.taps.vertical.step() + y * t.down.source_step;
      if (row < 0 || row >= t.taps.vertical.source) {
        memset(to, 0, size_t(length) * sizeof(bfloat16));
        continue;
      }
      memset(to, 0, size_t(inside.first * channels) * sizeof(bfloat16));
      pack_bf16(to + inside.first * channels, 1, channels,
                view.data + n * view.n + row * view.row + (left + inside.first * step) * view.column, view.channel,
                step * view.column, channels, inside.count());
      memset(to + inside.last * channels, 0, size_t((columns - inside.last) * channels) * sizeof(bfloat16));
    }
  }
}

// Packs weights, seen as (channels of a group's result, of its source, R, S), as [block of 16 outputs][pair of the
// reduction][16][2].
template <class T>
struct DotWeights {
  const DotTables& tables;
  View<T> view;
  int64_t group_step, group_m;
  bool input_grad;

  int64_t taps() const { return taps_of_row() * tables.taps.vertical.taps; }
  int64_t taps_of_row() const { return tables.taps.horizontal.taps; }

  int64_t channels() const { return tables.channels; }
  int64_t block_size() const { return tables.pairs * kPairBlock; }
  const T* at(int64_t group, int64_t m, int64_t c, int64_t tap) const {
    return view.data + group * group_step + m * view.n + c * view.channel + tap / taps_of_row() * view.row +
           tap % taps_of_row() * view.column;
  }
  // Pairs of channels c and c + 1, zeros where there is no second one, for 16 neighbours of which `count` are there.
  __m512i pairs_at(const T* p, int64_t c, int64_t count) const {
    // The weights lie channel by channel: what comes next is far away, where no prefetching looks.
    _mm_prefetch(reinterpret_cast<const char*>(p + 4 * view.channel), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + 5 * view.channel), _MM_HINT_T0);
    const __m512i even = bits16(p, count);
    return c + 1 < channels() ? pairs16(even, bits16(p + view.channel, count)) : even;
  }

  // Blocks of 16 outputs of one group, by 16 x 16 squares of pairs wherever the memory allows.
  void pack(bfloat16* to, int64_t group, int64_t first, int64_t blocks) const {
    const bool whole_pairs = channels() % 2 == 0 || tables.across.span == 1;
    const bool by_taps = view.column == 1 && view.row == taps_of_row();
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t m = (first + block) * kDotLanes, lanes = min_of(kDotLanes, group_m - m);
      bfloat16* const t = to + block * block_size();
      if (!whole_pairs || (view.n != 1 && view.channel != 1 && !by_taps)) {
        pack_one_by_one(t, group, m, lanes);
      } else if (view.channel == 1 && view.n != 1) {
        for (int64_t tap = 0; tap < taps(); ++tap)
          for (int64_t c = 0; c < channels(); c += kPairBlock) pack_channels(t, group, m, lanes, c, tap);
      } else if (!input_grad) {
        for (int64_t c = 0; c < channels(); c += 2) pack_pair(t, group, m, lanes, c);
      }
    }
    // Neighbouring outputs' weights lie together in input_grad: all blocks of a channel at once.
    if (!input_grad || !whole_pairs || (view.n != 1 && (view.channel == 1 || !by_taps))) return;
    for (int64_t c = 0; c < channels(); c += 2) {
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t m = (first + block) * kDotLanes;
        pack_pair(to + block * block_size(), group, m, min_of(kDotLanes, group_m - m), c);
      }
    }
  }

  // All taps of a pair of channels, where the outputs or the taps are neighbours.
  void pack_pair(bfloat16* to, int64_t group, int64_t m, int64_t lanes, int64_t c) const {
    if (view.n == 1) {
      for (int64_t tap = 0; tap < taps(); ++tap)
        if (tables.tap_pair[tap] >= 0)
          _mm512_storeu_si512(to + (tables.tap_pair[tap] + c / 2) * kPairBlock,
                              pairs_at(at(group, m, c, tap), c, lanes));
      return;
    }
    for (int64_t tap = 0; tap < taps(); tap += kDotLanes) {
      const int64_t count = min_of(kDotLanes, taps() - tap);
      const T* const from = at(group, m, c, 0) + tap;
      __m512i row[kDotLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kDotLanes; ++l)
        row[l] = l < lanes ? pairs_at(from + l * view.n, c, count) : _mm512_setzero_si512();
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

  // Up to 32 neighbouring channels of a tap.
  void pack_channels(bfloat16* to, int64_t group, int64_t m, int64_t lanes, int64_t c, int64_t tap) const {
    if (tables.tap_pair[tap] < 0) return;
    const int64_t count = min_of(kPairBlock, channels() - c);
    const T* const from = at(group, m, c, tap);
    alignas(64) bfloat16 line[kDotLanes][kPairBlock];
    memset(line, 0, sizeof(line));
    for (int64_t l = 0; l < lanes; ++l) copy_run(line[l], from + l * view.n, count);
    __m512i row[kDotLanes];
#pragma GCC unroll 16
    for (int l = 0; l < kDotLanes; ++l) row[l] = _mm512_load_si512(line[l]);
    turn_square(row);
    alignas(64) __m512i turned[kDotLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kDotLanes; ++i) turned[i] = row[i];
    bfloat16* const t = to + (tables.tap_pair[tap] + c / 2) * kPairBlock;
    for (int64_t i = 0; i < ceil_div(count, 2); ++i) _mm512_storeu_si512(t + i * kPairBlock, turned[i]);
  }

  void pack_one_by_one(bfloat16* to, int64_t group, int64_t m, int64_t lanes) const {
    memset(to, 0, size_t(block_size()) * sizeof(bfloat16));
    const int64_t segments = tables.segment_begin[tables.taps.phases()];
    for (int64_t i = 0; i < segments; ++i) {
      const Segment& segment = tables.segment[i];
      for (int64_t e = 0; e < segment.elements; ++e) {
        const T* const from = at(group, m, e % channels(), tables.taps.tap[tables.first_tap[i] + e / channels()]);
        bfloat16* const t = to + (segment.w + e / 2) * kPairBlock + e % 2;
        for (int64_t l = 0; l < lanes; ++l) t[2 * l] = read_bf16(from + l * view.n);
      }
    }
  }
};

}  // namespace conv_ext

#endif
