// forward of first layers on the tensor cores: up to 4 input channels, float32 as TF32, bfloat16, float16.
//
// As a matrix of patches the input would be read again for every tap. Here a box of it lies in shared memory, and a
// table says how far each number of gemm_k = (c, r, s) lies from a position's first: the right operand of a product is
// gathered from the box as it is needed. The weights of up to 64 channels lie beside it as rows.
#pragma once

#include "box.cuh"
#include "../epilogue.cuh"

namespace conv_ext {
namespace cuda {

constexpr int kFirstThreads = 128, kFirstRows = 64, kFirstPositions = 128;  // positions at a time, 32 of each warp
constexpr int kFirstPitch = kFirstPositions + 4;                            // of finished sums, 16 rows at a time

template <class T, class Sum>
struct FirstLayerParameters {
  Axis vertical, horizontal;
  Box box;
  Patches<T> source;
  int64_t from_n;
  int32_t rows, channels, height, width;  // K, C, P, Q
  int32_t tile_h, tile_w, tiles_m, tiles_h, tiles_w;
  int32_t products, pitch;  // C R S; numbers from one row of weights to the next
  Divider by_pitch, by_tile_w, taps, taps_w;
  int32_t weights_at, offsets_at, sums_at;  // bytes in shared memory
  const T* weights;
  int64_t weight_m, weight_c, weight_h, weight_w;
  int64_t to_n, to_h, to_w;
  Result<T, Sum> result;
};

// Two words of a right operand: as in a matrix whose rows are positions. Missing numbers, of offset -1, are zeros.
CONV_EXT_DEVICE void gather_right(uint32_t (&word)[2], const float* from, const int32_t (&offset)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) word[i] = offset[i] < 0 ? 0 : round_tf32(from[offset[i]]);
}
template <class T>
CONV_EXT_DEVICE void gather_right(uint32_t (&word)[2], const T* from, const int32_t (&offset)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = offset[2 * i] < 0 ? 0 : from[offset[2 * i]].bits,
                   high = offset[2 * i + 1] < 0 ? 0 : from[offset[2 * i + 1]].bits;
    word[i] = low | high << 16;
  }
}

// What a block computes: up to kFirstRows channels of the result at a tile of an image's outputs.
struct FirstLayerTile {
  int32_t n, m0, rows, y0, x0;
  int32_t w0, shift;  // the box's first column, and from there to that of the first output's first tap
};
template <class T, class Sum>
CONV_EXT_DEVICE FirstLayerTile first_layer_tile(const FirstLayerParameters<T, Sum>& p) {
  FirstLayerTile tile;
  uint32_t rest = uint32_t(block_index());
  tile.x0 = int32_t(rest % uint32_t(p.tiles_w)) * p.tile_w;
  rest /= uint32_t(p.tiles_w);
  tile.y0 = int32_t(rest % uint32_t(p.tiles_h)) * p.tile_h;
  rest /= uint32_t(p.tiles_h);
  tile.m0 = int32_t(rest % uint32_t(p.tiles_m)) * kFirstRows;
  tile.n = int32_t(rest / uint32_t(p.tiles_m));
  tile.rows = p.rows - tile.m0 < kFirstRows ? p.rows - tile.m0 : kFirstRows;
  const int32_t first_w = first_source(p.horizontal, tile.x0);
  tile.w0 = first_column<T>(p.box, first_w);
  tile.shift = first_w - tile.w0;
  return tile;
}

// Brings the weights of the tile's rows into shared memory, and where each of gemm_k lies in the box: rows and numbers
// that are not there are zeros.
template <class T, class Sum>
CONV_EXT_DEVICE void stage_first_weights(const FirstLayerParameters<T, Sum>& p, const FirstLayerTile& tile, T* weights,
                                         int32_t* offsets) {
  const int32_t numbers = int32_t(p.by_pitch.by);
  for (int32_t i = thread_index(); i < kFirstRows * numbers; i += kFirstThreads) {
    const int32_t m = p.by_pitch.quotient(i), k = i - m * numbers;
    const int32_t c = p.taps.quotient(k), tap = k - c * int32_t(p.taps.by), r = p.taps_w.quotient(tap),
                  s = tap - r * int32_t(p.taps_w.by);
    T value{};
    if (m < tile.rows && k < p.products)
      value = p.weights[(tile.m0 + m) * p.weight_m + c * p.weight_c + r * p.weight_h + s * p.weight_w];
    weights[m * p.pitch + k] = value;
    if (m == 0)
      offsets[k] = k < p.products ? c * p.box.pitch_c + r * p.vertical.dilation * p.box.pitch_h +
                                        s * p.horizontal.dilation * p.box.pitch_w
                                  : -1;
  }
}

// A warp's sums: kFirstRows channels by 32 positions, those of the tile from `begin` + 32 warps on.
template <class Math>
struct FirstLayerSums {
  using T = typename Math::Element;
  static constexpr int kDown = kFirstRows / 16, kAcross = 4, kInWord = 4 / int(sizeof(T));
  typename Math::Sums sums[kDown][kAcross];

  template <class Sum>
  CONV_EXT_DEVICE void multiply(const FirstLayerParameters<T, Sum>& p, const FirstLayerTile& tile, int32_t begin,
                                const T* box, const T* weights, const int32_t* offsets) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int32_t positions = p.tile_h * p.tile_w, numbers = int32_t(p.by_pitch.by);
    int32_t first[kAcross];  // of this lane's positions in the box
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      const int32_t i = begin + warp * 32 + j * 8 + lane / 4, y = p.by_tile_w.quotient(i), x = i - y * p.tile_w;
      first[j] = i < positions
                     ? y * p.vertical.stride * p.box.pitch_h + (x * p.horizontal.stride + tile.shift) * p.box.pitch_w
                     : 0;
    }
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    for (int32_t k = 0; k < numbers; k += Math::kK) {
      int32_t offset[2 * kInWord];
#pragma unroll
      for (int i = 0; i < 2 * kInWord; ++i)
        offset[i] = offsets[k + i / kInWord * 4 * kInWord + lane % 4 * kInWord + i % kInWord];
      typename Math::Right b[kAcross];
#pragma unroll
      for (int j = 0; j < kAcross; ++j) gather_right(b[j].word, box + first[j], offset);
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        if (i * 16 >= tile.rows) continue;  // for all threads alike
        typename Math::Left a;
        Math::template load_left<Order::Along>(a, weights + i * 16 * p.pitch + k, p.pitch, lane);
#pragma unroll
        for (int j = 0; j < kAcross; ++j) Math::multiply(sums[i][j], a, b[j]);
      }
    }
  }

  // Writes the block's sums, 16 rows at a time: through shared memory, so that neighbouring threads write neighbouring
  // numbers.
  template <class Sum>
  CONV_EXT_DEVICE void write(const FirstLayerParameters<T, Sum>& p, const FirstLayerTile& tile, int32_t begin,
                             float* finished) const {
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    const int32_t positions = p.tile_h * p.tile_w;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
      if (i * 16 >= tile.rows) continue;
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          finished[Math::row(lane, e / 2) * kFirstPitch + warp * 32 + j * 8 + Math::column(lane, e % 2)] =
              sums[i][j][e];
      barrier();
      for (int32_t at = thread; at < 16 * kFirstPositions; at += kFirstThreads) {
        const int32_t m = p.box.channels_last ? at % 16 : at / kFirstPositions,
                      position = p.box.channels_last ? at / 16 : at % kFirstPositions;
        const int32_t index = begin + position, in_y = p.by_tile_w.quotient(index);
        const int32_t y = tile.y0 + in_y, x = tile.x0 + index - in_y * p.tile_w, row = i * 16 + m;
        if (index < positions && y < p.height && x < p.width && row < tile.rows)
          p.result.write(tile.m0 + row, tile.n * p.to_n + y * p.to_h + x * p.to_w,
                         finished[m * kFirstPitch + position]);
      }
      barrier();  // the next rows' sums go to the same places
    }
  }
};

template <class Math>
CONV_EXT_CROWDED_KERNEL(kFirstThreads, 4)
first_layer(FirstLayerParameters<typename Math::Element, typename Math::Sum> p) {
  if constexpr (kHasTensorCores) {
    using T = typename Math::Element;
    T* const box = reinterpret_cast<T*>(shared_memory());
    T* const weights = reinterpret_cast<T*>(shared_memory() + p.weights_at);
    int32_t* const offsets = reinterpret_cast<int32_t*>(shared_memory() + p.offsets_at);
    float* const finished = reinterpret_cast<float*>(shared_memory() + p.sums_at);
    const FirstLayerTile tile = first_layer_tile(p);

    Patches<T> source = p.source;
    source.data += tile.n * p.from_n;
    stage<false>(box, p.box, source, first_source(p.vertical, tile.y0), tile.w0, p.channels, kFirstThreads);
    commit_copies();
    stage_first_weights(p, tile, weights, offsets);
    wait_copies<0>();
    barrier();

    for (int32_t begin = 0; begin < p.tile_h * p.tile_w; begin += kFirstPositions) {
      FirstLayerSums<Math> sums;
      sums.multiply(p, tile, begin, box, weights, offsets);
      sums.write(p, tile, begin, finished);
    }
  }
}

}  // namespace cuda
}  // namespace conv_ext
