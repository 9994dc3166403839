// The implicit matrix product: one template for the three passes, every type and every layout.
//
// Start reading at igemm() at the end. A block computes a tile of gemm_m x gemm_n sums. It goes along gemm_k in steps
// of kBlockK numbers; the next steps' operands are on their way into shared memory while this one is multiplied. Which
// addresses they come from is said by the pass (passes.cuh) in coordinates (coordinates.cuh), what multiplies by Math
// (math.cuh). The order in which the products of one sum are added follows from Math and gemm_k alone.
#pragma once

#include "coordinates.cuh"
#include "epilogue.cuh"
#include "math.cuh"

namespace conv_ext {
namespace cuda {

constexpr int kStages = 3;  // steps in shared memory: one that is multiplied, two that are on their way

// A tile of sums and the warps that share it.
template <int m, int n, int warp_m, int warp_n>
struct Tile {
  static constexpr int kM = m, kN = n, kWarpM = warp_m, kWarpN = warp_n;
  static constexpr int kWarpsM = m / warp_m, kThreads = 32 * (m / warp_m) * (n / warp_n);
};
using LargeTile = Tile<128, 128, 64, 32>;
using SmallTile = Tile<64, 64, 32, 32>;

// How neighbouring threads read an operand: along its rows, along gemm_k, or along gemm_k in vectors of 16 bytes.
enum class Load { Rows, K, KVector };

// Brings one operand's share of each step into shared memory: kRows rows of kBlockK numbers.
template <class T, int kRows, int kThreads, int kBlockK, int kPitch, Load load, class RowMap, class KMap>
struct Loader {
  static constexpr int kVector = load == Load::KVector ? 16 / int(sizeof(T)) : 1;
  // Threads side by side along k: so few that a thread's rows, fewer then, find room in registers.
  static constexpr int kMost = sizeof(T) == 2 && load == Load::K ? 8 : 16;
  static constexpr int kAcross = load == Load::Rows          ? kThreads / kRows
                                 : kBlockK / kVector < kMost ? kBlockK / kVector
                                                             : kMost;
  static constexpr int kMine = load == Load::Rows ? 1 : kRows * kAcross / kThreads;  // rows of a thread
  static constexpr int kRowStep = kRows / kMine;
  static constexpr int kSlots = kBlockK / (kAcross * kVector);  // numbers (vectors) of a thread in each of its rows
  static constexpr int kBytes = kVector * int(sizeof(T));
  static constexpr bool kAsync = kBytes >= 4;  // shorter ones go through a register
  static_assert(kMine * kRowStep == kRows && kSlots * kAcross * kVector == kBlockK, "the threads share a step evenly");

  Patches<T> source;
  Walker<KMap> walker;
  Coordinate rows[kMine];
  int row, k;  // this thread's first ones
  T waiting[kAsync ? 1 : kSlots * kMine];

  CONV_EXT_DEVICE void start(const Patches<T>& from, const RowMap& row_map, int64_t first_row, const KMap& k_map,
                             int64_t first_k) {
    const int thread = thread_index();
    source = from;
    row = load == Load::Rows ? thread % kRows : thread / kAcross;
    k = load == Load::Rows ? thread / kRows : thread % kAcross;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t index = first_row + row + i * kRowStep;
      rows[i] = index < row_map.count() ? coordinate(row_map, index) : Coordinate{0, kNowhere, 0};
    }
    walker.map = k_map;
    walker.seek(first_k + k * kVector);
  }
  // Sends for the next step.
  CONV_EXT_DEVICE void fetch(T* stage) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const Coordinate along = walker.here();
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const bool inside = source.holds(rows[i], along);
        const T* from = source.at(rows[i], along, inside);
        if constexpr (kAsync) {
          copy_async<kBytes>(stage + place(slot, i), from, inside);
        } else {
          waiting[slot * kMine + i] = inside ? *from : T{};
        }
      }
      walker.advance(kAcross * kVector);
    }
  }
  // Puts down what was sent for through registers.
  CONV_EXT_DEVICE void put(T* stage) {
    if constexpr (!kAsync) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot)
#pragma unroll
        for (int i = 0; i < kMine; ++i) stage[place(slot, i)] = waiting[slot * kMine + i];
    }
  }
  CONV_EXT_DEVICE int place(int slot, int i) const {
    return (row + i * kRowStep) * kPitch + (k + slot * kAcross) * kVector;
  }
};

// The sums of one warp.
template <class Math, class Tile>
struct WarpSums {
  static constexpr int kDown = Tile::kWarpM / Math::kM, kAcross = Tile::kWarpN / Math::kN;
  static constexpr int kPitch = Math::kBlockK + Math::kPad;
  using T = typename Math::Element;
  static_assert(kAcross % 2 == 0, "right operands are loaded in pairs");

  typename Math::Sums chain[kDown][kAcross];
  typename Math::Sums total[Math::kChain ? kDown : 1][Math::kChain ? kAcross : 1];

  CONV_EXT_DEVICE void clear() {
    each([&](int i, int j, int e) {
      chain[i][j][e] = 0;
      if constexpr (Math::kChain > 0) total[i][j][e] = 0;
    });
  }
  CONV_EXT_DEVICE void multiply(const T* left, const T* right, int lane) {
#pragma unroll
    for (int k = 0; k < Math::kBlockK; k += Math::kK) {
      typename Math::Right b[kAcross];
#pragma unroll
      for (int j = 0; j < kAcross; j += 2)
        Math::load_right(b[j], b[j + 1], right + j * Math::kN * kPitch + k, kPitch, lane);
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        typename Math::Left a;
        Math::load_left(a, left + i * Math::kM * kPitch + k, kPitch, lane);
#pragma unroll
        for (int j = 0; j < kAcross; ++j) Math::multiply(chain[i][j], a, b[j]);
      }
    }
  }
  // Hands the chains' sums over, so that the next ones start from zero.
  CONV_EXT_DEVICE void close_chains() {
    if constexpr (Math::kChain > 0) {
      each([&](int i, int j, int e) {
        total[i][j][e] += chain[i][j][e];
        chain[i][j][e] = 0;
      });
    }
  }
  CONV_EXT_DEVICE typename Math::Sum sum(int i, int j, int e) const {
    if constexpr (Math::kChain > 0) return total[i][j][e];
    return chain[i][j][e];
  }
  template <class Body>
  CONV_EXT_DEVICE void each(Body body) {
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int e = 0; e < Math::kRows * Math::kColumns; ++e) body(i, j, e);
  }
};

template <class Math, class Tile>
struct SharedStages {
  static constexpr int kPitch = Math::kBlockK + Math::kPad;
  static constexpr int kLeft = Tile::kM * kPitch, kStage = (Tile::kM + Tile::kN) * kPitch;
  static constexpr int kBytes = kStages * kStage * int(sizeof(typename Math::Element));
};

// Each lane writes its sums: sum (m, n) goes to result + m * stride_m + where column n is.
template <class Math, class Tile, class Work>
CONV_EXT_DEVICE void write_sums(const WarpSums<Math, Tile>& sums, const Work& work, int64_t m, int64_t n, int lane) {
#pragma unroll
  for (int j = 0; j < WarpSums<Math, Tile>::kAcross; ++j)
#pragma unroll
    for (int f = 0; f < Math::kColumns; ++f) {
      const int64_t column = n + j * Math::kN + Math::column(lane, f);
      if (column >= work.columns.count()) continue;
      const int64_t offset = coordinate(work.columns, column).offset;
#pragma unroll
      for (int i = 0; i < WarpSums<Math, Tile>::kDown; ++i)
#pragma unroll
        for (int e = 0; e < Math::kRows; ++e) {
          const int64_t row = m + i * Math::kM + Math::row(lane, e);
          if (row < work.count_m) work.result.write(row, offset, sums.sum(i, j, e * Math::kColumns + f));
        }
    }
}

template <class Pass, class Math, class Tile>
CONV_EXT_KERNEL(Tile::kThreads)
igemm(typename Pass::Parameters parameters) {
  if constexpr (kHasTensorCores || !Math::kTensorCores) {
    using T = typename Math::Element;
    using Stages = SharedStages<Math, Tile>;
    using Left = Loader<T, Tile::kM, Tile::kThreads, Math::kBlockK, Stages::kPitch, Pass::kLoadLeft,
                        typename Pass::LeftRows, typename Pass::LeftK>;
    using Right = Loader<T, Tile::kN, Tile::kThreads, Math::kBlockK, Stages::kPitch, Pass::kLoadRight,
                         typename Pass::RightRows, typename Pass::RightK>;
    T* const stages = reinterpret_cast<T*>(shared_memory());

    const typename Pass::Work work = Pass::work(parameters, block_index(), Tile::kM, Tile::kN, Math::kBlockK);
    if (work.first_n >= work.columns.count()) return;  // this phase has fewer outputs than the first

    Left left;
    Right right;
    WarpSums<Math, Tile> sums;
    sums.clear();
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int warp_m = warp % Tile::kWarpsM * Tile::kWarpM, warp_n = warp / Tile::kWarpsM * Tile::kWarpN;
    if (work.steps > 0) {  // a phase may have no taps: its sums are empty
      left.start(work.left, work.left_rows, work.first_m, work.left_k, work.first_k);
      right.start(work.right, work.right_rows, work.first_n, work.right_k, work.first_k);
    }
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < work.steps) {
        left.fetch(stages + s * Stages::kStage);
        right.fetch(stages + s * Stages::kStage + Stages::kLeft);
        left.put(stages + s * Stages::kStage);
        right.put(stages + s * Stages::kStage + Stages::kLeft);
      }
      commit_copies();
    }
    for (int step = 0; step < work.steps; ++step) {
      wait_copies<kStages - 2>();
      // All threads' parts of this step have landed, and all have done with the step before, whose place is filled
      // anew.
      barrier();
      const bool more = step + kStages - 1 < work.steps;
      T* const next = stages + (step + kStages - 1) % kStages * Stages::kStage;
      if (more) {
        left.fetch(next);
        right.fetch(next + Stages::kLeft);
      }
      commit_copies();
      const T* const now = stages + step % kStages * Stages::kStage;
      sums.multiply(now + warp_m * Stages::kPitch, now + Stages::kLeft + warp_n * Stages::kPitch, lane);
      if (more) {
        left.put(next);
        right.put(next + Stages::kLeft);
      }
      if constexpr (Math::kChain > 0)
        if ((step + 1) % (Math::kChain / Math::kBlockK) == 0) sums.close_chains();
    }
    sums.close_chains();
    write_sums(sums, work, work.first_m + warp_m, work.first_n + warp_n, lane);
  }
}

}  // namespace cuda
}  // namespace conv_ext
