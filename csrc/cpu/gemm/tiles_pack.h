// Packing for AMX's tiles: numbers become parts of bfloat16, in pairs of those that lie 16 apart.
#pragma once

#include "amx.h"
#include "pack_bf16.h"
#include "../base/lanes.h"
#include "../base/roles.h"

#if defined(CONV_EXT_AMX)

namespace conv_ext {

// Two vectors of a pair's first and second numbers to one of pairs for each part. Half of the last kept digit is added,
// and what is behind that digit cut off: to nearest, ties away from zero. The third part is what is left, exactly.
//
// Adding carries NaNs of all ones over into zeros; the remainder is NaN still, so the last part leaves NaN alone. A
// single part is rounded to nearest even, as everywhere.
template <class T, int parts>
inline __attribute__((always_inline)) void split_pairs(__m512 first, __m512 second, __m512i* pairs) {
  const __m512i top = _mm512_set1_epi32(int(0xffff0000)), half = _mm512_set1_epi32(0x8000);
  if constexpr (is_same<T, bfloat16>) {
    pairs[0] = _mm512_or_si512(_mm512_srli_epi32((__m512i)first, 16), _mm512_and_si512((__m512i)second, top));
  } else if constexpr (parts == 1) {
    pairs[0] = pairs16(round_to_bf16(first), round_to_bf16(second));
  } else {
    __m512 v[2] = {_mm512_mul_ps(first, _mm512_set1_ps(kPartScale)), _mm512_mul_ps(second, _mm512_set1_ps(kPartScale))};
#pragma GCC unroll 3
    for (int part = 0; part < parts; ++part) {
      __m512i kept[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512i bits = (__m512i)v[i];
        if (part == 2) {
          kept[i] = _mm512_and_si512(bits, top);
        } else if (part == parts - 1) {
          const __mmask16 numbers = _mm512_cmp_ps_mask(v[i], v[i], _CMP_ORD_Q);
          kept[i] = _mm512_and_si512(_mm512_mask_add_epi32(bits, numbers, bits, half), top);
        } else {
          kept[i] = _mm512_and_si512(_mm512_add_epi32(bits, half), top);
        }
        v[i] = _mm512_sub_ps(v[i], (__m512)kept[i]);
      }
      pairs[part] = _mm512_or_si512(_mm512_srli_epi32(kept[0], 16), kept[1]);
    }
  }
}
template <class T, int parts>
inline __attribute__((always_inline)) void store_pairs(char* to, int64_t part_pitch, __m512 first, __m512 second) {
  __m512i pairs[parts];
  split_pairs<T, parts>(first, second, pairs);
#pragma GCC unroll 3
  for (int part = 0; part < parts; ++part) _mm512_store_si512(to + part * part_pitch, pairs[part]);
}

// lanes[i][16] = up to 16 channels of up to 16 positions; channels that are not there are zero.
template <class T>
inline void load_lanes(float* lanes, const T* from, int64_t channel_stride, int64_t position_stride, int64_t channels,
                       int64_t positions) {
  if (channel_stride == 1 || position_stride == 1)
    return positions_to_lanes(lanes, from, channel_stride, position_stride, channels, positions);
  alignas(64) float rows[16 * 16];
  pack_block(rows, 16, 1, from, channel_stride, position_stride, channels, positions);
  positions_to_lanes(lanes, rows, 16, 1, channels, positions);
}

// Positions of a packed source: [c/32][part][position][32].
template <class T, int parts>
struct TilePacker {
  int64_t part_pitch, position_pitch;  // bytes
  int64_t channels;
  int64_t block_pitch() const { return parts * part_pitch; }

  void clear(char* to, int64_t positions) const {
    for (int64_t plane = 0; plane < tile_blocks(channels) * parts; ++plane)
      for (int64_t i = 0; i < positions; ++i)
        _mm512_store_si512(to + plane * part_pitch + i * position_pitch, _mm512_setzero_si512());
  }
  // 32 channels that are neighbours, from channel c on.
  __attribute__((always_inline)) void pack_neighbours(char* to, const T* from, int64_t c) const {
    const int64_t left = channels - c;
    store_pairs<T, parts>(to, part_pitch, (__m512)read_some<float>(from + c, left),
                          (__m512)read_some<float>(from + c + 16, left - 16));
  }
  void pack(char* to, const T* from, int64_t channel_stride, int64_t position_stride, int64_t positions) const {
    if (channel_stride == 1) {
      for (int64_t i = 0; i < positions; ++i, to += position_pitch, from += position_stride)
        for (int64_t c = 0; c < channels; c += kTileEdge) pack_neighbours(to + c / kTileEdge * block_pitch(), from, c);
      return;
    }
    alignas(64) float lanes[2][16 * 16];
    for (int64_t c = 0; c < channels; c += kTileEdge) {
      char* block = to + c / kTileEdge * block_pitch();
      for (int64_t i0 = 0; i0 < positions; i0 += 16) {
        const int64_t count = min_of(16, positions - i0);
        for (int half = 0; half < 2; ++half)
          load_lanes(lanes[half], from + (c + 16 * half) * channel_stride + i0 * position_stride, channel_stride,
                     position_stride, max_of(0, min_of(16, channels - c - 16 * half)), count);
        for (int64_t i = 0; i < count; ++i, block += position_pitch)
          store_pairs<T, parts>(block, part_pitch, _mm512_load_ps(lanes[0] + i * 16),
                                _mm512_load_ps(lanes[1] + i * 16));
      }
    }
  }
};

// Visits the runs of a row of packed positions that lie in the source, image by image, and what is between them:
// pack(at, positions, from) and clear(at, positions), where `at` is the packed position and `from` the source's number.
template <class T, class Pack, class Clear>
inline void for_each_run(const PackedTaps& taps, int64_t images, const View<T>& view, int64_t n0, int64_t n1,
                         int64_t i0, int64_t j0, int64_t height, Pack pack, Clear clear) {
  const AxisTable &rows = taps.rows, &columns = taps.columns;
  for (int64_t x = 0; x < columns.regions; ++x) {
    const Region& across = columns.region[x];
    const Range inside = range_inside(columns.source_at(across, j0, 0), columns.step, across.length, columns.source);
    for (int64_t y = 0; y < rows.regions; ++y) {
      const Region& down = rows.region[y];
      for (int64_t i = 0; i < down.length - (rows.tile - height); ++i) {
        const int64_t row = rows.source_at(down, i0, i);
        const int64_t at = (x * rows.positions + rows.begin[y] + i) * columns.longest * images;
        const bool outside = row < 0 || row >= rows.source || inside.count() == 0;
        for (int64_t b = 0; b < n1 - n0; ++b) {
          if (outside) {
            clear(at + b, across.length);
            continue;
          }
          clear(at + b, inside.first);
          pack(at + b + inside.first * images, inside.count(),
               view.data + (n0 + b) * view.n + row * view.row +
                   columns.source_at(across, j0, inside.first) * view.column);
          clear(at + b + inside.last * images, across.length - inside.last);
        }
      }
    }
  }
}

// Packs a panel: the weights of up to 32 outputs, from 32 channels to the next, in units that are small enough to stand
// between products. Of each 16 outputs, 32 channels and 16 taps, squares are turned so that outputs are neighbours,
// then split.
template <class T, int parts>
struct PanelPacker {
  static constexpr int64_t kTaps = 16;
  struct alignas(64) Rows {
    float of[kTileEdge * kTaps * 16];  // [of a channel and tap][16 outputs]
  };
  const TileTables& tables;
  View<T> weights;  // from the first output and channel on
  int64_t outputs, channels, taps, taps_of_row;
  char* panel;
  int64_t block, last;  // 32 channels: the next, and the end
  Rows& rows;
  int64_t half = 0, tap = 0, unit = 0;

  bool more() const { return block < last; }
  // Until the first blocks are packed.
  void pack_until(int64_t blocks) {
    while (block < min_of(blocks, last)) pack_next();
  }
  __attribute__((noinline)) void pack_next() {
    const int64_t count = min_of(kTaps, taps - tap), its_channels = min_of(kTileEdge, channels - block * kTileEdge);
    const int64_t lanes = max_of(0, min_of(16, outputs - 16 * half));
    // Taps that are neighbours are turned together, with those of the next channels where these follow.
    const bool by_taps = weights.n != 1 && weights.column == 1 && weights.row == taps_of_row && taps > 1;
    const bool joined = by_taps && count == taps && weights.channel == taps;
    const int64_t squares = joined ? ceil_div(its_channels * count, 16) : by_taps ? its_channels : 2 * count;
    const T* const from = weights.data + 16 * half * weights.n + block * kTileEdge * weights.channel;
    if (unit >= squares) {
      split((unit - squares) / 2, (unit - squares) % 2 * 8, its_channels, by_taps ? count : 1,
            by_taps ? 1 : its_channels);
    } else if (joined) {
      positions_to_lanes(rows.of + unit * 256, from + unit * 16, weights.n, 1, lanes,
                         min_of(16, its_channels * count - unit * 16));
    } else if (by_taps) {
      positions_to_lanes(rows.of + unit * count * 16, from + unit * weights.channel + tap, weights.n, 1, lanes, count);
    } else {
      const int64_t t = tap + unit / 2, c = unit % 2 * 16;
      positions_to_lanes(rows.of + (unit / 2 * its_channels + c) * 16,
                         from + c * weights.channel + t / taps_of_row * weights.row + t % taps_of_row * weights.column,
                         weights.n, weights.channel, lanes, max_of(0, min_of(16, its_channels - c)));
    }
    if (++unit < squares + 2 * count) return;
    unit = 0;
    tap += kTaps;
    if (tap < taps) return;
    tap = 0;
    if (++half < 2) return;
    half = 0;
    ++block;
  }

 private:
  // Eight pairs, from channel c on, of the t-th of these taps.
  void split(int64_t t, int64_t c, int64_t its_channels, int64_t channel_step, int64_t tap_step) const {
    const int64_t slot = tables.slot[tap + t];
    if (slot < 0) return;
    char* const to = panel + (slot + block * tables.slot_step[tap + t]) * parts * kStepBytes + half * kTileBytes;
    const auto row = [&](int64_t channel) {
      return channel < its_channels ? _mm512_load_ps(rows.of + (channel * channel_step + t * tap_step) * 16)
                                    : _mm512_setzero_ps();
    };
    for (int64_t i = c; i < c + 8; ++i) store_pairs<T, parts>(to + i * 64, kStepBytes, row(i), row(i + 16));
  }
};

}  // namespace conv_ext

#endif
