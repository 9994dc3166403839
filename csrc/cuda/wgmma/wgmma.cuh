// forward and input_grad on sm_90a: one warp has TMA bring the operands, two warpgroups multiply them.
//
// Start reading at wgmma_gather() at the end. It is the product of igemm.cuh the other way round: a tile has 128
// positions (M of the instruction) by 64, 128 or 256 channels (N). Blocks stay: each computes every p.blocks-th tile.
// Steps along k go through a ring of stages in shared memory:
//
//   producer   | wait until `empty` | announce bytes | TMA: patches, weights ->  stage i  | next stage
//   consumers  | wait until `full`  | 4 products of 32 bytes of k | the step before is done: its stage is `empty`
//
// so that the copies run ahead by as many steps as there are stages, also into the next tile.
#pragma once

#include <string.h>

#include "../epilogue.cuh"
#include "pack.cuh"

namespace conv_ext {
namespace cuda {

constexpr int kGroupThreads = 128, kConsumers = 2 * kGroupThreads, kWgmmaThreads = kConsumers + kGroupThreads;
constexpr int kWgmmaM = 128, kSlab = 32;  // positions of a tile; channels that are written at a time
// The widest tiles whose threads have registers for a chain's sums beside the part's; and for the total beside both. In
// a wider one a sum is one chain, or one part.
constexpr int kMostChained = 128;
template <class Group>
constexpr int kMostInParts = sizeof(typename Group::Source) == 2 ? 128 : 64;

// Where a sum of 64 positions by kSlab channels lies in shared memory while they are written, in floats. Lanes put down
// what they hold, at 8 positions and 4 pairs of channels; then they read what are neighbours in the result: channels of
// one position or two, by vectors, or positions. No two lanes meet in a bank (tests/cuda_host/banks.cpp): along
// channels pairs of them are exchanged, each of four rows in another way, along positions rows are four numbers longer.
constexpr int kSlabPitch = 64 + 4, kSlabFloats = kSlab * kSlabPitch;
template <bool along_channels>
CONV_EXT_DEVICE int slab_place(int position, int channel) {
  if constexpr (!along_channels) return channel * kSlabPitch + position;
  // The row's pairs are exchanged: every fourth row alike, neighbouring rows also within four numbers.
  const int pair = channel / 2 ^ (position % 4 * 4) ^ (position % 2 * 2);
  return position * kSlab + pair * 2 + channel % 2;
}

// Where everything lies in shared memory, from a multiple of 1024 bytes on.
template <class Group, int n>
struct WgmmaShared {
  static constexpr int kPatches = kWgmmaM * kRowBytes, kWeights = n * kRowBytes;
  static constexpr int kStage = Group::kParts * (kPatches + kWeights);
  static constexpr int kRing = 192 << 10, kStages = kRing / kStage;
  static constexpr int kSlabs = kStages * kStage, kOffsets = kSlabs + 2 * kSlabFloats * 4;
  static constexpr int kBarriers = kOffsets + 2 * 64 * 8;
  static constexpr int kBytes = kSwizzleBytes + kBarriers + 2 * kStages * 8;
  static_assert(kBytes <= 227 << 10, "what a block can have");

  char* base;
  Waits* waits;
  CONV_EXT_DEVICE char* patches(int stage, int part) const { return base + stage * kStage + part * kPatches; }
  CONV_EXT_DEVICE char* weights(int stage, int part) const {
    return base + stage * kStage + Group::kParts * kPatches + part * kWeights;
  }
  CONV_EXT_DEVICE float* slab(int group) const { return reinterpret_cast<float*>(base + kSlabs) + group * kSlabFloats; }
  CONV_EXT_DEVICE int64_t* offsets(int group) const { return reinterpret_cast<int64_t*>(base + kOffsets) + group * 64; }
  CONV_EXT_DEVICE uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(base + kBarriers) + stage; }
  CONV_EXT_DEVICE uint64_t* empty(int stage) const { return full(kStages + stage); }
};

// A stage of the ring and the parity of its use.
template <int stages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  CONV_EXT_DEVICE void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Returns when the phase of this parity has ended. What is waited for takes microseconds: who waits longer than a
// second tells the host, and ends the kernel when the block's other warps have had time to tell, too.
template <class Shared>
CONV_EXT_DEVICE void wait_barrier(const Shared& shared, uint64_t* barrier, int stage, uint32_t parity, bool full) {
  if (phase_has_ended(barrier, parity)) return;
  constexpr uint32_t kLong = 1'000'000'000, kEndless = 3'000'000'000;
  for (const uint32_t begin = device_time(); !phase_has_ended(barrier, parity);) {
    const uint32_t waited = device_time() - begin;
    if (waited < kLong) continue;
    if (shared.waits != nullptr) tell_host(shared.waits, stage, full, parity, waited > kEndless);
    if (waited > kEndless) trap();
  }
}
template <class Shared>
CONV_EXT_DEVICE void wait_empty(const Shared& shared, int stage, uint32_t parity) {
  wait_barrier(shared, shared.empty(stage), stage, parity, false);
}
template <class Shared>
CONV_EXT_DEVICE void wait_full(const Shared& shared, int stage, uint32_t parity) {
  wait_barrier(shared, shared.full(stage), stage, parity, true);
}

template <class T>
struct WgmmaParameters {
  TensorMap weights, source[kMostGatherPhases];
  GatherPhase phases[kMostGatherPhases];
  Grid grid;  // tiles_m: of channels, tiles_n: of positions; steps of a split
  int32_t tiles, blocks;
  int32_t images, rows;              // rows: channels of a group of the result
  int32_t tap_steps, last_products;  // steps of a tap; products of its last one, the others have kProducts
  int32_t part_steps, chain_steps;   // the sum's bits: it is made of parts, and those of chains
  int32_t group_channels;            // from a group to the next in the source
  int32_t channels;                  // of a group of the source, rows of weights that run across k
  int32_t step_h, step_w, output_step_h, output_step_w;
  int32_t vectors;  // whether the result is written in vectors of 16 bytes along its channels
  Strides to;
  Result<T, float> result;
  int64_t split_elements;
  Waits* waits;
  GatherAgain again;  // float32 in parts: what their products do not say
};

// What a tile is, the same for all roles.
template <class T>
struct WgmmaTile {
  const GatherPhase* phase;
  BlockPlace place;
  int64_t first_position, positions;
  int32_t first_row, first_step, steps;

  CONV_EXT_DEVICE WgmmaTile(const WgmmaParameters<T>& p, int64_t index, int n) {
    place = place_of(p.grid, index);
    phase = &p.phases[place.phase];
    first_position = int64_t(place.n) * kWgmmaM;
    positions = int64_t(p.images) * phase->count_h * phase->count_w;
    first_row = place.m * n;
    first_step = place.split * p.grid.steps;
    steps = steps_of(p.grid, place.split, int64_t(phase->taps_h) * phase->taps_w * p.tap_steps, 1);
  }
  // A phase may have fewer positions than the first one.
  CONV_EXT_DEVICE bool exists() const { return first_position < positions; }
};

// One thread: asks for the operands of all steps of all of the block's tiles, in their order.
template <class Group, int n, class T>
CONV_EXT_DEVICE void produce(const WgmmaParameters<T>& p, const WgmmaShared<Group, n>& all) {
  using Shared = WgmmaShared<Group, n>;
  const Shared shared{held(all.base), all.waits};
  Ring<Shared::kStages> ring;
  for (int index = int(block_index()); index < p.tiles; index += p.blocks) {
    const WgmmaTile<T> tile(p, index, n);
    if (!tile.exists()) continue;
    const GatherPhase& phase = *tile.phase;
    const Digits at = digits_of(tile.first_position, phase.count_h, phase.count_w);
    const int h = phase.lower_h + at.middle * p.step_h, w = phase.lower_w + at.low * p.step_w;
    const int row = (tile.place.phase * p.grid.groups + tile.place.group) * p.rows + tile.first_row;
    const int rows = p.grid.phases * p.grid.groups * p.rows;  // of a part
    Digits tap = digits_of(tile.first_step, phase.taps_w > 0 ? phase.taps_w : 1, p.tap_steps);
    for (int step = 0; step < tile.steps; ++step) {
      wait_empty(shared, ring.stage, ring.parity ^ 1);
      uint64_t* const full = shared.full(ring.stage);
      arrive_expecting(full, Shared::kStage);
#pragma unroll
      for (int part = 0; part < Group::kParts; ++part) {
        copy_patches(shared.patches(ring.stage, part), &p.source[tile.place.phase], full,
                     tile.place.group * p.group_channels + tap.low * kChunk<Group>, w, h, at.high + part * p.images,
                     phase.offset_w + tap.middle * phase.delta_w, phase.offset_h + tap.high * phase.delta_h);
        if constexpr (Group::kWeightsAcross) {
          const int tap_of_kernel = phase.first_tap + tap.high * phase.next_tap_h + tap.middle * phase.next_tap_w;
#pragma unroll
          for (int i = 0; i < n / kBox; ++i)
            copy_rows(shared.weights(ring.stage, part) + i * kBoxBytes, &p.weights, full, tile.first_row + i * kBox,
                      tap_of_kernel, tile.place.group * p.channels + tap.low * kBox);
        } else {
          copy_rows(shared.weights(ring.stage, part), &p.weights, full, tap.low * kChunk<Group>,
                    tap.high * phase.taps_w + tap.middle, row + part * rows);
        }
      }
      ring.advance();
      if (++tap.low == p.tap_steps) {
        tap.low = 0;
        if (++tap.middle == phase.taps_w) {
          tap.middle = 0;
          ++tap.high;
        }
      }
    }
  }
}

// The first `count` products of a step, one group of them: where the number is not known the compiler would close a
// group after every product, or add one that multiplies nothing.
template <class Group, int count, int sums>
CONV_EXT_DEVICE void multiply_pieces(float (&chain)[sums], const uint64_t (&patches)[Group::kParts],
                                     const uint64_t (&weights)[Group::kParts], bool begins) {
  using Tag = typename Group::Element;
  begin_products();
  each_product<Group::kParts>([&](int x, int w, bool first) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const uint64_t k = uint64_t(i) * (32 >> 4);
      const bool adds = !first || i > 0 || !begins;
      if constexpr (Group::kWeightsAcross) {
        const uint64_t rows_of_k = uint64_t(i) * (16 * kRowBytes >> 4);
        multiply_group_right_across(chain, patches[x] + k, weights[w] + rows_of_k, adds, Tag{});
      } else {
        multiply_group(chain, patches[x] + k, weights[w] + k, adds, Tag{});
      }
    }
  });
  commit_products();
}

// The products of one step of a warpgroup's 64 positions; the first ones of a chain begin its sums.
template <class Group, int n>
CONV_EXT_DEVICE void multiply_step(float (&chain)[n / 2], const WgmmaShared<Group, n>& shared, int stage, int group,
                                   int products, bool begins) {
  uint64_t patches[Group::kParts], weights[Group::kParts];
#pragma unroll
  for (int part = 0; part < Group::kParts; ++part) {
    patches[part] = operand_along(shared_address(shared.patches(stage, part) + group * 64 * kRowBytes));
    const uint32_t at = shared_address(shared.weights(stage, part));
    weights[part] = Group::kWeightsAcross ? operand_across(at, kBoxBytes) : operand_along(at);
  }
  static_assert(kProducts == 4, "as many as there are cases");
  if (products == 4) {
    multiply_pieces<Group, 4>(chain, patches, weights, begins);
  } else if (products == 3) {
    multiply_pieces<Group, 3>(chain, patches, weights, begins);
  } else if (products == 2) {
    multiply_pieces<Group, 2>(chain, patches, weights, begins);
  } else {
    multiply_pieces<Group, 1>(chain, patches, weights, begins);
  }
}

// Sixteen bytes at once, or eight.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};
struct alignas(16) FourFloats {
  float value[4];
};
struct alignas(8) TwoFloats {
  float value[2];
};

// Puts kSlab channels of a warp's 16 positions into the slab.
template <bool along_channels>
CONV_EXT_DEVICE void put_slab(float* slab, const float* sums, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < kSlab / 8 * 4; i += 2) {
    const int position = warp * 16 + lane / 4 + i / 2 % 2 * 8, channel = i / 4 * 8 + lane % 4 * 2;
    if constexpr (along_channels) {
      *reinterpret_cast<TwoFloats*>(slab + slab_place<true>(position, channel)) = {sums[i], sums[i + 1]};
    } else {
      slab[slab_place<false>(position, channel)] = sums[i];
      slab[slab_place<false>(position, channel + 1)] = sums[i + 1];
    }
  }
}

// Writes a warpgroup's sums, kSlab channels at a time: through shared memory, so that neighbouring threads write
// neighbouring numbers in either layout.
template <class Group, int n, class T>
CONV_EXT_DEVICE void write_tile(const WgmmaParameters<T>& p, const WgmmaTile<T>& tile,
                                const WgmmaShared<Group, n>& shared, const float (&total)[n / 2], int group) {
  const int thread = anew(thread_index() % kGroupThreads), warp = thread / 32, lane = thread % 32;
  float* const slab = shared.slab(group);
  int64_t* const offsets = shared.offsets(group);
  const GatherPhase& phase = *tile.phase;
  if (thread < 64) {
    const int64_t position = tile.first_position + group * 64 + thread;
    int64_t offset = -1;
    if (position < tile.positions) {
      const Digits d = digits_of(position, phase.count_h, phase.count_w);
      offset = d.high * p.to.n + (phase.first_output_h + int64_t(d.middle) * p.output_step_h) * p.to.h +
               (phase.first_output_w + int64_t(d.low) * p.output_step_w) * p.to.w;
    }
    offsets[thread] = offset;
  }
  Result<T, float> result = p.result;
  const int64_t first = int64_t(tile.place.group) * p.rows;
  if (result.bias != nullptr) result.bias += first * result.bias_stride;
  if (result.partial != nullptr) {
    result.partial += tile.place.split * p.split_elements + first * result.stride_m;
  } else {
    result.data += first * result.stride_m;
  }
  const bool along_channels = result.stride_m == 1;  // as it is where vectors are written
#pragma unroll
  for (int j = 0; j < n / kSlab; ++j) {
    const int row = tile.first_row + j * kSlab, rows = p.rows - row;  // rows are channels here
    if (rows <= 0) break;
    if (along_channels) {
      put_slab<true>(slab, &total[j * (kSlab / 2)], warp, lane);
    } else {
      put_slab<false>(slab, &total[j * (kSlab / 2)], warp, lane);
    }
    barrier_of(1 + group, kGroupThreads);
    constexpr int kVector = 16 / int(sizeof(T)), kLanes = kSlab / kVector;  // lanes of a position
    if (p.vectors) {
      const int channel = lane % kLanes * kVector;
      float bias[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) bias[i] = channel < rows ? result.bias_of(row + channel + i) : 0;
#pragma unroll
      for (int position = warp * (32 / kLanes) + lane / kLanes; position < 64; position += 4 * 32 / kLanes) {
        if (channel >= rows || offsets[position] < 0) continue;
        T* const to = result.data + offsets[position] + row + channel;
        T finished[kVector], other[kVector] = {};
        result.finish.read(to, other);
#pragma unroll
        for (int i = 0; i < kVector; i += 4) {
          const FourFloats some = *reinterpret_cast<FourFloats*>(slab + slab_place<true>(position, channel + i));
#pragma unroll
          for (int k = 0; k < 4; ++k) finished[i + k] = result.finished(some.value[k] + bias[i + k], other[i + k]);
        }
        Bytes16 vector;
        memcpy(&vector, finished, sizeof vector);
        *reinterpret_cast<Bytes16*>(to) = vector;
      }
    } else if (along_channels) {
      for (int position = warp; position < 64; position += 4)
        if (lane < rows && offsets[position] >= 0)
          result.write(row + lane, offsets[position], slab[slab_place<true>(position, lane)]);
    } else {
      const int position = thread % 64;
      const int64_t offset = offsets[position];
      for (int channel = thread / 64; channel < kSlab; channel += 2)
        if (channel < rows && offset >= 0)
          result.write(row + channel, offset, slab[slab_place<false>(position, channel)]);
    }
    barrier_of(1 + group, kGroupThreads);
  }
}

// Calls form(i) for each of a thread's sums that is not finite: in a loop, for the code is long.
template <int count, class Form>
CONV_EXT_DEVICE void each_not_finite(const float (&total)[count], const Form& form) {
  uint32_t wrong[count / 32];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (i % 32 == 0) wrong[i / 32] = 0;
    wrong[i / 32] |= uint32_t(!is_finite(total[i])) << (i % 32);
  }
#pragma unroll
  for (int word = 0; word < count / 32; ++word)
    for (uint32_t rest = wrong[word]; rest != 0; rest &= rest - 1) {
      int i = word * 32;
      for (uint32_t bits = rest; (bits & 1) == 0; bits >>= 1) ++i;
      form(i);
    }
}

// Forms again what products of parts make of an infinity, in multiply-adds, and writes it over that. A thread looks at
// its own sums alone.
template <int n, class T>
CONV_EXT_DEVICE void write_again(const WgmmaParameters<T>& p, const WgmmaTile<T>& tile, const float (&total)[n / 2]) {
  if (p.result.partial != nullptr) return;  // the parts' sum is looked at
  const GatherPhase& phase = *tile.phase;
  const int lane = thread_index() % 32;
  each_not_finite(total, [&](int i) {
    const int64_t position = tile.first_position + thread_index() / 32 * 16 + lane / 4 + i / 2 % 2 * 8;
    const int row = tile.first_row + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (position >= tile.positions || row >= p.rows) return;
    const Digits d = digits_of(position, phase.count_h, phase.count_w);
    const int64_t channel = int64_t(tile.place.group) * p.rows + row;
    const int64_t at[4] = {d.high, channel, phase.first_output_h + int64_t(d.middle) * p.output_step_h,
                           phase.first_output_w + int64_t(d.low) * p.output_step_w};
    p.result.write(channel, at[0] * p.to.n + at[2] * p.to.h + at[3] * p.to.w, p.again.sum(at));
  });
}

// A warpgroup's sums over the next `steps` steps of the ring, at least one, all on the tensor cores; multiply(sum,
// stage, begins) starts the products of one step.
template <class Group, int n, class Multiply>
CONV_EXT_DEVICE void sum_chain(float (&sum)[n / 2], const WgmmaShared<Group, n>& shared,
                               Ring<WgmmaShared<Group, n>::kStages>& ring, int steps, const Multiply& multiply) {
  // Each warp says for itself that it has done with a stage.
  const auto release = [&](int stage) {
    if (thread_index() % 32 == 0) arrive(shared.empty(stage));
  };
  int before = 0;
  for (int i = 0; i < steps; ++i) {
    wait_full(shared, ring.stage, ring.parity);
    multiply(sum, ring.stage, i == 0);
    if (i > 0) {
      wait_products<1>();
      release(before);
    }
    before = ring.stage;
    ring.advance();
  }
  wait_sums(sum);
  release(before);
}

// The same in chains of `chain_steps`, which are added up in float32; of no step it is zero.
template <class Group, int n, class Multiply>
CONV_EXT_DEVICE void sum_part(float (&total)[n / 2], const WgmmaShared<Group, n>& shared,
                              Ring<WgmmaShared<Group, n>::kStages>& ring, int steps, int chain_steps,
                              const Multiply& multiply) {
  float chain[n / 2];
#pragma unroll
  for (int i = 0; i < n / 2; ++i) total[i] = 0;
  while (steps > 0) {
    const int count = steps < chain_steps ? steps : chain_steps;
    sum_chain(chain, shared, ring, count, multiply);
#pragma unroll
    for (int i = 0; i < n / 2; ++i) total[i] += chain[i];
    steps -= count;
  }
  if constexpr (Group::kParts > 1) {
#pragma unroll
    for (int i = 0; i < n / 2; ++i) total[i] = fused(total[i], kSumScale, -0.0f);  // rounded, whatever it is added to
  }
}

// A warpgroup: multiplies what is brought, and writes the tiles.
template <class Group, int n, class T>
CONV_EXT_DEVICE void consume(const WgmmaParameters<T>& p, const WgmmaShared<Group, n>& shared) {
  const int group = warp_index() / 4;
  Ring<WgmmaShared<Group, n>::kStages> ring;
  for (int index = int(block_index()); index < p.tiles; index += p.blocks) {
    const WgmmaTile<T> tile(p, index, n);
    if (!tile.exists()) continue;
    int within = tile.first_step % p.tap_steps;  // of a tap
    const auto multiply = [&](float(&sum)[n / 2], int stage, bool begins) {
      const bool ends_tap = ++within == p.tap_steps;
      if (ends_tap) within = 0;
      multiply_step(sum, shared, stage, group, ends_tap ? p.last_products : kProducts, begins);
    };
    float total[n / 2];
    if constexpr (n <= kMostInParts<Group>) {
      float part[n / 2];
#pragma unroll
      for (int i = 0; i < n / 2; ++i) total[i] = 0;
      for (int rest = tile.steps; rest > 0; rest -= p.part_steps) {
        sum_part(part, shared, ring, rest < p.part_steps ? rest : p.part_steps, p.chain_steps, multiply);
#pragma unroll
        for (int i = 0; i < n / 2; ++i) total[i] += part[i];
      }
    } else if constexpr (n <= kMostChained) {
      sum_part(total, shared, ring, tile.steps, p.chain_steps, multiply);
    } else {
#pragma unroll
      for (int i = 0; i < n / 2; ++i) total[i] = 0;
      if (tile.steps > 0) sum_chain(total, shared, ring, tile.steps, multiply);
#pragma unroll
      for (int i = 0; i < n / 2; ++i) total[i] += 0.0f;  // as if it were added to zero: none is a negative zero
    }
    const WgmmaTile<T> place(p, anew(index), n);  // registers are for the sums until here
    write_tile(p, place, shared, total, group);
    if constexpr (Group::kParts > 1) write_again<n>(p, place, total);
  }
}

// Makes the ring's barriers, then runs the block's roles: produce() in one thread, consume() in two warpgroups.
template <class Shared, class Produce, class Consume>
CONV_EXT_DEVICE void run_roles(const Shared& shared, Produce produce, Consume consume) {
  if (thread_index() == 0) {
    for (int stage = 0; stage < Shared::kStages; ++stage) {
      init_barrier(shared.full(stage), 1);
      init_barrier(shared.empty(stage), kConsumers / 32);
    }
    publish_barriers();
  }
  barrier();
  // 65536 registers: 168 for each of 384 threads, of which those that multiply need more and the others fewer.
  if (warp_index() >= kConsumers / 32) {
    give_registers<40>();
    if (warp_index() == kConsumers / 32 && elect_one()) produce();
  } else {
    take_registers<232>();
    consume();
  }
}
template <class Shared>
CONV_EXT_DEVICE Shared aligned_shared(Waits* waits) {
  const uint32_t beyond = shared_address(shared_memory()) % kSwizzleBytes;
  return Shared{shared_memory() + (beyond == 0 ? 0 : kSwizzleBytes - beyond), waits};
}

template <class Group, int n, class T = typename Group::Source>
CONV_EXT_KERNEL(kWgmmaThreads)
wgmma_gather(CONV_EXT_GRID_CONSTANT WgmmaParameters<T> p) {
  const auto shared = aligned_shared<WgmmaShared<Group, n>>(p.waits);
  run_roles(shared, [&] { produce(p, shared); }, [&] { consume(p, shared); });
}

}  // namespace cuda
}  // namespace conv_ext
