// Packing: tensors of any layout and type, read and written.
//
// A tile of the source becomes rows of the accumulator's type, channel by channel, so that the operands of
// neighbouring outputs are neighbours for every tap:
//   packed[channel][column region][row position][column position][image]
// with zeros where the padding is read. Regions are explained in indexing.h.
#pragma once

#include "../kernels.h"
#include "extents.h"
#include "simd.h"
#include "taps.h"

namespace conv_ext {

// A (N, channel, row, column) view of one operand: real numbers of type T; complex tensors have two per element.
template <class T>
struct View {
  T* data;
  int64_t n, channel, row, column;  // strides in T
};
template <class T>
inline View<T> view_of(const TensorRef& t, int64_t parts) {
  return {static_cast<T*>(t.data), t.stride[0] * parts, t.stride[1] * parts, t.stride[2] * parts, t.stride[3] * parts};
}

// User tensors may lie at any byte address.
template <class A, class T>
inline __attribute__((always_inline)) A read(const T* p) {
  T number;
  memcpy(&number, p, sizeof(T));
  return widen<A, T>(number);
}
template <class T, class A>
inline __attribute__((always_inline)) void write(T* p, A a) {
  const T number = narrow<T, A>(a);
  memcpy(p, &number, sizeof(T));
}

// A vector of bfloat16 as float, and back, as widen and narrow do it; the first `count` of them, the rest zero.
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
inline __attribute__((always_inline)) Halves load_halves(const void* p, int64_t count) {
  Halves halves{};
  if (count >= kLanes<float>) {
    memcpy(&halves, p, sizeof(halves));
    return halves;
  }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  halves = (Halves)_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p);
#else
  for (int64_t i = 0; i < count; ++i)
    memcpy(reinterpret_cast<char*>(&halves) + 2 * i, static_cast<const char*>(p) + 2 * i, 2);
#endif
  return halves;
}
inline __attribute__((always_inline)) void store_halves(void* p, Halves halves, int64_t count) {
  if (count >= kLanes<float>) {
    memcpy(p, &halves, sizeof(halves));
    return;
  }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), (__m256i)halves);
#else
  memcpy(p, &halves, size_t(2 * count));
#endif
}
inline __attribute__((always_inline)) Vec<float> widen_halves(Halves halves) {
  return (Vec<float>)(__builtin_convertvector(halves, Vec<uint32_t>) << 16);
}
inline __attribute__((always_inline)) Halves narrow_halves(Vec<float> v) {
  const Vec<uint32_t> u = (Vec<uint32_t>)v, high = u >> 16, nan = (Vec<uint32_t>)(v != v);
  const Vec<uint32_t> rounded = (u + 0x7fffu + (high & 1)) >> 16;
  return __builtin_convertvector((nan & (high | 0x40u)) | (~nan & rounded), Halves);
}

// The same for either type of two bytes.
#if defined(__F16C__)
constexpr bool kFloat16Lanes = true;
inline __attribute__((always_inline)) Vec<float> widen_halves(Halves halves, float16) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps((__m256i)halves);
#else
  return (Vec<float>)_mm256_cvtph_ps((__m128i)halves);
#endif
}
inline __attribute__((always_inline)) Halves narrow_halves(Vec<float> v, float16) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#else
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#endif
}
#else
constexpr bool kFloat16Lanes = false;
Vec<float> widen_halves(Halves halves, float16);
Halves narrow_halves(Vec<float> v, float16);
#endif
inline __attribute__((always_inline)) Vec<float> widen_halves(Halves halves, bfloat16) { return widen_halves(halves); }
inline __attribute__((always_inline)) Halves narrow_halves(Vec<float> v, bfloat16) { return narrow_halves(v); }
template <class A, class T>
constexpr bool kHalves = sizeof(A) == 4 && (is_same<T, bfloat16> || (is_same<T, float16> && kFloat16Lanes));

// kLanes neighbours, or the first `count` of them (the rest is zero), as the accumulator's type; and back.
template <class A, class T>
inline __attribute__((always_inline)) Vec<A> read_lanes(const T* p) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return load(p);
  } else if constexpr (kHalves<A, T>) {
    return widen_halves(load_halves(p, kLanes<A>), T{});
  } else {
    A lane[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) lane[i] = read<A>(p + i);
    return load(lane);
  }
}
template <class A, class T>
inline __attribute__((always_inline)) Vec<A> read_lanes(const T* p, int64_t count) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return load_first(p, count);
  } else if constexpr (kHalves<A, T>) {
    return widen_halves(load_halves(p, count), T{});
  } else {
    A lane[kLanes<A>] = {};
    for (int64_t i = 0; i < count; ++i) lane[i] = read<A>(p + i);
    return load(lane);
  }
}
template <class T, class A>
inline __attribute__((always_inline)) void write_lanes(T* p, Vec<A> v) {
  if constexpr (sizeof(T) == sizeof(A)) {
    store(p, v);
  } else if constexpr (kHalves<A, T>) {
    store_halves(p, narrow_halves(v, T{}), kLanes<A>);
  } else {
    A lane[kLanes<A>];
    store(lane, v);
    for (int i = 0; i < kLanes<A>; ++i) write<T>(p + i, lane[i]);
  }
}
template <class T, class A>
inline __attribute__((always_inline)) void write_lanes(T* p, Vec<A> v, int64_t count) {
  if constexpr (sizeof(T) == sizeof(A)) {
    store_first(p, v, count);
  } else if constexpr (kHalves<A, T>) {
    store_halves(p, narrow_halves(v, T{}), count);
  } else {
    A lane[kLanes<A>];
    store(lane, v);
    for (int64_t i = 0; i < count; ++i) write<T>(p + i, lane[i]);
  }
}

// A vector of `count` neighbours, 0 <= count <= kLanes; the rest is zero.
template <class A, class T>
inline __attribute__((always_inline)) Vec<A> read_some(const T* p, int64_t count) {
  if (count >= kLanes<A>) return read_lanes<A>(p);
  return count > 0 ? read_lanes<A>(p, count) : Vec<A>{};
}
template <class T, class A>
inline __attribute__((always_inline)) void write_some(T* p, Vec<A> v, int64_t count) {
  if (count >= kLanes<A>) {
    write_lanes<T, A>(p, v);
  } else if (count > 0) {
    write_lanes<T, A>(p, v, count);
  }
}

template <class X, class Y, bool second>
struct WiderOf {
  typedef X type;
};
template <class X, class Y>
struct WiderOf<X, Y, true> {
  typedef Y type;
};

// A block of channels x positions: to[c * to_channel + i * to_position] = from[c * from_channel + i * from_position].
// One of the two types is the accumulator's, the other one what is widened to it or what it is rounded to. Start
// reading at run.
template <class To, class From>
struct BlockCopy {
  typedef typename WiderOf<To, From, (sizeof(To) < sizeof(From))>::type A;
  To* to;
  int64_t to_channel, to_position;
  const From* from;
  int64_t from_channel, from_position;
  int64_t channels, positions;
  static constexpr int L = kLanes<A>;

  void run() const {
    if constexpr (is_same<To, From>) {
      if (read_every<2, 3, 4, 6, 8, 12>() || turn_few_channels()) return;
      if constexpr (kMaskedStores) {
        if (write_every<2, 3, 4>()) return;
      }
    }
    if (from_channel == 1 && to_position == 1) {
      // Of a few numbers in a row whole vectors would mostly be thrown away.
      if (!is_same<To, From> && min_of(channels, positions) <= L / 4) return copy_elements();
      return turn_squares();
    }
    if (from_position != 1 || to_position != 1) return copy_elements();
    positions <= 4 * L ? copy_short_rows() : copy_long_rows();
  }

 private:
  To* to_at(int64_t c, int64_t i) const { return to + c * to_channel + i * to_position; }
  const From* from_at(int64_t c, int64_t i) const { return from + c * from_channel + i * from_position; }

  // The longer loop is the inner one.
  void copy_elements() const {
    const auto copy = [this](int64_t c, int64_t i) { write<To, A>(to_at(c, i), read<A>(from_at(c, i))); };
    if (channels > positions) {
      for (int64_t i = 0; i < positions; ++i)
        for (int64_t c = 0; c < channels; ++c) copy(c, i);
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < positions; ++i) copy(c, i);
    }
  }

  // copy(i, count) for all positions, kLanes at a time; the last ones may be copied twice. A few positions alone are
  // copied element by element where they cannot be stored as a part of a vector.
  template <bool parts, class Copy>
  __attribute__((always_inline)) void by_vectors(const Copy& copy) const {
    for (int64_t i = 0; i + L <= positions; i += L) copy(i, L);
    if (positions % L == 0) return;
    if (positions > L) return copy(positions - L, L);
    if constexpr (parts) {
      copy(0, positions);
    } else {
      copy_elements();
    }
  }

  // Strided rows, and channels_last with a few channels: whole vectors, of which each channel picks its numbers.
  template <int... steps>
  bool read_every() const {
    return (read_every_one<steps>() || ...);
  }
  template <int step>
  __attribute__((always_inline)) bool read_every_one() const {
    if constexpr (step <= L) {
      // Squares cost about 4 L shuffles, however few channels they have.
      if (from_position != step || to_position != 1 || (from_channel == 1 && channels * (step - 1) > 4 * L))
        return false;
      by_vectors<kMaskedStores>([&](int64_t i, int64_t count) __attribute__((always_inline)) {
        for (int64_t c = 0; c < channels; ++c)
          write_some<To, A>(to_at(c, i), load_every<A, step>(from_at(c, i), count), count);
      });
      return true;
    }
    return false;
  }

  template <int... steps>
  bool write_every() const {
    return (write_every_one<steps>() || ...);
  }
  template <int step>
  __attribute__((always_inline)) bool write_every_one() const {
    if (to_position != step || from_position != 1) return false;
    by_vectors<true>([&](int64_t i, int64_t count) __attribute__((always_inline)) {
      for (int64_t c = 0; c < channels; ++c)
        store_every<A, step>(to_at(c, i), read_some<A>(from_at(c, i), count), count);
    });
    return true;
  }

  // Other distances between a few channels.
  bool turn_few_channels() const {
    constexpr int kFew = L < 4 ? L : 4;
    if (from_channel != 1 || to_position != 1 || channels > kFew) return false;
    by_vectors<false>([&](int64_t i, int64_t) __attribute__((always_inline)) {
      Vec<A> square[L];
      load_transposed<A>(square, from_at(0, i), from_position, channels);
#pragma GCC unroll 4
      for (int j = 0; j < kFew; ++j)
        if (j < channels) store(to_at(j, i), square[j]);
    });
    return true;
  }

  // channels_last: squares of kLanes channels by kLanes positions are turned round in registers.
  void turn_squares() const {
    for (int64_t c = 0; c < channels; c += L)
      for (int64_t i = 0; i < positions; i += L) turn_square(from_at(c, i), to_at(c, i), channels - c, positions - i);
  }
  __attribute__((always_inline)) void turn_square(const From* f, To* t, int64_t down, int64_t across) const {
    Vec<A> square[L];
    if (down >= L && across >= L) {
      if constexpr (is_same<From, A>) {
        load_transposed<A>(square, f, from_position);
      } else {
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) square[j] = read_lanes<A>(f + j * from_position);
        transpose<A>(square);
      }
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) write_lanes<To, A>(t + j * to_channel, square[j]);
    } else {
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) square[j] = read_some<A>(f + j * from_position, j < across ? down : 0);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j)
        if (j < down) write_some<To, A>(t + j * to_channel, square[j], across);
    }
  }

  // Rows of four vectors at most, whose number is known when compiling.
  void copy_short_rows() const {
    const int64_t full = (positions - 1) / L;
    if (full <= 0) return copy_vectors<0>();
    if (full == 1) return copy_vectors<1>();
    if (full == 2) return copy_vectors<2>();
    copy_vectors<3>();
  }
  template <int vectors>
  __attribute__((always_inline)) void copy_vectors() const {
    const int64_t rest = positions - vectors * L;
    for (int64_t c = 0; c < channels; ++c) {
      To* const t = to + c * to_channel;
      const From* const f = from + c * from_channel;
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) write_lanes<To, A>(t + v * L, read_lanes<A>(f + v * L));
      write_some<To, A>(t + vectors * L, read_some<A>(f + vectors * L, rest), rest);
    }
  }
  void copy_long_rows() const {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < positions; i += L)
        write_some<To, A>(to_at(c, i), read_some<A>(from_at(c, i), positions - i), positions - i);
  }
};

template <class To, class From>
inline void pack_block(To* to, int64_t to_channel, int64_t to_position, const From* from, int64_t from_channel,
                       int64_t from_position, int64_t channels, int64_t positions) {
  BlockCopy<To, From>{to, to_channel, to_position, from, from_channel, from_position, channels, positions}.run();
}

template <class A>
inline void clear_block(A* to, int64_t to_channel, int64_t channels, int64_t positions) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < positions; ++i) to[c * to_channel + i] = A(0);
}

struct PackedTile {
  int64_t images;         // lanes that hold different images at one position
  int64_t pitch;          // packed positions between two rows
  int64_t channel_pitch;  // elements between two channels
};

// Packs `channels` channels (the view starts at the first) of images [n0, n1) for outputs from (i0, j0) on; of the
// rows only those that the first `height` outputs of the tile read. `clear`: the padding is not zero yet.
template <class A, class T>
void pack_tile(A* packed, const PackedTile& layout, const View<T>& view, int64_t channels, int64_t n0, int64_t n1,
               const AxisTable& rows, const AxisTable& columns, int64_t i0, int64_t j0, int64_t height,
               bool clear = true) {
  for (int64_t x = 0; x < columns.regions; ++x) {
    const Region& across = columns.region[x];
    const Range inside = range_inside(columns.source_at(across, j0, 0), columns.step, across.length, columns.source);
    for (int64_t y = 0; y < rows.regions; ++y) {
      const Region& down = rows.region[y];
      const int64_t used = down.length - (rows.tile - height);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t source_row = rows.source_at(down, i0, i);
        A* to = packed + (x * rows.positions + rows.begin[y] + i) * layout.pitch * layout.images;
        if (source_row < 0 || source_row >= rows.source || inside.count() == 0) {
          if (clear) clear_block(to, layout.channel_pitch, channels, across.length * layout.images);
          continue;
        }
        if (clear) {
          clear_block(to, layout.channel_pitch, channels, inside.first * layout.images);
          clear_block(to + inside.last * layout.images, layout.channel_pitch, channels,
                      (across.length - inside.last) * layout.images);
        }
        for (int64_t b = 0; b < layout.images; ++b) {
          A* image = to + inside.first * layout.images + b;
          if (n0 + b < n1) {
            const T* from = view.data + (n0 + b) * view.n + source_row * view.row +
                            columns.source_at(across, j0, inside.first) * view.column;
            pack_block(image, layout.channel_pitch, layout.images, from, view.channel, columns.step * view.column,
                       channels, inside.count());
          } else if (clear) {
            for (int64_t c = 0; c < channels; ++c)
              for (int64_t j = 0; j < inside.count(); ++j) image[c * layout.channel_pitch + j * layout.images] = A(0);
          }
        }
      }
    }
  }
}

}  // namespace conv_ext
