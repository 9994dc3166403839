// The matrix product in AMX's tiles for 1x1 kernels whose outputs are the positions of the source, forward and
// input_grad: positions are one line, of which the next ones are packed between the products of these.
//
//   pack all weights
//   for each part of the line (in parallel):
//     for some times 32 positions: for each panel of 32 outputs: for each 32 positions: multiply all channels, packing
//     the next meanwhile; scale, add the bias, write
//
// Positions are rows where their channels are neighbours. In NCHW they are lanes, and outputs are rows: nothing is
// turned round. Start reading at run_tiles_gather, at the end, which has all schedules.
#pragma once

#include "tiles_gather.h"

#if defined(CONV_EXT_AMX)

namespace conv_ext {

// Packs 32 positions for rows, one position's 32 channels at a time: [c/32][part][position][32].
template <class T, int parts>
struct RowsPacker {
  TilePacker<T, parts> packer;
  View<T> view;
  int64_t height, width;
  int64_t position, last;  // in the line of all images
  char* to;
  int64_t channel = 0;
  const T* from = nullptr;

  bool more() const { return position < last; }
  __attribute__((always_inline)) void pack_next() {
    if (channel == 0) {
      const int64_t row = position / width;
      from = view.data + row / height * view.n + row % height * view.row + position % width * view.column;
    }
    packer.pack_neighbours(to + channel / kTileEdge * packer.block_pitch(), from, channel);
    channel += kTileEdge;
    if (channel < packer.channels) return;
    channel = 0;
    ++position;
    to += packer.position_pitch;
  }
};
// The same for lanes, one pair of channels at 16 neighbouring positions at a time: [c/32][part][2][16 pairs][16][2].
template <class T, int parts>
struct LanesPacker {
  const T* from;  // the first position
  int64_t channel_stride, channels, positions;
  char* to;
  int64_t next, last;  // of 32 units for each 32 channels

  bool more() const { return next < last; }
  __attribute__((always_inline)) void pack_next() {
    const int64_t block = next / 32, pair = next / 2 % 16, half = next % 2, c = block * kTileEdge + pair;
    const auto some = [&](int64_t channel) __attribute__((always_inline)) {
      return (__m512)read_some<float>(from + channel * channel_stride + half * 16,
                                      channel < channels ? positions - half * 16 : 0);
    };
    store_pairs<T, parts>(to + block * parts * kStepBytes + half * kTileBytes + pair * 64, kStepBytes, some(c),
                          some(c + 16));
    ++next;
  }
};

template <class T, int parts>
struct TilesLine {
  const TilesGather<T, parts>& op;
  static constexpr int64_t kPartsBytes = parts * kStepBytes;

  // The blocks of 32 positions of a task: packer_of(block, memory), and multiply(block, memory, panel, work) with the
  // work that goes between the products.
  template <class PackerOf, class Multiply>
  __attribute__((always_inline)) void run_blocks(const Range& its, char* scratch, const PackerOf& packer_of,
                                                 const Multiply& multiply) const {
    const int64_t run = op.own.run, bytes = op.blocks() * kPartsBytes;
    char* const end = scratch + 2 * run * bytes;
    const TileScope scope;
    int64_t packed = its.first;  // the block that is being packed, and where
    char* to = scratch;
    auto packer = packer_of(packed, to);
    const auto more = [&](int64_t last) __attribute__((always_inline)) {
      if (__builtin_expect(packer.more(), 1)) return true;
      if (packed + 1 >= last) return false;
      to += bytes;
      if (to == end) to = scratch;
      packer = packer_of(++packed, to);
      return true;
    };
    // A block has 32 units of work for each 32 channels: so many in each step, and it is done with the last panel.
    const int64_t each = ceil_div(kTileEdge, op.panels());
    const char* here = scratch;
    for (int64_t first = its.first; first < its.last; first += run) {
      const int64_t last = min_of(first + run, its.last), last_packed = min_of(last + run, its.last);
      while (more(last)) packer.pack_next();
      const auto work = [&](int product) __attribute__((always_inline)) {
        for (int64_t unit = part_of(each, kProducts<parts>, product).count(); unit > 0 && more(last_packed); --unit)
          packer.pack_next();
      };
      for (int64_t panel = 0; panel < op.panels(); ++panel)
        for (int64_t block = first; block < last; ++block) multiply(block, here + (block - first) * bytes, panel, work);
      here = here == scratch ? scratch + run * bytes : scratch;
    }
  }

  void run_line(int64_t index, char* scratch) const {
    static constexpr int64_t kNoOffset = 0;
    const ConvProblem& z = op.z;
    const int64_t group = index / op.own.splits, length = product(z.n, z.p, z.q);
    const Range its = part_of(ceil_div(length, kTileEdge), op.own.splits, index % op.own.splits);
    const typename TilesGather<T, parts>::Positions at{group, 0, z.n, 0, 0, z.p, z.q, z.q, z.n * z.p, 1, 1, 1};
    const TilePitch pitch{kTileBytes, kStepBytes, kTileBytes, kStepBytes};
    alignas(64) float sums[kTileEdge * kTileEdge];
    run_blocks(
        its, scratch,
        [&](int64_t block, char* to) {
          return RowsPacker<T, parts>{{kStepBytes, 64, op.channels},
                                      op.source_of_group(group),
                                      z.p,
                                      z.q,
                                      block * kTileEdge,
                                      min_of(length, (block + 1) * kTileEdge),
                                      to};
        },
        [&](int64_t block, const char* x, int64_t panel, const auto& work) __attribute__((always_inline)) {
          const int64_t count = min_of(kTileEdge, length - block * kTileEdge);
          const GatherSteps steps{x, op.shared_panel(group, panel), &kNoOffset, 1, kPartsBytes, kPartsBytes};
          multiply_rows<parts>(steps, op.blocks(), pitch, count, sums, false, work);
          op.write_block(sums, at, panel * kTileEdge, block * kTileEdge, count);
        });
  }

  void run_lanes(int64_t index, char* scratch) const {
    static constexpr int64_t kNoOffset = 0;
    const ConvProblem& z = op.z;
    const int64_t group = index / op.own.splits, plane = z.p * z.q, blocks = ceil_div(plane, kTileEdge);
    const Range its = part_of(z.n * blocks, op.own.splits, index % op.own.splits);
    const View<T> view = op.source_of_group(group);
    const TilePitch pitch{kTileBytes, kStepBytes, kTileBytes, kStepBytes};
    alignas(64) float sums[kTileEdge * kTileEdge];
    run_blocks(
        its, scratch,
        [&](int64_t block, char* to) {
          const int64_t first = block % blocks * kTileEdge;
          return LanesPacker<T, parts>{view.data + block / blocks * view.n + first,
                                       view.channel,
                                       op.channels,
                                       plane - first,
                                       to,
                                       0,
                                       op.blocks() * kTileEdge};
        },
        [&](int64_t block, const char* w, int64_t panel, const auto& work) __attribute__((always_inline)) {
          const int64_t first = block % blocks * kTileEdge, count = min_of(kTileEdge, plane - first);
          const GatherSteps steps{op.shared_panel(group, panel), w, &kNoOffset, 1, kPartsBytes, kPartsBytes};
          multiply_lanes<parts>(steps, op.blocks(), pitch, count, sums, work);
          write_lanes_of(sums, group, panel * kTileEdge, block / blocks, first, count);
        });
  }
  // Rows are outputs from m on, lanes positions of image n from `first` on.
  void write_lanes_of(float* sums, int64_t group, int64_t m, int64_t n, int64_t first, int64_t count) const {
    const int64_t outputs = min_of(kTileEdge, op.group_m - m), channel = group * op.group_m + m;
    const float* const biases = op.bias + group * op.panels() * kTileEdge + m;
    T* to = op.result.data + n * op.result.n + channel * op.result.channel + first;
    for (int64_t i = 0; i < outputs; ++i, to += op.result.channel)
      for (int64_t l = 0; l < count; l += 16) {
        float* const sum = sums + i * kTileEdge + l;
        if (op.finish(sum, _mm512_set1_ps(biases[i])))
          for (int64_t j = 0; j < min_of(16, count - l); ++j)
            op.mend(sum + j, n, channel + i, (first + l + j) / op.z.q, (first + l + j) % op.z.q);
        write_finished16(op.finish_sums, to + l, _mm512_load_ps(sum), min_of(16, count - l));
      }
    finish_positions(op.finish_sums, true, op.buffers, 1, n, channel, outputs, op.z.q, first, first + count);
  }
};

template <class T, int parts>
void run_tiles_gather(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  const ImplicitGemmPlan& own = plan.own<ImplicitGemmPlan>();
  Carver memory(b.workspace);
  TileWorkspace w = tile_workspace(z, pass, own, memory);
  Carver kept(b.kept);
  if (own.kept) w.packed = tile_weights(z, pass, own, kept);
  TilesGather<T, parts> task{z,
                             own,
                             pass,
                             b,
                             w.tables,
                             view_of<T>(source_of(pass, b), 1),
                             view_of<T>(result_of(pass, b), 1),
                             weights_by_role<T>(pass, b),
                             w.bias,
                             w.packed,
                             result_channels(z, pass),
                             source_channels(z, pass)};
  const int64_t panels = task.panels(), blocks = task.blocks();
  task.tables.build(own, blocks);
  for (int64_t group = 0; group < z.groups; ++group)
    pack_bias<T>(task.bias + group * panels * kTileEdge, b, group * task.group_m, task.group_m, panels * kTileEdge);
  const auto scratch_of = [&](void* scratch) {
    Carver local(scratch);
    return tile_scratch(z, pass, own, local).packed;
  };
  if (own.schedule == DotSchedule::Source) {
    CONV_EXT_RUNS("source");
    parallel_for(executor, z.groups * task.tiles(), 0, [&](int64_t index, void*) {
      task.pack_tile(task.packed + index * task.bytes_of_tile(),
                     task.tile_at(index / task.tiles(), index % task.tiles()));
    });
    parallel_for(executor, plan.tasks, plan.scratch_bytes,
                 [&](int64_t index, void* scratch) { task.run_panels(index, scratch_of(scratch)); });
    return;
  }
  const int64_t units = z.groups * panels * blocks;
  const int64_t packers = b.packed == PackedWeights::Kept ? 0 : min_of(units, plan.tasks);
  parallel_for(executor, packers, 0, [&](int64_t index, void*) {
    const Range its = part_of(units, packers, index);
    for (int64_t unit = its.first; unit < its.last; ++unit) {
      const int64_t panel = unit / blocks;
      task.pack_weights(task.shared_panel(0, panel), panel / panels, panel % panels * kTileEdge, unit % blocks);
    }
  });
  if (b.packed == PackedWeights::Make) return;
  if (own.schedule != DotSchedule::Weights) {
    const TilesLine<T, parts> line{task};
    const bool in_lanes = own.schedule == DotSchedule::Lanes;
    CONV_EXT_RUNS(in_lanes ? "lanes" : "line");
    parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
      in_lanes ? line.run_lanes(index, scratch_of(scratch)) : line.run_line(index, scratch_of(scratch));
    });
    return;
  }
  CONV_EXT_RUNS("weights");
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_tile(index, scratch_of(scratch)); });
}

}  // namespace conv_ext

#endif
