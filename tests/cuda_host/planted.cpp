// Two kernels, small enough to be compiled again with each planted error: forward on TF32, of a source that is copied
// as channels_last first, in the four ways; with a residual and two bounds behind it.
//
// A kernel of three taps along one row, padded on both sides. Exit status 1 if a sum is wrong.
#include <memory>

#include "device.h"
#include "passes.cuh"

int main() {
  using namespace conv_ext::cuda;
  using Pass = Gather<float, float, Load::KVector>;
  constexpr int kChannels = 44, kTaps = 3, kProducts = kTaps * kChannels, kRows = 70, kColumns = 71;
  std::unique_ptr<float[]> source(new float[kColumns * kChannels]), packed(new float[kColumns * kChannels]),
      weights(new float[kRows * kProducts]), residual(new float[kRows * kColumns]), result(new float[kRows * kColumns]);
  for (int i = 0; i < kColumns * kChannels; ++i) source[size_t(i)] = float(i * 7 % 11 - 5);
  for (int i = 0; i < kRows * kProducts; ++i) weights[size_t(i)] = float(i * 5 % 13 - 6);

  for (int i = 0; i < kRows * kColumns; ++i) residual[size_t(i)] = float(i * 3 % 17 - 8);
  constexpr float kLow = -700, kHigh = 600;

  Pass::Parameters p{};
  p.grid = {2, 2, 1, 1, 1, (kProducts + 15) / 16, 2};
  p.vertical = {0, 1, 1, 1, 1, 0};
  p.horizontal = {0, kTaps, kColumns, 1, 1, 1};
  p.phases_w = 1;
  p.images = 1;
  p.rows = kRows;
  p.channels = kChannels;
  p.source = {packed.get(), 1, kColumns};
  p.from = {0, 1, 0, kChannels};
  p.to = {0, kColumns, 0, 1};
  p.weights = weights.get();
  p.pitch = kProducts;
  p.result.data = result.get();
  p.result.stride_m = kColumns;
  p.result.finish.activation = conv_ext::Activation::Clamp;
  p.result.finish.low = kLow;
  p.result.finish.high = kHigh;
  p.result.finish.adds = 1;
  p.result.finish.residual = reinterpret_cast<intptr_t>(residual.get()) - reinterpret_cast<intptr_t>(result.get());

  PackSourceParameters<float, float> pack{};
  pack.from = source.get();
  pack.to = packed.get();
  pack.positions = {1, 1, kColumns, 1, 1, 0, 0, 0, 0, 1};
  pack.stride_c = kColumns;
  pack.groups = 1;
  pack.channels = pack.padded = kChannels;
  pack.tiles = 2;
  pack.log_channels = 5;
  pack.tile_positions = PackTile<float>::kElements / 32;
  pack.pitch = 33;

  for (int way = 0; way < 4; ++way) {
    machine.late = way & 1;
    machine.reversed = way & 2;
    memset(packed.get(), 0xff, kColumns * kChannels * sizeof(float));
    launch(pack_channels_last<WholeNumbers<float>>, 2 * ((kColumns + pack.tile_positions - 1) / pack.tile_positions),
           kPackThreads, pack.tile_positions * pack.pitch * 4, nullptr, pack);
    launch(igemm<Pass, TF32, SmallTile>, p.grid.blocks(), SmallTile::kThreads,
           SharedStages<TF32, SmallTile, Order::Along>::kBytes, nullptr, p);
    for (int m = 0; m < kRows; ++m)
      for (int n = 0; n < kColumns; ++n) {
        float sum = 0;
        for (int tap = 0; tap < kTaps; ++tap)
          for (int c = 0; c < kChannels && n + tap >= 1 && n + tap <= kColumns; ++c)
            sum += weights[size_t((m * kTaps + tap) * kChannels + c)] * source[size_t(c * kColumns + n + tap - 1)];
        sum += residual[size_t(m * kColumns + n)];
        sum = sum < kLow ? kLow : sum > kHigh ? kHigh : sum;
        if (!(result[size_t(m * kColumns + n)] == sum)) return 1;
      }
  }
  return 0;
}
