// AMX: blocks of 32 x 32 sums, in registers that each hold 16 rows of 64 bytes.
//
// The tile instructions stand behind six functions, which are written twice: with the compiler's intrinsics, and in
// AVX-512 with the arithmetic that the processor's manual defines. The second is what the tests run (the library
// "amx-emulated").
//
// Every tile has 16 rows: shorter ones take as long. A task configures them once; rows that belong to nothing are read
// as they lie, and their sums are not written.
#pragma once

#include "../../common/parts.h"
#include "tiles_layout.h"
#include "../base/simd.h"

#if defined(__AMX_BF16__) || defined(CONV_EXT_AMX_EMULATED)
#define CONV_EXT_AMX

namespace conv_ext {

static_assert(kMachine.bf16_dot == Bf16Dot::Tiles);

#if defined(CONV_EXT_AMX_EMULATED)

struct EmulatedTiles {
  alignas(64) float data[8][16][16];
};
inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
inline void tiles_configure() { memset(&emulated_tiles(), 0, sizeof(EmulatedTiles)); }
inline void tiles_release() {}
template <int t>
inline void tile_zero() {
  memset(emulated_tiles().data[t], 0, sizeof(emulated_tiles().data[t]));
}
template <int t>
inline void tile_load(const void* from) {
  memcpy(emulated_tiles().data[t], from, sizeof(emulated_tiles().data[t]));
}
template <int t>
inline void tile_store(float* to, int64_t pitch) {
  for (int i = 0; i < 16; ++i) memcpy(to + i * pitch, emulated_tiles().data[t][i], 64);
}
// Subnormal operands and sums are zero, whatever the caller's mode.
inline __attribute__((always_inline)) __m512 flushed(__m512 v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(0x1p-126f), _CMP_NLT_UQ), v);
}
inline __attribute__((always_inline)) __m512 half_of(const float* pairs, int half) {
  const Vec<uint32_t> v = (Vec<uint32_t>)load(pairs);
  return flushed((__m512)(half != 0 ? v & 0xffff0000u : v << 16));
}
// The products of even and odd elements are summed apart, then added to each other and to the tile.
template <int sums, int rows, int lanes>
inline void tile_dot() {
  EmulatedTiles& tiles = emulated_tiles();
  __m512 w[2][16];
  for (int k = 0; k < 16; ++k)
    for (int half = 0; half < 2; ++half) w[half][k] = half_of(tiles.data[lanes][k], half);
  for (int m = 0; m < 16; ++m) {
    __m512 part[2] = {};
    for (int half = 0; half < 2; ++half) {
      alignas(64) float x[16];
      _mm512_store_ps(x, half_of(tiles.data[rows][m], half));
      for (int k = 0; k < 16; ++k)  // the products are exact
        part[half] = flushed(_mm512_fmadd_ps(_mm512_set1_ps(x[k]), w[half][k], part[half]));
    }
    float* const sum = tiles.data[sums][m];
    _mm512_store_ps(sum, flushed(_mm512_add_ps(_mm512_load_ps(sum), flushed(_mm512_add_ps(part[0], part[1])))));
  }
}
inline void tiles_fence() {}

#else

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// _tile_loadconfig does not say which memory it reads: stores to a local one the compiler may leave out.
inline constexpr TileConfig kTileConfig;
inline void tiles_configure() { _tile_loadconfig(&kTileConfig); }
inline void tiles_release() { _tile_release(); }
// The intrinsics do not say which memory they read and write either: before loads and after stores stands a fence for
// the compiler. They take the number of a tile as text.
inline __attribute__((always_inline)) void tiles_fence() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
template <int t>
inline __attribute__((always_inline)) void tile_zero() {
  if constexpr (t == 0) _tile_zero(0);
  if constexpr (t == 1) _tile_zero(1);
  if constexpr (t == 2) _tile_zero(2);
  if constexpr (t == 3) _tile_zero(3);
}
template <int t>
inline __attribute__((always_inline)) void tile_load(const void* from) {
  if constexpr (t == 4) _tile_loadd(4, from, 64);
  if constexpr (t == 5) _tile_loadd(5, from, 64);
  if constexpr (t == 6) _tile_loadd(6, from, 64);
  if constexpr (t == 7) _tile_loadd(7, from, 64);
}
template <int t>
inline __attribute__((always_inline)) void tile_store(float* to, int64_t pitch) {
  if constexpr (t == 0) _tile_stored(0, to, pitch * 4);
  if constexpr (t == 1) _tile_stored(1, to, pitch * 4);
  if constexpr (t == 2) _tile_stored(2, to, pitch * 4);
  if constexpr (t == 3) _tile_stored(3, to, pitch * 4);
  if constexpr (t == 4) _tile_stored(4, to, pitch * 4);
}
template <int sums, int rows, int lanes>
inline __attribute__((always_inline)) void tile_dot() {
  if constexpr (sums == 0) _tile_dpbf16ps(0, 4, 6);
  if constexpr (sums == 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (sums == 2) _tile_dpbf16ps(2, 5, 6);
  if constexpr (sums == 3) _tile_dpbf16ps(3, 5, 7);
  static_assert(rows == 4 + sums / 2 && lanes == 6 + sums % 2, "tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 lanes");
}

#endif

// The tiles of one task; nobody else may configure them meanwhile.
class TileScope {
 public:
  TileScope() { tiles_configure(); }
  ~TileScope() { tiles_release(); }
  TileScope(const TileScope&) = delete;
};

// Of the two tiles of rows (x) and of lanes (w) of a step: bytes from the first to the second, and between parts.
struct TilePitch {
  int64_t x_second, x_part, w_second, w_part;
};

// What a step multiplies, (part of x, part of w), in an order that changes one of them at a time: two parts need 8
// loads for 12 dots, three 14 for 24. Small products come first: each dot rounds the whole sum, and while it is small
// that is nothing.
template <int parts>
constexpr int kProducts = parts * (parts + 1) / 2;
constexpr int kWalk[3][6][2] = {{{0, 0}}, {{1, 0}, {0, 0}, {0, 1}}, {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 0}, {0, 2}}};
// Work between products.
struct NoWork {
  void operator()(int) const {}
};
// Measured on an Emerald Rapids: what stores tiles falls asleep where no tile was stored for some 0.7 us, and then the
// sums of a block take 0.3 us longer. After so many steps one is stored that nobody reads, which takes 10 ns.
template <int parts, class Between>
constexpr int64_t kStepsAwake = (is_same<Between, NoWork> ? 24 : 12) / kProducts<parts>;
// Into how many chains a sum of so many steps is cut, which are added in float32: products round as often as a chain
// has steps, the whole sum as often as there are chains. Of numbers of one sign three parts are at most 7 u A off, for
// sums of 64 to 4608 products (oneDNN's multiply-adds 5 to 23, channels_last 4 to 73). Two parts, and one, need no
// more.
template <int parts>
inline int64_t chains_of(int64_t steps) {
  if (parts < 3) return max_of(1, ceil_div(steps, parts == 2 ? 24 : 72));
  return steps <= 8 ? 1 : 1 + ceil_div(steps, 16);
}

// Which tiles of a block there are; and whether the source's part comes second, for its positions are the lanes: the
// order of the sums is that of the source's and the weights' parts.
template <bool its_two_rows, bool its_two_lanes, bool its_source_in_lanes>
struct BlockOf {
  static constexpr bool two_rows = its_two_rows, two_lanes = its_two_lanes, source_in_lanes = its_source_in_lanes;
};

template <int parts, int product, class Block, class Between>
inline __attribute__((always_inline)) void tile_products(const char* x, const char* w, const TilePitch& pitch,
                                                         const Between& between) {
  constexpr int x_operand = Block::source_in_lanes, w_operand = !Block::source_in_lanes;
  constexpr const int(&walk)[6][2] = kWalk[parts - 1];
  constexpr int x_part = walk[product][x_operand], w_part = walk[product][w_operand];
  constexpr bool first = product == 0;
  constexpr int before = first ? product : product - 1;
  if constexpr (first || x_part != walk[before][x_operand]) {
    tile_load<4>(x + x_part * pitch.x_part);
    if constexpr (Block::two_rows) tile_load<5>(x + x_part * pitch.x_part + pitch.x_second);
  }
  if constexpr (first || w_part != walk[before][w_operand]) {
    tile_load<6>(w + w_part * pitch.w_part);
    if constexpr (Block::two_lanes) tile_load<7>(w + w_part * pitch.w_part + pitch.w_second);
  }
  tile_dot<0, 4, 6>();
  if constexpr (Block::two_lanes) tile_dot<1, 4, 7>();
  if constexpr (Block::two_rows) tile_dot<2, 5, 6>();
  if constexpr (Block::two_rows && Block::two_lanes) tile_dot<3, 5, 7>();
  between(product);
  if constexpr (product + 1 < kProducts<parts>) tile_products<parts, product + 1, Block>(x, w, pitch, between);
}

// sums[32][32] = the products of so many steps, or are increased by them. Steps say where theirs begin (x, w), and go
// on to the next (next()); between(i) is other work, done while the tiles multiply.
template <int parts, class Block, class Steps, class Between>
inline __attribute__((always_inline)) void multiply_tiles(Steps steps, int64_t count, const TilePitch& pitch,
                                                          float* sums, bool add, const Between& between) {
  constexpr int64_t rows = Block::two_rows ? kTileEdge : kTileEdge / 2, lanes = Block::two_lanes ? kTileEdge : 16;
  alignas(64) float chain_sums[kTileEdge * kTileEdge], nobody_reads[16 * 16];
  const int64_t chains = chains_of<parts>(count);
  for (int64_t chain = 0; chain < chains; ++chain) {
    tiles_fence();
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    const int64_t its = part_of(count, chains, chain).count();
    for (int64_t i = 0; i < its; ++i, steps.next()) {
      tile_products<parts, 0, Block>(steps.x(), steps.w(), pitch, between);
      if (i % kStepsAwake<parts, Between> == kStepsAwake<parts, Between> - 1) tile_store<4>(nobody_reads, 16);
    }
    const bool more = add || chain > 0;
    float* const to = more ? chain_sums : sums;
    tile_store<0>(to, kTileEdge);
    if constexpr (Block::two_lanes) tile_store<1>(to + 16, kTileEdge);
    if constexpr (Block::two_rows) tile_store<2>(to + 16 * kTileEdge, kTileEdge);
    if constexpr (Block::two_rows && Block::two_lanes) tile_store<3>(to + 16 * kTileEdge + 16, kTileEdge);
    tiles_fence();
    for (int64_t i = 0; i < rows && more; ++i)
      for (int64_t l = i * kTileEdge; l < i * kTileEdge + lanes; l += 16)
        store(sums + l, load(sums + l) + load(chain_sums + l));
  }
}
// With the source in rows, of which so many are there; or, in multiply_lanes, in lanes.
template <int parts, class Steps, class Between = NoWork>
inline __attribute__((always_inline)) void multiply_rows(const Steps& steps, int64_t count, const TilePitch& pitch,
                                                         int64_t rows, float* sums, bool add,
                                                         const Between& between = {}) {
  if (rows > 16) return multiply_tiles<parts, BlockOf<true, true, false>>(steps, count, pitch, sums, add, between);
  multiply_tiles<parts, BlockOf<false, true, false>>(steps, count, pitch, sums, add, between);
}
template <int parts, class Steps, class Between>
inline __attribute__((always_inline)) void multiply_lanes(const Steps& steps, int64_t count, const TilePitch& pitch,
                                                          int64_t lanes, float* sums, const Between& between) {
  if (lanes > 16) return multiply_tiles<parts, BlockOf<true, true, true>>(steps, count, pitch, sums, false, between);
  multiply_tiles<parts, BlockOf<true, false, true>>(steps, count, pitch, sums, false, between);
}

}  // namespace conv_ext

#endif
