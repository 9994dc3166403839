// As planted.cpp, for wgmma.cuh: a product on bfloat16, in the four ways and the narrowest and the widest tile; and
// with weights that run across the sum, as input_grad reads them in place. Exit status 1 if a sum is wrong.
//
// A kernel of three taps along one row, padded on both sides; one block computes three tiles of nine steps each, more
// than its ring has stages.
#include <memory>

#include "wgmma/wgmma.cuh"

namespace {

using namespace conv_ext::cuda;
using Group = SixteenBitGroup<bfloat16>;
using Across = SixteenBitGroup<bfloat16, true>;
using Shared = WgmmaShared<Group, 64>;

constexpr int kChannels = 136, kTaps = 3, kSteps = 3, kPitch = kTaps * kSteps * 64, kRows = 40, kColumns = 300;
constexpr int kAcrossRows = 72;  // two boxes, the second of which is filled up with zeros
static_assert(kTaps * kSteps > Shared::kStages, "the ring goes round within a tile");

bfloat16 number(int value) { return bfloat16{uint16_t(bits_of(float(value)) >> 16)}; }
int x(int w, int c) { return (w * 7 + c * 3) % 5 - 2; }
int y(int row, int tap, int c) { return (row * 5 + tap + c * 2) % 7 % 3 - 1; }

bool is_right(const bfloat16* result, int rows) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      int sum = 0;
      for (int tap = 0; tap < kTaps; ++tap)
        for (int c = 0; c < kChannels && column + tap >= 1 && column + tap <= kColumns; ++c)
          sum += y(row, tap, c) * x(column + tap - 1, c);
      bfloat16 expected;
      narrow(float(sum), &expected);
      if (result[size_t(row * kColumns + column)].bits != expected.bits) return false;
    }
  return true;
}

}  // namespace

int main() {
  std::unique_ptr<bfloat16[]> source(new bfloat16[kColumns * kChannels]), weights(new bfloat16[kRows * kPitch]()),
      across(new bfloat16[kChannels * kTaps * kAcrossRows]), result(new bfloat16[kAcrossRows * kColumns]);
  for (int w = 0; w < kColumns; ++w)
    for (int c = 0; c < kChannels; ++c) source[size_t(w * kChannels + c)] = number(x(w, c));
  for (int row = 0; row < kRows; ++row)
    for (int tap = 0; tap < kTaps; ++tap)
      for (int c = 0; c < kChannels; ++c)
        weights[size_t(row * kPitch + tap * kSteps * 64 + c)] = number(y(row, tap, c));
  for (int c = 0; c < kChannels; ++c)
    for (int tap = 0; tap < kTaps; ++tap)
      for (int row = 0; row < kAcrossRows; ++row)
        across[size_t((c * kTaps + tap) * kAcrossRows + row)] = number(y(row, kTaps - 1 - tap, c));

  WgmmaParameters<bfloat16> p{};
  GatherPhase& phase = p.phases[0];
  phase.taps_h = phase.delta_h = phase.delta_w = phase.count_h = 1;
  phase.taps_w = kTaps;
  phase.lower_w = -1;
  phase.count_w = kColumns;
  phase.first_tap = kTaps - 1;  // of `across`, whose taps are turned round
  phase.next_tap_w = -1;
  PatchesMap patches{
      Number::BFloat16, source.get(), {kChannels, kColumns, 1, 1}, {}, {-1, 0}, {-1, 0}, {1, 1}, 64, 128};
  patches.stride[0] = kChannels * 2;
  patches.stride[1] = patches.stride[2] = kColumns * patches.stride[0];
  if (encode(patches, &p.source[0])) return 2;
  p.grid = {1, 3, 1, 1, 1, kTaps * kSteps};
  p.tiles = 3;
  p.blocks = 1;
  p.images = 1;
  p.channels = kChannels;
  p.tap_steps = kSteps;
  p.last_products = 1;
  p.part_steps = 5;
  p.chain_steps = 2;
  p.step_h = p.step_w = p.output_step_h = p.output_step_w = 1;
  p.to = {0, kColumns, 0, 1};
  p.result.data = result.get();
  p.result.stride_m = kColumns;
  p.waits = waits_for_host();

  for (int way = 0; way < 12; ++way) {
    machine.late = way & 1;
    machine.reversed = way & 2;
    const bool wide = way / 4 == 1, runs_across = way / 4 == 2;
    p.rows = runs_across ? kAcrossRows : kRows;
    RowsMap rows{Number::BFloat16, weights.get(), kSteps * 64, kTaps,          kRows,
                 kSteps * 128,     kPitch * 2,    64,          wide ? 256 : 64};
    if (runs_across)
      rows = {Number::BFloat16,        across.get(), kAcrossRows, kTaps, kChannels, kAcrossRows * 2,
              kTaps * kAcrossRows * 2, kBox,         kBox};
    if (encode(rows, &p.weights)) return 2;
    for (size_t i = 0; i < size_t(kAcrossRows * kColumns); ++i) result[i] = number(1 << 10);
    if (runs_across) {
      launch(wgmma_gather<Across, 128>, p.blocks, kWgmmaThreads, WgmmaShared<Across, 128>::kBytes, nullptr, p);
    } else if (wide) {
      launch(wgmma_gather<Group, 256>, p.blocks, kWgmmaThreads, WgmmaShared<Group, 256>::kBytes, nullptr, p);
    } else {
      launch(wgmma_gather<Group, 64>, p.blocks, kWgmmaThreads, Shared::kBytes, nullptr, p);
    }
    if (!is_right(result.get(), p.rows)) return 1;
  }
  return 0;
}
