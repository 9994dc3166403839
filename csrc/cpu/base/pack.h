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

// kLanes neighbours, or the first `count` of them (the rest is zero), as the accumulator's type; and back.
template <class A, class T>
inline __attribute__((always_inline)) Vec<A> read_lanes(const T* p) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return load(p);
  } else if constexpr (is_same<T, bfloat16> && sizeof(A) == 4) {
    return widen_halves(load_halves(p, kLanes<A>));
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
  } else if constexpr (is_same<T, bfloat16> && sizeof(A) == 4) {
    return widen_halves(load_halves(p, count));
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
  } else if constexpr (is_same<T, bfloat16> && sizeof(A) == 4) {
    store_halves(p, narrow_halves(v), kLanes<A>);
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
  } else if constexpr (is_same<T, bfloat16> && sizeof(A) == 4) {
    store_halves(p, narrow_halves(v), count);
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

// A block of channels x positions: to[c * to_channel + i * to_position] = from[c * from_channel + i * from_position].
template <class A, class T>
inline void pack_block(A* to, int64_t to_channel, int64_t to_position, const T* from, int64_t from_channel,
                       int64_t from_position, int64_t channels, int64_t positions) {
  constexpr int L = kLanes<A>;
  if constexpr (is_same<A, T>) {
    const auto few = [&](const auto& load_positions) {
      int64_t done = 0;
      for (; done + L <= positions; done += L) load_positions(done);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = done; i < positions; ++i)
          write<A, A>(to + c * to_channel + i, read<A>(from + c * from_channel + i * from_position));
    };
    // Strided rows, and channels_last with a few channels: whole vectors, of which each channel picks its numbers.
    const auto every = [&](auto step) {
      constexpr int kStep = decltype(step)::value;
      if constexpr (kStep <= L) {
        // Squares cost about 4 L shuffles, however few channels they have.
        if (from_position != kStep || to_position != 1 || (from_channel == 1 && channels * (kStep - 1) > 4 * L))
          return false;
        few([&](int64_t i) {
          for (int64_t c = 0; c < channels; ++c)
            store(to + c * to_channel + i, load_every<A, kStep>(from + c * from_channel + i * from_position));
        });
        return true;
      }
      return false;
    };
    if (every(Constant<2>{}) || every(Constant<3>{}) || every(Constant<4>{}) || every(Constant<6>{}) ||
        every(Constant<8>{}) || every(Constant<12>{}))
      return;
    // Other distances between a few channels.
    constexpr int kFew = L < 4 ? L : 4;
    if (from_channel == 1 && to_position == 1 && channels <= kFew)
      return few([&](int64_t i) {
        Vec<A> square[L];
        load_transposed<A>(square, from + i * from_position, from_position, channels);
#pragma GCC unroll 4
        for (int j = 0; j < kFew; ++j)
          if (j < channels) store(to + j * to_channel + i, square[j]);
      });
  }
  if (from_channel == 1 && to_position == 1) {
    // channels_last: squares of kLanes channels by kLanes positions are turned round in registers.
    for (int64_t c = 0; c < channels; c += L)
      for (int64_t i = 0; i < positions; i += L) {
        const int64_t down = channels - c, across = positions - i;
        const T* f = from + c + i * from_position;
        A* t = to + c * to_channel + i;
        Vec<A> square[L];
        if (down >= L && across >= L) {
          if constexpr (sizeof(T) == sizeof(A)) {
            load_transposed<A>(square, f, from_position);
          } else {
#pragma GCC unroll 16
            for (int j = 0; j < L; ++j) square[j] = read_lanes<A>(f + j * from_position);
            transpose<A>(square);
          }
#pragma GCC unroll 16
          for (int j = 0; j < L; ++j) store(t + j * to_channel, square[j]);
        } else {
#pragma GCC unroll 16
          for (int j = 0; j < L; ++j) square[j] = read_some<A>(f + j * from_position, j < across ? down : 0);
          transpose<A>(square);
#pragma GCC unroll 16
          for (int j = 0; j < L; ++j)
            if (j < down) write_some<A, A>(t + j * to_channel, square[j], across);
        }
      }
    return;
  }
  if (to_position == 1 && from_position == 1 && positions <= 4 * L) {
    const int64_t full = (positions - 1) / L;
    const auto copy = [&](auto vectors) {
      constexpr int V = decltype(vectors)::value;
      const int64_t rest = positions - V * L;
      for (int64_t c = 0; c < channels; ++c) {
        A* t = to + c * to_channel;
        const T* f = from + c * from_channel;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(t + v * L, read_lanes<A>(f + v * L));
        write_some<A, A>(t + V * L, read_some<A>(f + V * L, rest), rest);
      }
    };
    switch (full) {
      case 0:
        return copy(Constant<0>{});
      case 1:
        return copy(Constant<1>{});
      case 2:
        return copy(Constant<2>{});
      default:
        return copy(Constant<3>{});
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    A* t = to + c * to_channel;
    const T* f = from + c * from_channel;
    if (to_position == 1 && from_position == 1) {
      int64_t i = 0;
      for (; i + L <= positions; i += L) store(t + i, read_lanes<A>(f + i));
      if (i < positions) store_first(t + i, read_lanes<A>(f + i, positions - i), positions - i);
    } else {
      for (int64_t i = 0; i < positions; ++i) write<A, A>(t + i * to_position, read<A>(f + i * from_position));
    }
  }
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
