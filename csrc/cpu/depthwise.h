// The depthwise algorithm: one input channel per output channel.
//
// Vectors run over channels. With channels_last every operand is read where it lies; in any other layout a tile of
// kLanes channels is turned round into that order first, and the result back. A tap is a pointer; where it reads the
// padding, it points at zeros. Start reading at run_depthwise, at the end.
//
// Tried without gain (float32, AVX-512, ratio to oneDNN over ten layers): sharing the loads of three neighbouring taps,
// 0.65 against 0.66; copying positions that lie multiples of 512 bytes apart into a packed tile first, 0.71 against
// 0.77.
#pragma once

#include "pack.h"

namespace conv_ext {

constexpr int kDepthwiseSums = 8;  // vectors of outputs side by side in registers: pixels x channel vectors
constexpr int kDepthwiseTaps = 9;  // weight_grad: taps side by side in registers

// The taps of one output position: where each reads, and how far on the next position of the run reads.
template <class T>
struct TapList {
  const T** at;
  int64_t* step;
  int64_t* block;  // elements between one vector of channels and the next
  int64_t* tap;    // r * S + s
  int64_t count;
};

// out[pixel][c] = bias[c] + sum over taps of  w[tap][c] * at[tap][pixel * step][c],  or its ReLU, for P pixels and V
// vectors of channels, or for the first `lanes` channels of one vector.
template <class S, class T, class A, int P, int V, bool whole>
inline void depthwise_block(const TapList<S>& taps, int64_t pixel, const A* weight, int64_t pitch, const A* bias,
                            bool relu, T* out, int64_t out_step, int64_t out_block, int64_t c, int64_t lanes) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[P][V];
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[i][v] = load(bias + c + v * L);
  for (int64_t t = 0; t < taps.count; ++t) {
    const int64_t step = taps.step[t];
    const int64_t block = taps.block[t];
    const S* x = taps.at[t] + pixel * step + c / L * block;
    Vec<A> w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = load(weight + taps.tap[t] * pitch + c + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i, x += step)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[i][v] += w[v] * (whole ? read_lanes<A>(x + v * block) : read_lanes<A>(x, lanes));
  }
  if (relu) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[i][v] = rectify<T, A>(sum[i][v]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      T* to = out + i * out_step + (c / L + v) * out_block;
      if (whole)
        write_lanes<T, A>(to, sum[i][v]);
      else
        write_lanes<T, A>(to, sum[i][v], lanes);
    }
}

template <class S, class T, class A, int P>
void depthwise_pixels(const TapList<S>& taps, int64_t pixel, const A* weight, int64_t pitch, const A* bias, bool relu,
                      T* out, int64_t out_step, int64_t out_block, int64_t channels) {
  constexpr int L = kLanes<A>, V = kDepthwiseSums / P;
  int64_t c = 0;
  for (; c + V * L <= channels; c += V * L)
    depthwise_block<S, T, A, P, V, true>(taps, pixel, weight, pitch, bias, relu, out, out_step, out_block, c, L);
  for (; c + L <= channels; c += L)
    depthwise_block<S, T, A, P, 1, true>(taps, pixel, weight, pitch, bias, relu, out, out_step, out_block, c, L);
  if (c < channels)
    depthwise_block<S, T, A, P, 1, false>(taps, pixel, weight, pitch, bias, relu, out, out_step, out_block, c,
                                          channels - c);
}

// sum[tap][lane] += sum over pixels of  g[pixel] * at[tap][pixel * step],  for `B` taps and one vector of channels.
template <class S, class T, class A, int B>
inline void depthwise_taps(const TapList<S>& taps, int64_t first, int64_t vector, const T* g, int64_t g_step,
                           int64_t pixels, A* sum, int64_t lanes) {
  constexpr int L = kLanes<A>;
  Vec<A> total[B] = {};
  const S* at[B];
#pragma GCC unroll 16
  for (int b = 0; b < B; ++b) at[b] = taps.at[first + b] + vector * taps.block[first + b];
  const int64_t* const step = taps.step + first;
  const auto add = [&](auto read_at) __attribute__((always_inline)) {
    for (int64_t i = 0; i < pixels; ++i) {
      const Vec<A> gv = read_at(g + i * g_step);
#pragma GCC unroll 16
      for (int b = 0; b < B; ++b) total[b] += gv * read_at(at[b] + i * step[b]);
    }
  };
  if (lanes >= L) {
    add([](const auto* p) __attribute__((always_inline)) { return read_lanes<A>(p); });
  } else {
    add([lanes](const auto* p) __attribute__((always_inline)) { return read_lanes<A>(p, lanes); });
  }
#pragma GCC unroll 16
  for (int b = 0; b < B; ++b) store(sum + b * L, load(sum + b * L) + total[b]);
}

// Reads elements of type S, writes (for weight_grad: reads as the upstream gradient) elements of type T.
template <class S, class T, class A>
struct Depthwise {
  const ConvProblem& z;
  Axis vertical, horizontal;
  // Both at the first of the channels; `channel` counts the elements between one vector of channels and the next.
  View<S> source;
  View<T> result;
  const S* zeros;  // one vector of them
  int64_t channels;
  bool relu;

  int64_t taps() const { return z.r * z.s; }

  // The taps that output (o_h, o_w) reads, and the source positions of image n that they read.
  void list_taps(int64_t n, int64_t o_h, int64_t o_w, int64_t run, TapList<S>* list) const {
    const int64_t fh = vertical.inverse ? o_h % z.stride_h : 0, fw = horizontal.inverse ? o_w % z.stride_w : 0;
    const int64_t ih = vertical.inverse ? o_h / z.stride_h : o_h, iw = horizontal.inverse ? o_w / z.stride_w : o_w;
    list->count = 0;
    for (int64_t r = 0; r < z.r; ++r) {
      if (vertical.phase_of(r) != fh) continue;
      const int64_t row = ih * vertical.step() + vertical.offset(r);
      const bool row_inside = row >= 0 && row < vertical.source;
      for (int64_t s = 0; s < z.s; ++s) {
        if (horizontal.phase_of(s) != fw) continue;
        const int64_t column = iw * horizontal.step() + horizontal.offset(s);
        const int64_t last = column + (run - 1) * horizontal.step();
        const bool inside = row_inside && column >= 0 && last < horizontal.source;
        const int64_t i = list->count++;
        list->at[i] = inside ? source.data + n * source.n + row * source.row + column * source.column : zeros;
        list->step[i] = inside ? horizontal.step() * source.column : 0;
        list->block[i] = inside ? source.channel : 0;
        list->tap[i] = r * z.s + s;
      }
    }
  }

  // How many outputs of a phase, from its i-th on, read with every tap inside the source; 0: output i has a tap
  // outside.
  int64_t inner_run(int64_t phase, int64_t i, int64_t count) const {
    int64_t run = count - i;
    for (int64_t s = 0; s < z.s; ++s) {
      if (horizontal.phase_of(s) != phase) continue;
      const int64_t column = i * horizontal.step() + horizontal.offset(s);
      if (column < 0 || column >= horizontal.source) return 0;
      run = min_of(run, (horizontal.source - 1 - column) / horizontal.step() + 1);
    }
    return run;
  }

  // Calls body(first output column, outputs, column step) for every run of one row in which a tap list holds.
  template <class Body>
  void for_runs(Body body) const {
    for (int64_t phase = 0; phase < horizontal.phases(); ++phase) {
      const int64_t count = horizontal.count(phase), step = horizontal.output_step();
      for (int64_t i = 0; i < count;) {
        const int64_t run = max_of(1, inner_run(phase, i, count));
        body(phase + i * step, run, step);
        i += run;
      }
    }
  }

  void run_row(int64_t n, int64_t row, const A* weight, int64_t pitch, const A* bias, TapList<S> list) const {
    for_runs([&](int64_t column, int64_t run, int64_t step) {
      list_taps(n, row, column, run, &list);
      T* out = result.data + n * result.n + row * result.row + column * result.column;
      const int64_t out_step = step * result.column;
      for (int64_t i = 0; i < run;) {
        const int64_t pixels = run - i >= 8 ? 8 : run - i >= 4 ? 4 : run - i >= 2 ? 2 : 1;
        const auto block = pixels == 8   ? depthwise_pixels<S, T, A, 8>
                           : pixels == 4 ? depthwise_pixels<S, T, A, 4>
                           : pixels == 2 ? depthwise_pixels<S, T, A, 2>
                                         : depthwise_pixels<S, T, A, 1>;
        block(list, i, weight, pitch, bias, relu, out + i * out_step, out_step, result.channel, channels);
        i += pixels;
      }
    });
  }

  // Adds one row's share to sum (channels / kLanes, taps, kLanes).
  void add_row(int64_t n, int64_t row, A* sum, TapList<S> list) const {
    constexpr int L = kLanes<A>;
    for_runs([&](int64_t column, int64_t run, int64_t step) {
      list_taps(n, row, column, run, &list);
      const T* g = result.data + n * result.n + row * result.row + column * result.column;
      for (int64_t c = 0; c < channels; c += L) {
        A* const block_sum = sum + c * list.count;
        for (int64_t t = 0; t < list.count;) {
          const int64_t block = list.count - t >= kDepthwiseTaps ? kDepthwiseTaps : list.count - t >= 3 ? 3 : 1;
          const auto add = block == kDepthwiseTaps ? depthwise_taps<S, T, A, kDepthwiseTaps>
                           : block == 3            ? depthwise_taps<S, T, A, 3>
                                                   : depthwise_taps<S, T, A, 1>;
          add(list, t, c / L, g + c / L * result.channel, step * result.column, run, block_sum + t * L, channels - c);
          t += block;
        }
      }
    });
  }
};

template <class S>
inline TapList<S> take_list(Carver& memory, int64_t taps) {
  TapList<S> list{};
  list.at = memory.take<const S*>(taps);
  list.step = memory.take<int64_t>(taps);
  list.block = memory.take<int64_t>(taps);
  list.tap = memory.take<int64_t>(taps);
  return list;
}

// A tile in which vectors run over channels: tile[position][lane]. Lanes past the last channel are zero.
template <class A, class T>
void tile_from(A* tile, const T* from, int64_t channel_stride, int64_t column_stride, int64_t channels,
               int64_t positions) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  if (column_stride == 1 && channels == L) {
    for (; i + L <= positions; i += L) {
      Vec<A> square[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) square[l] = read_lanes<A>(from + l * channel_stride + i);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) store(tile + (i + l) * L, square[l]);
    }
  }
  for (; i < positions; ++i)
    for (int64_t l = 0; l < L; ++l)
      tile[i * L + l] = l < channels ? read<A>(from + l * channel_stride + i * column_stride) : A(0);
}
template <class A, class T>
void tile_to(A* tile, T* to, int64_t channel_stride, int64_t column_stride, int64_t channels, int64_t positions,
             bool relu) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  if (column_stride == 1 && channels == L) {
    for (; i + L <= positions; i += L) {
      Vec<A> square[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) square[l] = load(tile + (i + l) * L);
      if (relu) {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) square[l] = rectify<T, A>(square[l]);
      }
      transpose<A>(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) write_lanes<T, A>(to + l * channel_stride + i, square[l]);
    }
  }
  if (relu) rectify_all<T>(tile + i * L, (positions - i) * L);
  for (; i < positions; ++i)
    for (int64_t l = 0; l < channels; ++l) write<T>(to + l * channel_stride + i * column_stride, tile[i * L + l]);
}

// Calls body(address of the run, its first row, positions) for the rows [first, last) of a view: all at once where they
// follow one another in memory.
template <class T, class Body>
void for_rows(const View<T>& view, int64_t n, int64_t first, int64_t last, int64_t columns, Body body) {
  const int64_t together = view.row == columns * view.column ? last - first : 1;
  for (int64_t row = first; row < last; row += together)
    body(view.data + n * view.n + row * view.row, row - first, together * columns);
}

template <class T, class A, Pass pass>
void run_depthwise(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  constexpr int L = kLanes<A>;
  constexpr bool input_grad = pass == Pass::InputGrad, weight_grad = pass == Pass::WeightGrad;
  const int64_t taps = z.r * z.s, pitch = round_up(z.c, L);
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const View<T> source = view_of<T>(input_grad ? b.output : b.input, 1);
  const View<T> result = view_of<T>(input_grad ? b.input : b.output, 1);
  const View<T> weight = view_of<T>(b.weight, 1);
  const auto weight_at = [&](int64_t c, int64_t t) {
    return weight.data + c * weight.n + t / z.s * weight.row + t % z.s * weight.column;
  };
  const bool in_place = source.channel == 1 && result.channel == 1;
  // In place a task takes many channels; else as many vectors of them as fit the scratch, packed one after the other.
  const int64_t chunk = in_place ? kDepthwiseChannels : plan.tile_c, chunks = ceil_div(z.c, chunk);
  // Read in place a tile costs nothing extra, and may be as small as an even load on several threads wants.
  const int64_t tile_h =
      in_place && !weight_grad ? min_of(plan.tile_h, max_of(1, z.n * vertical.output / 64)) : plan.tile_h;
  const int64_t tiles = ceil_div(vertical.output, tile_h), units = z.n * tiles;

  Carver memory{static_cast<char*>(b.workspace)};
  T* const zeros = memory.take<T>(pitch);
  memset(static_cast<void*>(zeros), 0, size_t(pitch) * sizeof(T));
  A* const wide_zeros = memory.take<A>(pitch);
  memset(static_cast<void*>(wide_zeros), 0, size_t(pitch) * sizeof(A));
  A* const packed = memory.take<A>(weight_grad ? 0 : taps * pitch);  // (taps, C)
  A* const bias = memory.take<A>(weight_grad ? 0 : pitch);
  A* const sums = memory.take<A>(weight_grad ? plan.splits * taps * pitch : 0);  // (splits, C / kLanes, taps, kLanes)
  for (int64_t c = 0; c < pitch && !weight_grad; ++c) {
    bias[c] = b.bias && c < z.c ? read<A>(static_cast<const T*>(b.bias) + c * b.bias_stride) : A(0);
    for (int64_t t = 0; t < taps; ++t) packed[t * pitch + c] = c < z.c ? read<A>(weight_at(c, t)) : A(0);
  }

  // One tile of rows of one image, for the channels from c0 on.
  const auto run_unit = [&](int64_t unit, int64_t c0, A* sum, Carver local) {
    const int64_t n = unit / tiles, first = unit % tiles * tile_h, last = min_of(vertical.output, first + tile_h);
    const int64_t channels = min_of(z.c, c0 + chunk) - c0;
    View<T> from = source, to = result;
    from.data += c0 * from.channel;
    to.data += c0 * to.channel;
    const auto run_rows = [&](const auto& task, auto list) {
      for (int64_t row = first; row < last; ++row) {
        if constexpr (weight_grad)
          task.add_row(n, row, sum, list);
        else
          task.run_row(n, row, packed + c0, pitch, bias + c0, list);
      }
    };
    if (in_place) {
      from.channel = to.channel = L;
      run_rows(Depthwise<T, T, A>{z, vertical, horizontal, from, to, zeros, channels, b.relu},
               take_list<T>(local, taps));
      return;
    }
    const auto list = take_list<A>(local, taps);
    const RowRange rows = source_rows(vertical, first, last);
    const int64_t in_row = horizontal.source * L, out_row = horizontal.output * L;
    const int64_t in_block = (rows.last - rows.first) * in_row, out_block = (last - first) * out_row;
    const int64_t vectors = ceil_div(channels, L);
    A* const in = local.take<A>(vectors * in_block);
    A* const out = local.take<A>(vectors * out_block);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t here = min_of(L, channels - v * L);
      for_rows(from, n, rows.first, rows.last, horizontal.source, [&](const T* at, int64_t row, int64_t positions) {
        tile_from(in + v * in_block + row * in_row, at + v * L * from.channel, from.channel, from.column, here,
                  positions);
      });
      if constexpr (weight_grad)
        for_rows(to, n, first, last, horizontal.output, [&](const T* at, int64_t row, int64_t positions) {
          tile_from(out + v * out_block + row * out_row, at + v * L * to.channel, to.channel, to.column, here,
                    positions);
        });
    }
    const View<A> in_tile{in - rows.first * in_row, 0, in_block, in_row, L};
    const View<A> out_tile{out - first * out_row, 0, out_block, out_row, L};
    // Nothing is rounded yet.
    run_rows(Depthwise<A, A, A>{z, vertical, horizontal, in_tile, out_tile, wide_zeros, vectors * L, false}, list);
    for (int64_t v = 0; v < vectors && !weight_grad; ++v) {
      for_rows(to, n, first, last, horizontal.output, [&](T* at, int64_t row, int64_t positions) {
        tile_to(out + v * out_block + row * out_row, at + v * L * to.channel, to.channel, to.column,
                min_of(L, channels - v * L), positions, b.relu);
      });
    }
  };

  if constexpr (!weight_grad) {
    parallel_for(executor, units * chunks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
      run_unit(index / chunks, index % chunks * chunk, nullptr, Carver{static_cast<char*>(scratch)});
    });
    return;
  }
  // Each split sums a fixed range of tiles; the splits are added in order.
  parallel_for(executor, plan.splits * chunks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
    const int64_t split = index / chunks, c0 = index % chunks * chunk;
    A* const sum = sums + (split * pitch + c0) * taps;
    for (int64_t i = 0; i < min_of(chunk, pitch - c0) * taps; ++i) sum[i] = A(0);
    for (int64_t unit = units * split / plan.splits; unit < units * (split + 1) / plan.splits; ++unit)
      run_unit(unit, c0, sum, Carver{static_cast<char*>(scratch)});
  });
  for (int64_t c = 0; c < z.c && weight_grad; ++c)
    for (int64_t t = 0; t < taps; ++t) {
      A total = A(0);
      for (int64_t split = 0; split < plan.splits; ++split)
        total += sums[(split * pitch + c / L * L) * taps + t * L + c % L];
      write<T>(weight_at(c, t), total);
    }
}

}  // namespace conv_ext
