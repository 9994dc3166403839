// weight_grad on sm_90a, of 16-bit numbers and of parts of float32: the ring of wgmma.cuh with other operands.
//
// A tile has 128 channels of the gradient (M of the instruction) by 64 or 128 channels of the input (N) at one tap. The
// sum goes over positions, 64 in a step; both operands have their channels together, and so run across k.
#pragma once

#include "wgmma.cuh"

namespace conv_ext {
namespace cuda {

template <class T>
struct CorrelateParameters {
  // A map for each part: the last step's positions run on beyond the last image, where they have to read zeros.
  TensorMap grad[kMostParts], input[kMostParts];
  Grid grid;  // tiles_m: of the gradient's channels, tiles_n: of taps and the input's channels; steps of a split
  int32_t tiles, blocks;
  int64_t positions;
  int32_t rows, channels;           // of a group: of the gradient, of the input
  int32_t grad_group, input_group;  // from a group to the next
  int32_t channel_tiles, taps_w;    // of a tap; of a row of taps
  int32_t output_h, output_w, lower_h, lower_w, step_h, step_w, dilation_h, dilation_w;
  Strides to;  // K, C/g, R, S
  Result<T, float> result;
  int64_t split_elements;
  Waits* waits;
  CorrelateAgain again;  // as in WgmmaParameters
};

template <class T>
struct CorrelateTile {
  BlockPlace place;
  int32_t first_row, first_channel, r, s, steps;

  CONV_EXT_DEVICE CorrelateTile(const CorrelateParameters<T>& p, int64_t index, int n) {
    place = place_of(p.grid, index);
    first_row = place.m * kWgmmaM;
    first_channel = place.n % p.channel_tiles * n;
    r = place.n / p.channel_tiles / p.taps_w;
    s = place.n / p.channel_tiles % p.taps_w;
    steps = steps_of(p.grid, place.split, p.positions, kBox);
  }
};

// How many boxes of `most` hold channels of the group at all.
CONV_EXT_DEVICE int boxes_of(int channels, int most) {
  const int boxes = (channels + kBox - 1) / kBox;
  return boxes < most ? boxes : most;
}

// Positions in their order, kBox at a time, without dividing.
struct BoxWalker {
  int32_t h, w;  // extents
  Digits at, step;

  CONV_EXT_DEVICE BoxWalker(int32_t h, int32_t w, int64_t first)
      : h(h), w(w), at(digits_of(first, h, w)), step(digits_of(kBox, h, w)) {}
  CONV_EXT_DEVICE void advance() {
    at.low += step.low;
    const bool row = at.low >= w;
    at.low -= row ? w : 0;
    at.middle += step.middle + row;
    const bool image = at.middle >= h;
    at.middle -= image ? h : 0;
    at.high += step.high + image;
  }
};

template <class Group, int n, class T>
CONV_EXT_DEVICE void produce_pairs(const CorrelateParameters<T>& p, const WgmmaShared<Group, n>& all) {
  const WgmmaShared<Group, n> shared{held(all.base), all.waits};
  Ring<WgmmaShared<Group, n>::kStages> ring;
  for (int index = int(block_index()); index < p.tiles; index += p.blocks) {
    const CorrelateTile<T> tile(p, index, n);
    const int grads = boxes_of(p.rows - tile.first_row, kWgmmaM / kBox),
              inputs = boxes_of(p.channels - tile.first_channel, n / kBox);
    const int grad_channel = tile.place.group * p.grad_group + tile.first_row,
              input_channel = tile.place.group * p.input_group + tile.first_channel;
    const int tap_w = tile.s * p.dilation_w, tap_h = tile.r * p.dilation_h;
    BoxWalker walker(p.output_h, p.output_w, int64_t(tile.place.split) * p.grid.steps * kBox);
    for (int step = 0; step < tile.steps; ++step) {
      const Digits& at = walker.at;
      const int w = p.lower_w + at.low * p.step_w, h = p.lower_h + at.middle * p.step_h;
      wait_empty(shared, ring.stage, ring.parity ^ 1);
      uint64_t* const full = shared.full(ring.stage);
      arrive_expecting(full, Group::kParts * (grads + inputs) * kBoxBytes);
#pragma unroll
      for (int part = 0; part < Group::kParts; ++part) {
#pragma unroll
        for (int i = 0; i < kWgmmaM / kBox; ++i)
          if (i < grads)
            copy_patches(shared.patches(ring.stage, part) + i * kBoxBytes, &p.grad[part], full, grad_channel + i * kBox,
                         at.low, at.middle, at.high, 0, 0);
#pragma unroll
        for (int i = 0; i < n / kBox; ++i)
          if (i < inputs)
            copy_patches(shared.weights(ring.stage, part) + i * kBoxBytes, &p.input[part], full,
                         input_channel + i * kBox, w, h, at.high, tap_w, tap_h);
      }
      ring.advance();
      walker.advance();
    }
  }
}

template <class Group, int n, class T>
CONV_EXT_DEVICE void consume_pairs(const CorrelateParameters<T>& p, const WgmmaShared<Group, n>& shared) {
  const int group = warp_index() / 4, lane = thread_index() % 32;
  Ring<WgmmaShared<Group, n>::kStages> ring;
  for (int index = int(block_index()); index < p.tiles; index += p.blocks) {
    const CorrelateTile<T> tile(p, index, n);
    float total[n / 2];
    const auto multiply = [&](float(&sum)[n / 2], int stage, bool begins) {
      uint64_t grad[Group::kParts], input[Group::kParts];
#pragma unroll
      for (int part = 0; part < Group::kParts; ++part) {
        grad[part] = operand_across(shared_address(shared.patches(stage, part) + group * kBoxBytes), kBoxBytes);
        input[part] = operand_across(shared_address(shared.weights(stage, part)), kBoxBytes);
      }
      begin_products();
      each_product<Group::kParts>([&](int y, int x, bool first) {
#pragma unroll
        for (int i = 0; i < kBox / 16; ++i) {
          const uint64_t k = uint64_t(i) * (16 * kRowBytes >> 4);
          multiply_group_across(sum, grad[y] + k, input[x] + k, !first || i > 0 || !begins, typename Group::Element{});
        }
      });
      commit_products();
    };
    sum_part(total, shared, ring, tile.steps, Group::kChain / kChunk<Group>, multiply);
    Result<T, float> result = p.result;
    const int64_t first = int64_t(tile.place.group) * p.rows * result.stride_m;
    if (result.partial != nullptr) {
      result.partial += tile.place.split * p.split_elements + first;
    } else {
      result.data += first;
    }
    const int64_t at_tap = tile.r * p.to.h + tile.s * p.to.w;
    const int row = tile.first_row + warp_index() * 16 + lane / 4, channel = tile.first_channel + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const int m = row + i / 2 % 2 * 8, c = channel + i / 4 * 8 + i % 2;
      if (m < p.rows && c < p.channels) result.write(m, at_tap + c * p.to.c, total[i]);
    }
    if constexpr (Group::kParts > 1) {
      if (result.partial != nullptr) continue;  // the parts' sum is looked at
      each_not_finite(total, [&](int i) {
        const int m = row + i / 2 % 2 * 8, c = channel + i / 4 * 8 + i % 2;
        if (m >= p.rows || c >= p.channels) return;
        const int64_t at[4] = {int64_t(tile.place.group) * p.rows + m, c, tile.r, tile.s};
        result.write(m, at_tap + c * p.to.c, p.again.sum(at));
      });
    }
  }
}

template <class Group, int n, class T = typename Group::Source>
CONV_EXT_KERNEL(kWgmmaThreads)
wgmma_correlate(CONV_EXT_GRID_CONSTANT CorrelateParameters<T> p) {
  const auto shared = aligned_shared<WgmmaShared<Group, n>>(p.waits);
  run_roles(shared, [&] { produce_pairs(p, shared); }, [&] { consume_pairs(p, shared); });
}

}  // namespace cuda
}  // namespace conv_ext
