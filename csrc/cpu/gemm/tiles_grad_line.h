// The matrix product in AMX's tiles, weight_grad of 1x1 kernels whose outputs are the positions of the input: these are
// one line, in strips of 16, of which two are a step.
//
//   for each block of K x C and part of the line (in parallel):
//     for each 4 steps: for each 32 k and 32 c: multiply, packing the next 4 steps of both operands meanwhile
//
// The upstream gradient is rows [k/32][step][part][2][16 k][32], the input lanes [c/32][step][part][2][16
// pairs][16][2]; pairs are a position of a step's first strip and one of its second. An operand whose neighbours in
// memory are those of a row of its tile is read in place; of the other squares are turned round first. Blocks, sums and
// the writing of the result are those of tiles_weight_grad.h, where run_tiles_weight_grad begins.
#pragma once

#include "tiles_pack.h"

#if defined(CONV_EXT_AMX)

namespace conv_ext {

struct GradSteps {
  const char *grad, *input;
  int64_t grad_pitch, input_pitch;

  const char* x() const { return grad; }
  const char* w() const { return input; }
  void next() {
    grad += grad_pitch;
    input += input_pitch;
  }
};

// An operand as a line: of each run, `length` positions.
template <class T>
struct LineView {
  const T* data;  // the first channel
  int64_t channel, position, run;
  int64_t channels, length;
};

// Packs some steps of an operand, in units that are small enough to stand between products: of 16 channels and a step,
// two squares that are turned round, if it is to be, and four rows at a time.
template <class T, int parts>
struct StripPacker {
  LineView<T> view;
  bool in_rows;         // channels are rows of a tile and positions its columns; else positions are rows
  int64_t first, last;  // steps
  char* to;
  int64_t c = 0, step = first, unit = 0;
  const T* at[2] = {};        // of 16 channels and a step: where its two strips begin,
  int64_t positions[2] = {};  // and what they have
  struct alignas(64) Squares {
    float of[2][16 * 16];
  };
  Squares* squares = nullptr;
  int64_t its_strips = 0;  // of all runs

  bool turned() const { return in_rows ? view.position != 1 : view.channel != 1; }
  int64_t units_of_step() const { return (turned() ? 6 : 4) * ceil_div(view.channels, 16); }
  int64_t units() const { return (last - first) * units_of_step(); }
  bool more() const { return c < view.channels && step < last; }

  __attribute__((noinline)) void pack_next() {
    const int64_t strips = ceil_div(view.length, 16), channels = min_of(16, view.channels - c);
    if (unit == 0) {
      for (int i = 0; i < 2; ++i) {
        const int64_t strip = 2 * step + i, in_run = strip % strips * 16;
        at[i] = view.data + c * view.channel + strip / strips * view.run + in_run * view.position;
        positions[i] = 2 * step + i < its_strips ? min_of(16, view.length - in_run) : 0;
      }
    }
    const int64_t square = turned() ? unit : unit + 2;
    if (square < 2) {
      turn(square, channels);
    } else {
      pack_rows(4 * (square - 2), channels);
    }
    if (square < 5) {
      ++unit;
      return;
    }
    unit = 0;
    // Along what is neighbours in memory first.
    if (view.position == 1) {
      if (++step < last) return;
      step = first;
      c += 16;
    } else {
      c += 16;
      if (c < view.channels) return;
      c = 0;
      ++step;
    }
  }

 private:
  // The steps that come are fetched meanwhile: neighbours in a tile may be far apart in memory.
  static constexpr int64_t kAhead = 2 * kTileEdge;  // positions

  void turn(int64_t i, int64_t channels) const {
    Vec<float> square[16];
    const int64_t stride = in_rows ? view.position : view.channel, lanes = in_rows ? positions[i] : channels;
    for (int64_t l = 0; l < lanes; ++l) __builtin_prefetch(at[i] + l * stride + kAhead * view.position, 0, 2);
    load_square<float>(square, at[i], stride, positions[i] > 0 ? lanes : 0, in_rows ? channels : positions[i]);
    for (int j = 0; j < 16; ++j) store(squares->of[i] + j * 16, square[j]);
  }
  void pack_rows(int64_t row, int64_t channels) const {
    char* const tile = to + (c / kTileEdge * kLineSteps + step - first) * parts * kStepBytes + c / 16 % 2 * kTileBytes;
    const auto pack = [&](const auto& numbers) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int64_t i = row; i < row + 4; ++i)
        store_pairs<T, parts>(tile + i * 64, kStepBytes, (__m512)numbers(0, i), (__m512)numbers(1, i));
    };
    if (turned())
      return pack([&](int i, int64_t row) __attribute__((always_inline)) { return load(squares->of[i] + row * 16); });
    const int64_t stride = in_rows ? view.channel : view.position;
    if (channels == 16 && positions[0] == 16 && positions[1] == 16)
      return pack([&](int i, int64_t row) __attribute__((always_inline)) {
        const T* const from = at[i] + row * stride;
        __builtin_prefetch(from + kAhead * view.position, 0, 2);
        return read_lanes<float>(from);
      });
    pack([&](int i, int64_t row) __attribute__((always_inline)) {
      const int64_t rows = in_rows ? channels : positions[i], lanes = in_rows ? positions[i] : channels;
      return read_some<float>(at[i] + row * stride, row < rows ? lanes : 0);
    });
  }
};

// One block of sums, of some chunks of the line.
template <class T, int parts>
struct TilesGradLine {
  LineView<T> grad, input;
  int64_t strips;  // of all runs
  static constexpr int64_t kPartsBytes = parts * kStepBytes;
  typedef StripPacker<T, parts> Packer;

  int64_t steps() const { return ceil_div(strips, 2); }

  // Both operands of a chunk.
  struct Packers {
    Packer rows, lanes;
    bool more() const { return rows.more() || lanes.more(); }
    void pack_next() { rows.more() ? rows.pack_next() : lanes.pack_next(); }
    int64_t units() const { return rows.units() + lanes.units(); }
  };
  Packers packers_of(int64_t chunk, const TileScratch& m, typename Packer::Squares* squares) const {
    const int64_t first = chunk * kLineSteps, last = min_of(steps(), first + kLineSteps);
    const auto packer = [&](const LineView<T>& view, bool in_rows, char* to) {
      Packer p{view, in_rows, first, last, to + chunk % 2 * line_bytes(view.channels, parts)};
      p.squares = squares;
      p.its_strips = strips;
      return p;
    };
    return {packer(grad, true, m.grad), packer(input, false, m.input)};
  }

  // sums[k/32][c/32][32][32]
  void run(const Range& chunks, const TileScratch& m, float* sums) const {
    typename Packer::Squares squares;
    Packers next = packers_of(chunks.first, m, &squares);
    while (next.more()) next.pack_next();
    const int64_t blocks = tile_blocks(grad.channels) * tile_blocks(input.channels);
    const TilePitch pitch{kTileBytes, kStepBytes, kTileBytes, kStepBytes};
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
      const char* const x = next.rows.to;
      const char* const w = next.lanes.to;
      const int64_t count = next.rows.last - next.rows.first;
      if (chunk + 1 < chunks.last) next = packers_of(chunk + 1, m, &squares);
      // So many units between so many products.
      const int64_t units = next.units(), products = blocks * count * kProducts<parts>;
      int64_t due = 0;
      const auto work = [&](int) __attribute__((always_inline)) {
        for (due += units; due >= products && next.more(); due -= products) next.pack_next();
      };
      float* to = sums;
      for (int64_t k = 0; k < grad.channels; k += kTileEdge)
        for (int64_t c = 0; c < input.channels; c += kTileEdge, to += kTileEdge * kTileEdge) {
          const GradSteps steps{x + k / kTileEdge * kLineSteps * kPartsBytes,
                                w + c / kTileEdge * kLineSteps * kPartsBytes, kPartsBytes, kPartsBytes};
          multiply_rows<parts>(steps, count, pitch, grad.channels - k, to, chunk > chunks.first, work);
        }
      while (next.more()) next.pack_next();
    }
  }
};

}  // namespace conv_ext

#endif
