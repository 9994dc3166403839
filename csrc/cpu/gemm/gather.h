// forward and input_grad by panels: of the two operands of the matrix product one is read where it lies, scalar by
// scalar, and the other one becomes panels of vectors.
//
//   channels are neighbours (channels_last)      positions are neighbours
//     pack all weights as panels                   for each run of positions (in parallel):
//     for each run of positions (in parallel):       for each block of channels and taps:
//       find what each position reads                  for each panel of positions:
//       for each panel of weights:                       pack the source as a panel
//         for each block of channels and taps:           for each few rows of weights: panel_tile
//           for each few positions: panel_tile           write the results of the last block
//         write the results
//
// Positions are numbered through all images, so that none is lost at the end of a row. The order of the sums
// follows from the channels and the taps, and from which of the two it is: the memory layout decides that. Start
// reading at run_panels_gather.
#pragma once

#include "along_channels.h"
#include "along_positions.h"

namespace conv_ext {

template <class A>
void run_panels_task(const GatherOperands<A>& op, const PanelsGatherPlan& own, int64_t index, void* scratch) {
  const int64_t part = index % own.parts_m;
  index /= own.parts_m;
  const int64_t block = index % own.blocks;
  index /= own.blocks;
  PanelsTask task;
  task.f = op.phase_at(index % op.phases());
  task.group = index / op.phases();
  task.units = own.weights.along_channels ? task.f.positions : ceil_div(task.f.positions, kLanes<A>);
  task.all_tiles = ceil_div(task.units, own.unit);
  // A phase with fewer positions than the first one may leave its last tasks nothing to do.
  const int64_t blocks = min_of(own.blocks, task.all_tiles);
  if (block >= blocks) return;
  task.tile0 = part_begin(task.all_tiles, blocks, block);
  task.tile1 = part_begin(task.all_tiles, blocks, block + 1);
  task.first = task.begin_of(0);
  task.last = task.begin_of(task.tiles());
  task.s0 = part_begin(own.weights.panels, own.parts_m, part);
  task.s1 = part_begin(own.weights.panels, own.parts_m, part + 1);
  if (task.first == task.last || task.s0 == task.s1) return;
  if (own.weights.along_channels) {
    PanelsAlongChannels<A>(op, own, task, scratch).run();
  } else {
    PanelsAlongPositions<A>(op, own, task, scratch).run();
  }
}

// An image whose rows follow one another, as one row.
inline ConvProblem as_one_row(ConvProblem z) {
  z.w = z.q = z.h * z.w;
  z.h = z.p = 1;
  return z;
}

template <class A>
void run_panels_gather(const ConvProblem& given, Pass pass, const Plan& plan, const Buffers& b,
                       const Executor& executor) {
  const PanelsGatherPlan& own = plan.own<PanelsPlan>().gather;
  const ConvProblem z = own.one_row ? as_one_row(given) : given;
  Carver memory(b.workspace);
  PanelsGatherWorkspace<A> workspace = panels_gather_workspace<A>(z, pass, own, memory, b.kept);
  workspace.taps.build(TapOrder::ByNumber, own.weights.joined_taps);
  GatherOperands<A> op(z, pass, own.weights, workspace.taps, workspace.packed, workspace.adds_padding, b);
  if (own.one_row) op.joined_width = given.q, op.finish_sums = Finish<A, A>(given, b);
  if (own.one_row && given.w == 1) {  // the stride of a single column has no say
    op.source.column = op.source.row;
    op.result.column = op.result.row;
  }
  if (!op.pack_weights(executor)) return;
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { run_panels_task<A>(op, own, index, scratch); });
}

}  // namespace conv_ext
