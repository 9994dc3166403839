// AMX: a register tile of two by two matrices of 16 x 16 sums, each the product of 16 rows of 32 bfloat16 numbers with
// 16 pairs of 16 lanes.
//
// The tile instructions stand behind five functions, which are written twice: with the compiler's intrinsics, and in
// plain C++ with the arithmetic that the processor's manual defines. The second is what the tests run (the library
// "amx-emulated"): the first has been compiled, but it has not run on a processor yet.
#pragma once

#include "dot_bf16.h"

namespace conv_ext {

#if defined(CONV_EXT_AMX)

// Tiles 0 to 3 are the sums (two rows of blocks by two), 4 and 5 rows of x, 6 and 7 blocks of w.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
inline TileConfig tile_config(int rows0, int rows1) {
  TileConfig config;
  const int rows[8] = {rows0, rows0, rows1, rows1, rows0, rows1, 16, 16};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = uint8_t(rows[t]);
    config.row_bytes[t] = rows[t] > 0 ? 64 : 0;
  }
  return config;
}

#if defined(CONV_EXT_AMX_EMULATED)

struct EmulatedTiles {
  TileConfig config;
  alignas(64) float data[8][16][16];
};
inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
inline void tile_configure(const TileConfig& config) {
  emulated_tiles().config = config;
  memset(emulated_tiles().data, 0, sizeof(emulated_tiles().data));
}
inline void tile_release() {}
template <int t>
inline void tile_load(const void* from, int64_t stride) {
  for (int i = 0; i < emulated_tiles().config.rows[t]; ++i)
    memcpy(emulated_tiles().data[t][i], static_cast<const char*>(from) + i * stride, 64);
}
template <int t>
inline void tile_store(void* to, int64_t stride) {
  for (int i = 0; i < emulated_tiles().config.rows[t]; ++i)
    memcpy(static_cast<char*>(to) + i * stride, emulated_tiles().data[t][i], 64);
}
inline float flushed(float f) { return __builtin_fabsf(f) < 0x1p-126f ? 0.0f : f; }
// The products of even and odd elements are summed apart, then added to each other and to the tile.
template <int sums, int rows, int lanes>
inline void tile_dot() {
  EmulatedTiles& tiles = emulated_tiles();
  uint32_t x[16], w[16][16];
  memcpy(w, tiles.data[lanes], sizeof(w));
  for (int m = 0; m < tiles.config.rows[sums]; ++m) {
    memcpy(x, tiles.data[rows][m], sizeof(x));
    float part[2][16] = {};
    for (int k = 0; k < 16; ++k)
      for (int half = 0; half < 2; ++half) {
        const float a = flushed(float_of(half ? x[k] & 0xffff0000u : x[k] << 16));
        for (int n = 0; n < 16; ++n) {
          const float b = flushed(float_of(half ? w[k][n] & 0xffff0000u : w[k][n] << 16));
          part[half][n] = flushed(part[half][n] + a * b);
        }
      }
    for (int n = 0; n < 16; ++n)
      tiles.data[sums][m][n] = flushed(tiles.data[sums][m][n] + flushed(part[0][n] + part[1][n]));
  }
}

#else

// The intrinsics take the number of a tile as text, and do not tell the compiler which memory they read and write.
inline void tile_configure(const TileConfig& config) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  _tile_loadconfig(&config);
}
inline void tile_release() { _tile_release(); }
template <int t>
inline __attribute__((always_inline)) void tile_load(const void* from, int64_t stride) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  if constexpr (t == 0) _tile_loadd(0, from, stride);
  if constexpr (t == 1) _tile_loadd(1, from, stride);
  if constexpr (t == 2) _tile_loadd(2, from, stride);
  if constexpr (t == 3) _tile_loadd(3, from, stride);
  if constexpr (t == 4) _tile_loadd(4, from, stride);
  if constexpr (t == 5) _tile_loadd(5, from, stride);
  if constexpr (t == 6) _tile_loadd(6, from, stride);
  if constexpr (t == 7) _tile_loadd(7, from, stride);
}
template <int t>
inline __attribute__((always_inline)) void tile_store(void* to, int64_t stride) {
  if constexpr (t == 0) _tile_stored(0, to, stride);
  if constexpr (t == 1) _tile_stored(1, to, stride);
  if constexpr (t == 2) _tile_stored(2, to, stride);
  if constexpr (t == 3) _tile_stored(3, to, stride);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
template <int sums, int rows, int lanes>
inline __attribute__((always_inline)) void tile_dot() {
  if constexpr (sums == 0) _tile_dpbf16ps(0, 4, 6);
  if constexpr (sums == 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (sums == 2) _tile_dpbf16ps(2, 5, 6);
  if constexpr (sums == 3) _tile_dpbf16ps(3, 5, 7);
  static_assert(rows == 4 + sums / 2 && lanes == 6 + sums % 2, "tiles as TileConfig has them");
}

#endif

// The tiles' shapes during one task; nobody else may have configured them meanwhile.
class TileScope {
 public:
  TileScope() = default;
  ~TileScope() {
    if (rows_ > 0) tile_release();
  }
  TileScope(const TileScope&) = delete;
  void shape(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    tile_configure(tile_config(rows < 16 ? rows : 16, rows < 16 ? 0 : rows - 16));
  }

 private:
  int rows_ = 0;
};

template <bool two_rows, bool two_blocks>
inline void dot_tiles(const DotRows& a, int rows) {
  const int64_t pitch = a.pitch * int64_t(sizeof(bfloat16)), start_pitch = a.start_pitch * 4,
                out_pitch = a.out_pitch * 4;
  tile_load<0>(a.start, start_pitch);
  if (two_blocks) tile_load<1>(a.start + 16, start_pitch);
  if (two_rows) tile_load<2>(a.start + 16 * a.start_pitch, start_pitch);
  if (two_rows && two_blocks) tile_load<3>(a.start + 16 * a.start_pitch + 16, start_pitch);
  const auto multiply = [&](const bfloat16* x, int64_t x_pitch, const bfloat16* w, int64_t block)
      __attribute__((always_inline)) {
    tile_load<4>(x, x_pitch);
    tile_load<6>(w, 64);
    tile_dot<0, 4, 6>();
    if (two_blocks) {
      tile_load<7>(w + block, 64);
      tile_dot<1, 4, 7>();
    }
    if (two_rows) {
      tile_load<5>(reinterpret_cast<const char*>(x) + 16 * x_pitch, x_pitch);
      tile_dot<2, 5, 6>();
      if (two_blocks) tile_dot<3, 5, 7>();
    }
  };
  for (int product = kSplitProducts - a.parts * (a.parts + 1) / 2; product < kSplitProducts; ++product) {
    const bfloat16* const x_plane = a.x + kSplitProduct[product][0] * a.x_part;
    const bfloat16* const w_plane = a.w + kSplitProduct[product][1] * a.w_part;
    for (const Segment *s = a.segment, *last = s + a.segments; s != last; ++s) {
      const bfloat16* x = x_plane + s->x;
      const bfloat16* w = w_plane + s->w * kPairBlock;
      int64_t e = s->elements;
      for (; e >= 32; e -= 32, x += 32, w += 16 * kPairBlock) multiply(x, pitch, w, a.block);
      if (e == 0) continue;
      // What follows the segment may not be multiplied: it is read as zeros, in both operands.
      alignas(64) bfloat16 x_rest[32][32], w_rest[2][16 * kPairBlock];
      memset(x_rest, 0, sizeof(x_rest));
      memset(w_rest, 0, sizeof(w_rest));
      for (int m = 0; m < rows; ++m)
        memcpy(x_rest[m], reinterpret_cast<const char*>(x) + m * pitch, size_t(e) * sizeof(bfloat16));
      for (int block = 0; block <= int(two_blocks); ++block)
        memcpy(w_rest[block], w + block * a.block, size_t((e + 1) / 2) * kPairBlock * sizeof(bfloat16));
      multiply(x_rest[0], 64, w_rest[0], 16 * kPairBlock);
    }
  }
  tile_store<0>(a.out, out_pitch);
  if (two_blocks) tile_store<1>(a.out + 16, out_pitch);
  if (two_rows) tile_store<2>(a.out + 16 * a.out_pitch, out_pitch);
  if (two_rows && two_blocks) tile_store<3>(a.out + 16 * a.out_pitch + 16, out_pitch);
}

inline void pairs_tile(const DotRows& a, TileScope& scope, int rows, int blocks) {
  scope.shape(rows);
  if (rows > 16) {
    blocks == 2 ? dot_tiles<true, true>(a, rows) : dot_tiles<true, false>(a, rows);
  } else {
    blocks == 2 ? dot_tiles<false, true>(a, rows) : dot_tiles<false, false>(a, rows);
  }
}

#elif defined(CONV_EXT_BF16_DOT)

struct TileScope {};
inline void pairs_tile(const DotRows& a, TileScope&, int rows, int blocks) { dot_vectors(a, rows, blocks); }

#endif

}  // namespace conv_ext
