// The weight gradient of the Winograd algorithm: the transforms of tiles.h, with their adjoints for the
// operands that change their role; the sum runs over tiles.
#pragma once

#include "../base/reduction.h"
#include "tiles.h"

namespace conv_ext {

// grads[points][tile][k] of kLanes rows of K from k on; zero beyond the output's edges.
template <class W, class T, class A>
void transform_grad(const W& w, const View<T>& grad, const TileBlock& b, int64_t k, int64_t channels, A* grads,
                    A* window) {
  constexpr int L = W::L, E = W::E;
  constexpr int M = W::GradTransform::kIn;
  const int64_t columns = b.width * M;
  for (int64_t i = 0; i < b.images; ++i) {
    View<T> image = grad;
    image.data += (b.n0 + i) * grad.n + k * grad.channel;
    window_to_lanes(window, image, w.z.p, w.z.q, b.ty * M, b.tx * M, b.height * M, columns, channels);
    for (int64_t tile = 0; tile < b.height * b.width; ++tile, grads += w.size.grad_pitch) {
      A* const place = grads;
      const int64_t slice = w.size.grad_slice;
      transform_both_axes<typename W::GradTransform>(
          window + (tile / b.width * M * columns + tile % b.width * M) * L, columns * L, L,
          [=](int u, int v, Vec<A> value) { store(place + (u * E + v) * slice, value); });
    }
  }
}

template <class T, class A, int M, int R>
struct WinogradWeightGrad {
  typedef Winograd<T, A, M, R> W;
  static constexpr int L = W::L, E = W::E;
  const W& w;
  const ConvProblem& z;
  const WinogradPlan& own;
  const WinogradSizes& size;
  const View<T>&grad, &input, &result;
  A* partial;  // nullptr where the reduction has one part: its result is written at once
  bool few;    // some tap has few terms

  WinogradWeightGrad(const W& gather, A* partial_sums)
      : w(gather),
        z(gather.z),
        own(gather.own),
        size(gather.size),
        grad(gather.result),
        input(gather.source),
        result(gather.weight),
        partial(partial_sums) {
    // Fewest have the taps at the corners.
    few = few_terms(0, 0) || few_terms(0, z.s - 1) || few_terms(z.r - 1, 0) || few_terms(z.r - 1, z.s - 1);
  }

  int64_t taps() const { return z.r * z.s; }
  const int64_t pitch = round_up(z.group_c(), L);  // of partial results
  // The outputs that read the input through a tap.
  Range rows_inside(int64_t r) const { return range_inside(r - z.pad_top, 1, z.p, z.h); }
  Range columns_inside(int64_t s) const { return range_inside(s - z.pad_left, 1, z.q, z.w); }
  bool few_terms(int64_t r, int64_t s) const {
    return z.n * rows_inside(r).count() * columns_inside(s).count() < kFewTerms;
  }
  // They are summed directly.
  double direct_sum(int64_t k, int64_t c, int64_t r, int64_t s) const {
    const Range down = rows_inside(r), across = columns_inside(s);
    double sum = 0;
    for (int64_t n = 0; n < z.n; ++n)
      for (int64_t p = down.first; p < down.last; ++p)
        for (int64_t q = across.first; q < across.last; ++q)
          sum += read<double>(grad.data + n * grad.n + k * grad.channel + p * grad.row + q * grad.column) *
                 read<double>(input.data + n * input.n + c * input.channel + (p + r - z.pad_top) * input.row +
                              (q + s - z.pad_left) * input.column);
    return sum;
  }

  // Writes total[tap][lane], the gradients of kLanes channels of group k / group_k, from c on.
  void write_weights(int64_t k, int64_t c, const A* total) const {
    const bool joined = result.row == z.s * result.column;
    const int64_t channels = min_of(L, z.group_c() - c);
    T* const to = result.data + k * result.n + c * result.channel;
    for (int64_t r = 0; r < (joined ? 1 : z.r); ++r)
      lanes_to_positions(total + r * z.s * L, to + r * result.row, result.channel, result.column, channels,
                         joined ? taps() : z.s);
    Vec<A> finite{};
    for (int64_t t = 0; t < taps(); ++t) finite += load(total + t * L) * A(0);
    bool repeat = few;
    for (int l = 0; l < L; ++l) repeat |= finite[l] != finite[l];
    if (repeat) repeat_weights(k, c, total);
  }
  // What is not finite is summed by the definition, what has few terms directly.
  __attribute__((noinline)) void repeat_weights(int64_t k, int64_t c, const A* total) const {
    for (int64_t l = 0; l < min_of(L, z.group_c() - c); ++l)
      for (int64_t t = 0; t < taps(); ++t) {
        const A value = total[t * L + l];
        const int64_t r = t / z.s, s = t % z.s;
        const bool is_finite = value - value == A(0);
        if (is_finite && !few_terms(r, s)) continue;
        write<T>(result.data + k * result.n + (c + l) * result.channel + r * result.row + s * result.column,
                 A(is_finite ? direct_sum(k, k / z.group_k() * z.group_c() + c + l, r, s)
                             : sum_again<T>(z, Pass::WeightGrad, w.buffers, k, c + l, r, s)));
      }
  }

  // A block of K x C in one part of the reduction.
  void run_task(int64_t index, const WinogradScratch<A>& s) const {
    const int64_t blocks_k = ceil_div(z.group_k(), own.tile_k), blocks_c = ceil_div(z.group_c(), own.tile_c);
    const int64_t c0 = index % blocks_c * own.tile_c, k0 = index / blocks_c % blocks_k * own.tile_k;
    const int64_t group = index / blocks_c / blocks_k % z.groups, split = index / blocks_c / blocks_k / z.groups;
    const int64_t count_k = min_of(own.tile_k, z.group_k() - k0);
    const int64_t vectors_c = ceil_div(min_of(own.tile_c, z.group_c() - c0), L);
    const int64_t first = part_begin(size.blocks, own.splits, split),
                  last = part_begin(size.blocks, own.splits, split + 1);
    for (int64_t b = first; b < last; ++b) {
      const TileBlock block = w.block_at(b);
      w.transform_source(block, group, c0 / L, c0 / L + vectors_c, s.values, s.window);
      for (int64_t k = 0; k < count_k; k += L)
        transform_grad(w, grad, block, group * z.group_k() + k0 + k, min_of(L, count_k - k), s.grads + k, s.window);
      for (int64_t p = 0; p < size.points; ++p)
        product<A, true>({s.grads + p * size.grad_slice, 1, size.grad_pitch, s.values + p * size.value_slice,
                          size.value_pitch, block.rows(), s.sums + p * size.sum_slice, size.sum_pitch, b > first},
                         count_k, vectors_c * size.pieces);
    }
    for (int64_t k = 0; k < count_k; ++k)
      for (int64_t v = 0; v < vectors_c; ++v) transform_sums(group * z.group_k() + k0 + k, c0 + v * L, split, k, v, s);
  }

  // The k-th row and v-th vector of a block's sums, to their place among the partial results, or to the result.
  void transform_sums(int64_t row, int64_t c, int64_t split, int64_t k, int64_t v, const WinogradScratch<A>& s) const {
    A* const to = partial != nullptr ? partial + (split * z.k + row) * taps() * pitch + c : s.window;
    const int64_t tap_pitch = partial != nullptr ? pitch : L;
    for (int64_t piece = 0; piece < size.pieces; ++piece) {
      const int64_t r0 = piece / w.pieces_s() * R, s0 = piece % w.pieces_s() * R;
      transform_both_axes<typename W::WeightGradTransform>(s.sums + k * size.sum_pitch + (v * size.pieces + piece) * L,
                                                           E * size.sum_slice, size.sum_slice,
                                                           [&](int i, int j, Vec<A> value) {
                                                             if (r0 + i < z.r && s0 + j < z.s)
                                                               store(to + ((r0 + i) * z.s + s0 + j) * tap_pitch, value);
                                                           });
    }
    if (partial == nullptr) write_weights(row, c, to);
  }

  // The parts of the reduction in order. total: (R S, kLanes)
  void add_parts(int64_t k, A* total) const {
    A* const sums = partial + k * taps() * pitch;
    conv_ext::add_parts(sums, taps() * pitch, own.splits, z.k * taps() * pitch);
    for (int64_t c = 0; c < z.group_c(); c += L) {
      for (int64_t t = 0; t < taps(); ++t) store(total + t * L, load(sums + t * pitch + c));
      write_weights(k, c, total);
    }
  }
};

template <class T, class A, int M, int R>
void run_winograd_weight_grad(const Winograd<T, A, M, R>& w, const Executor& executor, A* partial) {
  const WinogradWeightGrad<T, A, M, R> task(w, partial);
  const ConvProblem& z = w.z;
  parallel_for(executor, w.plan.tasks, w.plan.scratch_bytes, [&](int64_t index, void* scratch) {
    Carver local(scratch);
    task.run_task(index, winograd_scratch<A>(z, Pass::WeightGrad, w.own, w.size, local));
  });
  if (partial != nullptr)
    parallel_for(executor, z.k, winograd_turned_taps(task.taps(), kLanes<A>) * int64_t(sizeof(A)),
                 [&](int64_t k, void* scratch) { task.add_parts(k, static_cast<A*>(scratch)); });
}

}  // namespace conv_ext
