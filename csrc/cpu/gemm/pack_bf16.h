// Packing for the implicit matrix product: any operand becomes rows of bfloat16 whose neighbours are multiplied in
// pairs.
//
// float32 is rounded to nearest even on the way. `turn` and `interleave` move 16 pairs of 16-bit numbers at a time.
#pragma once

#include "../base/epilogue.h"

#if defined(__AVX512BW__)

namespace conv_ext {

inline __mmask16 mask16(int64_t count) { return count >= 16 ? __mmask16(-1) : __mmask16((1u << count) - 1); }
inline __mmask32 mask32(int64_t count) { return count >= 32 ? __mmask32(-1) : __mmask32((1u << count) - 1); }

// float32 to the nearest bfloat16, ties to even, NaN kept; as 16 numbers of 32 bits. The instruction makes subnormals
// zero, as those of the products do.
inline __attribute__((always_inline)) __m512i round_to_bf16(__m512 v) {
#if defined(__AVX512BF16__)
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v));
#else
  const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
#endif
}

// The first `count` of 16 neighbours as bfloat16 in the low halves of 32 bits; the rest is zero and is not touched.
inline __attribute__((always_inline)) __m512i bits16(const bfloat16* p, int64_t count) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask16(count), p));
}
inline __attribute__((always_inline)) __m512i bits16(const float* p, int64_t count) {
  return round_to_bf16(_mm512_maskz_loadu_ps(mask16(count), p));
}
inline __attribute__((always_inline)) void write16(bfloat16* p, __m512 v, int64_t count) {
  _mm256_mask_storeu_epi16(p, mask16(count), _mm512_cvtepi32_epi16(round_to_bf16(v)));
}
inline __attribute__((always_inline)) void write16(float* p, __m512 v, int64_t count) {
  _mm512_mask_storeu_ps(p, mask16(count), v);
}
// Two of them as 32 neighbours.
template <class T>
inline __attribute__((always_inline)) void write32(T* p, __m512 low, __m512 high) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 2) return _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
#endif
  write16(p, low, 16);
  write16(p + 16, high, 16);
}
// Numbers that T holds: what an epilogue has added is rounded to it, and may be subnormal.
inline __attribute__((always_inline)) void write_held16(bfloat16* p, __m512 v, int64_t count) {
  const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(v), 16);
  _mm256_mask_storeu_epi16(p, mask16(count), _mm512_cvtepi32_epi16(bits));
}
inline __attribute__((always_inline)) void write_held16(float* p, __m512 v, int64_t count) { write16(p, v, count); }
template <class T>
inline __attribute__((always_inline)) void write_finished16(const Finish<T, float>& finish, T* p, __m512 v,
                                                            int64_t count) {
  if (!finish.any()) return write16(p, v, count);
  v = (__m512)finish((Vec<float>)v, p, count);
  finish.adds ? write_held16(p, v, count) : write16(p, v, count);
}
// The pairs (a, b), (a, b) ... of two rows of 16.
inline __attribute__((always_inline)) __m512i pairs16(__m512i a, __m512i b) {
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}
// Turns 16 rows of 16 columns round: twice within the quarters of the vectors, twice between them. (The compiler builds
// the indices of simd.h's transpose at run time where it is called from a larger function: four times slower.)
inline __attribute__((always_inline)) void turn_square(__m512i* row) {
  __m512i half[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    half[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    half[i + 2] = _mm512_unpacklo_epi32(row[i + 2], row[i + 3]);
    half[i + 3] = _mm512_unpackhi_epi32(row[i + 2], row[i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {  // row[i + c]: column c of every quarter, rows i ... i + 3
    row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < 4; ++c) {
    half[c] = _mm512_shuffle_i32x4(row[c], row[c + 4], 0x88);      // quarters 0 and 2
    half[c + 4] = _mm512_shuffle_i32x4(row[c], row[c + 4], 0xdd);  // quarters 1 and 3
    half[c + 8] = _mm512_shuffle_i32x4(row[c + 8], row[c + 12], 0x88);
    half[c + 12] = _mm512_shuffle_i32x4(row[c + 8], row[c + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int c = 0; c < 4; ++c) {
    row[c] = _mm512_shuffle_i32x4(half[c], half[c + 8], 0x88);
    row[c + 8] = _mm512_shuffle_i32x4(half[c], half[c + 8], 0xdd);
    row[c + 4] = _mm512_shuffle_i32x4(half[c + 4], half[c + 12], 0x88);
    row[c + 12] = _mm512_shuffle_i32x4(half[c + 4], half[c + 12], 0xdd);
  }
}
// Sums [row][lane] to a row of outputs, as they are finished: rows are neighbouring columns, lanes output channels.
template <class T>
void write_rows(const Finish<T, float>& finish, const float* out, int64_t pitch, int64_t rows, int64_t lanes, T* to,
                int64_t channel_step, int64_t column_step) {
  const bool plain = !finish.any();
  if (channel_step == 1) {
    for (int64_t i = 0; i < rows; ++i, out += pitch, to += column_step) {
      int64_t l = 0;
      for (; plain && l + 32 <= lanes; l += 32)
        write32(to + l, _mm512_loadu_ps(out + l), _mm512_loadu_ps(out + l + 16));
      for (; l < lanes; l += 16) write_finished16(finish, to + l, _mm512_loadu_ps(out + l), min_of(16, lanes - l));
    }
    return;
  }
  if (rows > 16) {
    write_rows(finish, out + 16 * pitch, pitch, rows - 16, lanes, to + 16 * column_step, channel_step, column_step);
    rows = 16;
  }
  for (int64_t l0 = 0; l0 < lanes; l0 += 16) {
    __m512i square[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      square[i] = i < rows ? _mm512_loadu_si512(out + i * pitch + l0) : _mm512_setzero_si512();
    turn_square(square);
    alignas(64) __m512i turned[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) turned[i] = square[i];
    const int64_t some = min_of(16, lanes - l0);
    T* t = to + l0 * channel_step;
    for (int64_t l = 0; l < some; ++l, t += channel_step) {
      if (column_step == 1) {
        write_finished16(finish, t, _mm512_castsi512_ps(turned[l]), rows);
      } else {
        const float* const f = reinterpret_cast<const float*>(turned + l);
        for (int64_t i = 0; i < rows; ++i) {
          T* const at = t + i * column_step;
          write<T>(at, plain ? f[i] : finish.one(f[i], at));
        }
      }
    }
  }
}
inline bfloat16 bf16_of(float f) { return narrow<bfloat16>(f); }
inline bfloat16 bf16_of(bfloat16 t) { return t; }
template <class T>
inline __attribute__((always_inline)) bfloat16 read_bf16(const T* p) {
  T number;
  memcpy(&number, p, sizeof(T));
  return bf16_of(number);
}

template <class T>
inline void copy_run(bfloat16* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16)
    _mm256_mask_storeu_epi16(to + i, mask16(count - i), _mm512_cvtepi32_epi16(bits16(from + i, count - i)));
}
template <>
inline void copy_run(bfloat16* to, const bfloat16* from, int64_t count) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  if (i < count) {
    const __mmask32 rest = mask32(count - i);
    _mm512_mask_storeu_epi16(to + i, rest, _mm512_maskz_loadu_epi16(rest, from + i));
  }
}

// to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns.
template <class T>
void turn(bfloat16* to, int64_t to_step, const T* from, int64_t from_step, int64_t rows, int64_t columns) {
  if (rows == 1 && to_step == 1) return copy_run(to, from, columns);
  for (int64_t i0 = 0; i0 < rows; i0 += 32) {
    const int64_t height = min_of(32, rows - i0);
    for (int64_t j0 = 0; j0 < columns; j0 += 16) {
      const int64_t width = min_of(16, columns - j0);
      const T* const at = from + i0 * from_step + j0;
      const auto pairs_of = [&](int64_t i) __attribute__((always_inline)) {
        const __m512i even = i < height ? bits16(at + i * from_step, width) : _mm512_setzero_si512();
        return i + 1 < height ? pairs16(even, bits16(at + (i + 1) * from_step, width)) : even;
      };
      bfloat16* const corner = to + j0 * to_step + i0;
      if (height <= 4) {
        // A few rows: the four numbers of each column are 64 bits.
        const __m512i a = pairs_of(0), b = pairs_of(2);
        alignas(64) uint64_t column[16];
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        _mm512_store_si512(column, _mm512_permutex2var_epi32(a, low, b));
        _mm512_store_si512(column + 8, _mm512_permutex2var_epi32(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b));
        for (int64_t j = 0; j < width; ++j) {
          bfloat16* const t = corner + j * to_step;
          const uint64_t four = column[j];
          if (height == 4) {
            memcpy(t, &four, 8);
          } else {
            const uint32_t two = uint32_t(four);
            const uint16_t third = uint16_t(four >> 32);
            if (height == 1)
              memcpy(t, &two, 2);
            else
              memcpy(t, &two, 4);
            if (height == 3) memcpy(t + 2, &third, 2);
          }
        }
        continue;
      }
      __m512i square[16];
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p) square[p] = pairs_of(2 * p);
      turn_square(square);
      alignas(64) __m512i turned[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) turned[j] = square[j];
      const __mmask32 mask = mask32(height);
      for (int64_t j = 0; j < width; ++j) _mm512_mask_storeu_epi16(corner + j * to_step, mask, turned[j]);
    }
  }
}

// A block of rows x columns with any steps: to[i * to_i + j * to_j] = from[i * from_i + j * from_j], to_i or to_j = 1.
template <class T>
void pack_bf16(bfloat16* to, int64_t to_i, int64_t to_j, const T* from, int64_t from_i, int64_t from_j, int64_t rows,
               int64_t columns) {
  if (to_i != 1) return pack_bf16(to, to_j, to_i, from, from_j, from_i, columns, rows);
  // Now i runs through neighbours of the packed block.
  if (from_i == 1) {
    if (to_j == rows && from_j == rows) return copy_run(to, from, rows * columns);
    for (int64_t j = 0; j < columns; ++j) copy_run(to + j * to_j, from + j * from_j, rows);
  } else if (from_j == 1) {
    turn(to, to_j, from, from_i, rows, columns);
  } else {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < rows; ++i) to[j * to_j + i] = read_bf16(from + i * from_i + j * from_j);
  }
}

}  // namespace conv_ext

#endif
