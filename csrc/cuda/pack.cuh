// Copies that make operands easy to read: a tensor as channels_last in whole vectors of 16 bytes, weights as rows of
// the product.
#pragma once

#include "coordinates.cuh"

namespace conv_ext {
namespace cuda {

// The strides of a tensor's four dimensions, in elements.
struct Strides {
  int64_t n, c, h, w;
};

constexpr int kPackThreads = 256;

// A tensor in any layout becomes [n][h][w][groups][padded]: the channels of a group, and zeros up to `padded`.
template <class T>
struct PackSourceParameters {
  const T* from;
  T* to;
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
  static constexpr int kVector = 16 / int(sizeof(T)), kInWord = 4 / int(sizeof(T));
  static constexpr int kElements = 8192 / int(sizeof(T)), kMostChannels = 128 / int(sizeof(T));
  static_assert(sizeof(T) <= 4, "longer numbers are read one by one as quickly");
};

struct alignas(16) PackVector {
  uint32_t word[4];
};

template <class T>
CONV_EXT_KERNEL(kPackThreads)
pack_channels_last(PackSourceParameters<T> p) {
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
  const int log_vectors = p.log_channels - (sizeof(T) == 4 ? 2 : 3);
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(tile);
  const int64_t count = p.positions.count();
  for (int v = thread; v < positions << log_vectors; v += kPackThreads) {
    const int row = v >> log_vectors, vector = v & ((1 << log_vectors) - 1);
    const int64_t position = first_position + row;
    const int32_t slot = first_slot + vector * Tile::kVector;
    if (position >= count || slot >= slots) continue;
    PackVector value;
#pragma unroll
    for (int i = 0; i < 4; ++i) value.word[i] = words[row * (pitch / Tile::kInWord) + 4 * vector + i];
    *reinterpret_cast<PackVector*>(p.to + position * slots + slot) = value;
  }
}

// Weights for the passes that gather: rows of [phase][group][gemm_m][pitch], one thread for each number. A row holds a
// phase's taps, the channels of each together with zeros up to `padded`, and zeros at its end.
template <class T>
struct PackParameters {
  Axis vertical, horizontal;
  int32_t phases_w, phases, groups, rows, channels, padded;
  int64_t stride_m, stride_c, stride_h, stride_w;  // of the weights: between gemm_m, source channels, taps
  int64_t stride_group;
  const T* weights;
  T* packed;
  int64_t pitch;
};

template <class T>
CONV_EXT_KERNEL(kPackThreads)
pack_weights(PackParameters<T> p) {
  const int64_t index = block_index() * kPackThreads + thread_index();
  if (index >= int64_t(p.phases) * p.groups * p.rows * p.pitch) return;
  const int64_t k = index % p.pitch, row = index / p.pitch % p.rows;
  const int64_t group = index / p.pitch / p.rows % p.groups, phase = index / p.pitch / p.rows / p.groups;
  const PhaseAxis down = phase_of(p.vertical, int32_t(phase / p.phases_w)),
                  across = phase_of(p.horizontal, int32_t(phase % p.phases_w));
  T value{};
  if (k < int64_t(down.taps) * across.taps * p.padded) {
    const Digits d = digits_of(k, across.taps, p.padded);
    const int64_t r = down.first_tap + int64_t(d.high) * down.tap_step,
                  s = across.first_tap + int64_t(d.middle) * across.tap_step;
    if (d.low < p.channels)
      value =
          p.weights[group * p.stride_group + row * p.stride_m + d.low * p.stride_c + r * p.stride_h + s * p.stride_w];
  }
  p.packed[index] = value;
}

}  // namespace cuda
}  // namespace conv_ext
