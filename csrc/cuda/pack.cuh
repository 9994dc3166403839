// Copies that make operands easy to read: a tensor as channels_last in whole vectors of 16 bytes, weights as rows of
// the product.
#pragma once

#include <string.h>

#include "coordinates.cuh"

namespace conv_ext {
namespace cuda {

// The strides of a tensor's four dimensions, in elements.
struct Strides {
  int64_t n, c, h, w;
};

constexpr int kLogPackThreads = 8, kPackThreads = 1 << kLogPackThreads;

// What a number becomes when it is copied. A Kind has
//   Source, Element   the numbers of the tensor, and those of the copy
//   kParts, part      copies that stand for it together, and what of a number goes into which
template <class T>
struct WholeNumbers {
  using Source = T;
  using Element = T;
  static constexpr int kParts = 1;
  CONV_EXT_DEVICE static T part(T value, int) { return value; }
};

template <class T, int count>
struct alignas(sizeof(T) * count) PackVector {
  T number[count];
};

// A tensor in any layout becomes [part][n][h][w][groups][padded]: the channels of a group, and zeros up to `padded`.
template <class Source, class Element>
struct PackSourceParameters {
  const Source* from;
  Element* to;
  Positions positions;
  int64_t stride_c;
  int32_t groups, channels, padded;             // of a group
  int32_t along_channels;                       // neighbouring threads read neighbouring channels, else positions
  int32_t tiles;                                // of all channels; those of the same positions are neighbours
  int32_t log_channels, tile_positions, pitch;  // of a tile: a power of two of channels; between positions in it
};

// A tile of positions x channels goes through shared memory, so that it is read along the tensor's neighbours and
// written along channels. A row of it is an odd number of words long: neither way do lanes meet in a bank.
template <class T>
struct PackTile {
  static constexpr int kInWord = 4 / int(sizeof(T));
  static constexpr int kElements = 8192 / int(sizeof(T)), kMostChannels = 128 / int(sizeof(T));
  static_assert(sizeof(T) <= 4, "longer numbers are read one by one as quickly");
};

template <class Kind, class T = typename Kind::Source, class Element = typename Kind::Element>
CONV_EXT_KERNEL(kPackThreads)
pack_channels_last(PackSourceParameters<T, Element> p) {
  using Tile = PackTile<T>;
  T* const tile = reinterpret_cast<T*>(shared_memory());
  const int thread = thread_index(), channels = 1 << p.log_channels, positions = p.tile_positions, pitch = p.pitch;
  const uint32_t block = uint32_t(block_index()), tiles = uint32_t(p.tiles);
  const int64_t first_position = int64_t(block / tiles) * positions;
  const int32_t first_slot = int32_t(block % tiles) * channels, slots = p.groups * p.padded;

  const int fast = p.along_channels ? channels : positions < kPackThreads ? positions : kPackThreads;
  const int mine_fast = thread % fast, mine_slow = thread / fast, slow = kPackThreads / fast;
  const int first_c = p.along_channels ? mine_fast : mine_slow, step_c = p.along_channels ? fast : slow;
  const int first = p.along_channels ? mine_slow : mine_fast, step = p.along_channels ? slow : fast;
  Walker<Positions> walker;
  walker.map = p.positions;
  walker.seek(first_position + first);
  for (int position = first;;) {
    const Coordinate at = walker.here();
#pragma unroll 8
    for (int c = first_c; c < channels; c += step_c) {
      const int32_t slot = first_slot + c;
      const int32_t group = p.groups == 1 ? 0 : int32_t(uint32_t(slot) / uint32_t(p.padded));
      const int32_t channel = slot - group * p.padded;
      const bool inside = at.h != kNowhere && slot < slots && channel < p.channels;
      tile[position * pitch + c] =
          inside ? p.from[at.offset + (int64_t(group) * p.channels + channel) * p.stride_c] : T{};
    }
    if ((position += step) >= positions) break;
    walker.advance(step);
  }
  barrier();
  constexpr int kLogWide = sizeof(Element) == 4 ? 2 : 3, kWide = 1 << kLogWide, kWords = kWide / Tile::kInWord;
  const int log_vectors = p.log_channels - kLogWide;
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(tile);
  const int64_t count = p.positions.count();
  for (int v = thread; v < positions << log_vectors; v += kPackThreads) {
    const int row = v >> log_vectors, vector = v & ((1 << log_vectors) - 1);
    const int64_t position = first_position + row;
    const int32_t slot = first_slot + vector * kWide;
    if (position >= count || slot >= slots) continue;
    uint32_t word[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = words[row * (pitch / Tile::kInWord) + kWords * vector + i];
    T number[kWide];
    memcpy(number, word, sizeof number);
#pragma unroll
    for (int part = 0; part < Kind::kParts; ++part) {
      PackVector<Element, kWide> value;
#pragma unroll
      for (int i = 0; i < kWide; ++i) value.number[i] = Kind::part(number[i], part);
      *reinterpret_cast<PackVector<Element, kWide>*>(p.to + (part * count + position) * slots + slot) = value;
    }
  }
}

// Weights for the passes that gather: rows of [part][phase][group][gemm_m][pitch]. A row holds a phase's taps, the
// channels of each together with zeros up to `padded`, and zeros at its end. A thread makes kWide neighbours at a time.
enum class PackOrder : int32_t { Channels, Taps, Rows };  // which of them neighbouring threads read
template <class Source, class Element>
struct PackParameters {
  Axis vertical, horizontal;
  int32_t phases_w, phases, groups, rows, channels, padded;
  PackOrder order;
  int32_t log_lanes;                               // threads that share a row: a power of two
  int64_t stride_m, stride_c, stride_h, stride_w;  // of the weights: between gemm_m, source channels, taps
  int64_t stride_group;
  const Source* weights;
  Element* packed;
  int64_t pitch;

  CONV_EXT_DEVICE int64_t all_rows() const { return int64_t(phases) * groups * rows; }
};

template <class Kind, int kWide, class T = typename Kind::Source, class Element = typename Kind::Element>
CONV_EXT_KERNEL(kPackThreads)
pack_weights(PackParameters<T, Element> p) {
  const int thread = thread_index(), lanes = 1 << p.log_lanes, log_rows = kLogPackThreads - p.log_lanes;
  const bool along_rows = p.order == PackOrder::Rows;
  const int lane = along_rows ? thread >> log_rows : thread & (lanes - 1);
  const int64_t index =
      (block_index() << log_rows) + (along_rows ? thread & ((1 << log_rows) - 1) : thread >> p.log_lanes);
  if (index >= p.all_rows()) return;
  const Digits d = digits_of(index, p.groups, p.rows);  // phase, group, row
  const PhaseAxis down = phase_of(p.vertical, d.high / p.phases_w),
                  across = phase_of(p.horizontal, d.high % p.phases_w);
  const T* const from = p.weights + d.middle * p.stride_group + d.low * p.stride_m + down.first_tap * p.stride_h +
                        across.first_tap * p.stride_w;
  const int64_t step_h = down.tap_step * p.stride_h, step_w = across.tap_step * p.stride_w;
  const uint32_t taps = uint32_t(down.taps * across.taps), vectors = uint32_t(p.padded) / kWide;  // of a tap
  const uint32_t fast = p.order == PackOrder::Taps ? taps : vectors;
  for (uint32_t v = uint32_t(lane); v < uint32_t(p.pitch) / kWide; v += uint32_t(lanes)) {
    T number[kWide] = {};
    uint32_t to = v * kWide;
    if (v < taps * vectors) {
      const uint32_t high = v / fast, low = v - high * fast, tap = p.order == PackOrder::Taps ? low : high;
      const uint32_t first = (p.order == PackOrder::Taps ? high : low) * kWide;
      const uint32_t r = tap / uint32_t(across.taps), s = tap - r * uint32_t(across.taps);
      const T* const numbers = from + r * step_h + s * step_w + first * p.stride_c;
#pragma unroll
      for (int i = 0; i < kWide; ++i)
        if (first + i < uint32_t(p.channels)) number[i] = numbers[i * p.stride_c];
      to = tap * uint32_t(p.padded) + first;
    }
#pragma unroll
    for (int part = 0; part < Kind::kParts; ++part) {
      PackVector<Element, kWide> value;
#pragma unroll
      for (int i = 0; i < kWide; ++i) value.number[i] = Kind::part(number[i], part);
      *reinterpret_cast<PackVector<Element, kWide>*>(p.packed + (part * p.all_rows() + index) * p.pitch + to) = value;
    }
  }
}

}  // namespace cuda
}  // namespace conv_ext
