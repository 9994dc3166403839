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

template <class Math>
CONV_EXT_CROWDED_KERNEL(kFirstThreads, 4)
first_layer(FirstLayerParameters<typename Math::Element, typename Math::Sum> p) {
  if constexpr (kHasTensorCores) {
    using T = typename Math::Element;
    constexpr int kDown = kFirstRows / 16, kAcross = 4, kInWord = 4 / int(sizeof(T));
    T* const box = reinterpret_cast<T*>(shared_memory());
    T* const weights = reinterpret_cast<T*>(shared_memory() + p.weights_at);
    int32_t* const offsets = reinterpret_cast<int32_t*>(shared_memory() + p.offsets_at);
    float* const finished = reinterpret_cast<float*>(shared_memory() + p.sums_at);
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    uint32_t rest = uint32_t(block_index());
    const int32_t tile_x = int32_t(rest % uint32_t(p.tiles_w));
    rest /= uint32_t(p.tiles_w);
    const int32_t tile_y = int32_t(rest % uint32_t(p.tiles_h));
    rest /= uint32_t(p.tiles_h);
    const int32_t m0 = int32_t(rest % uint32_t(p.tiles_m)) * kFirstRows, n = int32_t(rest / uint32_t(p.tiles_m));
    const int32_t rows = p.rows - m0 < kFirstRows ? p.rows - m0 : kFirstRows;
    const int32_t y0 = tile_y * p.tile_h, x0 = tile_x * p.tile_w;
    const int32_t first_w = first_source(p.horizontal, x0), w0 = first_column<T>(p.box, first_w);

    Patches<T> source = p.source;
    source.data += n * p.from_n;
    stage<false>(box, p.box, source, first_source(p.vertical, y0), w0, p.channels, kFirstThreads);
    commit_copies();
    const int32_t numbers = int32_t(p.by_pitch.by);
    for (int32_t i = thread; i < kFirstRows * numbers; i += kFirstThreads) {
      const int32_t m = p.by_pitch.quotient(i), k = i - m * numbers;
      const int32_t c = p.taps.quotient(k), tap = k - c * int32_t(p.taps.by), r = p.taps_w.quotient(tap),
                    s = tap - r * int32_t(p.taps_w.by);
      T value{};
      if (m < rows && k < p.products)
        value = p.weights[(m0 + m) * p.weight_m + c * p.weight_c + r * p.weight_h + s * p.weight_w];
      weights[m * p.pitch + k] = value;
      if (m == 0)
        offsets[k] = k < p.products ? c * p.box.pitch_c + r * p.vertical.dilation * p.box.pitch_h +
                                          s * p.horizontal.dilation * p.box.pitch_w
                                    : -1;
    }
    wait_copies<0>();
    barrier();

    const int32_t positions = p.tile_h * p.tile_w;
    for (int32_t begin = 0; begin < positions; begin += kFirstPositions) {
      int32_t first[kAcross];  // of this lane's positions in the box
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        const int32_t i = begin + warp * 32 + j * 8 + lane / 4, y = p.by_tile_w.quotient(i), x = i - y * p.tile_w;
        first[j] = i < positions ? y * p.vertical.stride * p.box.pitch_h +
                                       (x * p.horizontal.stride + first_w - w0) * p.box.pitch_w
                                 : 0;
      }
      typename Math::Sums sums[kDown][kAcross];
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
          if (i * 16 >= rows) continue;  // for all threads alike
          typename Math::Left a;
          Math::template load_left<Order::Along>(a, weights + i * 16 * p.pitch + k, p.pitch, lane);
#pragma unroll
          for (int j = 0; j < kAcross; ++j) Math::multiply(sums[i][j], a, b[j]);
        }
      }
      // Through shared memory, so that neighbouring threads write neighbouring numbers.
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        if (i * 16 >= rows) continue;
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
          const int32_t y = y0 + in_y, x = x0 + index - in_y * p.tile_w, row = i * 16 + m;
          if (index < positions && y < p.height && x < p.width && row < rows)
            p.result.write(m0 + row, n * p.to_n + y * p.to_h + x * p.to_w, finished[m * kFirstPitch + position]);
        }
        barrier();  // the next rows' sums go to the same places
      }
    }
  }
}

}  // namespace cuda
}  // namespace conv_ext
