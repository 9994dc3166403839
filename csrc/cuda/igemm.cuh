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

// A tile of sums and the warps that share it.
template <int m, int n, int warp_m, int warp_n>
struct Tile {
  static constexpr int kM = m, kN = n, kWarpM = warp_m, kWarpN = warp_n;
  static constexpr int kWarpsM = m / warp_m, kThreads = 32 * (m / warp_m) * (n / warp_n);
};
using LargeTile = Tile<128, 128, 64, 32>;
using SmallTile = Tile<64, 64, 32, 32>;
using NarrowTile = Tile<32, 128, 32, 32>;  // of few channels of the result

// How neighbouring threads read an operand: along its rows, along gemm_k, or along gemm_k in vectors of 16 bytes; or
// along its rows in vectors, which then lie across gemm_k in shared memory too.
enum class Load { Rows, K, KVector, RowsVector };
template <Load load>
constexpr Order kOrderOf = load == Load::RowsVector ? Order::Across : Order::Along;

// Brings one operand's share of each step into shared memory: kRows rows of kBlockK numbers, or the other way round.
template <class T, int kRows, int kThreads, int kBlockK, int kPitch, Load load, class RowMap, class KMap>
struct Loader {
  static constexpr bool kAlong = kOrderOf<load> == Order::Along;
  static constexpr bool kByRows = load == Load::Rows || load == Load::RowsVector;
  static constexpr int kVector = load == Load::Rows || load == Load::K ? 1 : 16 / int(sizeof(T));
  static constexpr int kVectorK = load == Load::KVector ? kVector : 1,
                       kVectorRows = load == Load::RowsVector ? kVector : 1;
  // Threads side by side along k: so few that a thread's rows, fewer then, find room in registers.
  static constexpr int kMost = sizeof(T) == 2 && load == Load::K ? 8 : 16;
  static constexpr int kAcross = kByRows                      ? kThreads / (kRows / kVectorRows)
                                 : kBlockK / kVectorK < kMost ? kBlockK / kVectorK
                                                              : kMost;
  static constexpr int kMine = kByRows ? 1 : kRows * kAcross / kThreads;  // rows (vectors of rows) of a thread
  static constexpr int kRowStep = kRows / kMine;
  static constexpr int kSlots = kBlockK / (kAcross * kVectorK);  // numbers (vectors) of a thread in each of its rows
  static constexpr int kBytes = kVector * int(sizeof(T));
  static constexpr bool kAsync = kBytes >= 4;  // shorter ones go through a register
  static_assert(kMine * kRowStep == kRows && kSlots * kAcross * kVectorK == kBlockK, "the threads share a step evenly");

  Patches<T> source;
  Walker<KMap> walker;
  Coordinate rows[kMine];
  const T* data[kMine];  // of the rows, which the coordinates along k are added to
  int row, k;            // this thread's first ones
  T waiting[kAsync ? 1 : kSlots * kMine];

  CONV_EXT_DEVICE void start(const Patches<T>& from, const RowMap& row_map, int64_t first_row, const KMap& k_map,
                             int64_t first_k) {
    const int thread = thread_index();
    constexpr int kRowVectors = kRows / kVectorRows;
    source = from;
    row = kByRows ? thread % kRowVectors * kVectorRows : thread / kAcross;
    k = (kByRows ? thread / kRowVectors : thread % kAcross) * kVectorK;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t index = first_row + row + i * kRowStep;
      rows[i] = index < row_map.count() ? coordinate(row_map, index) : Coordinate{0, kNowhere, 0};
      data[i] = from.data + rows[i].offset;
    }
    walker.map = k_map;
    walker.seek(first_k + k);
  }
  // Sends for the next step.
  CONV_EXT_DEVICE void fetch(T* stage) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const Coordinate along = walker.here();
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const bool inside = source.holds(rows[i], along);
        const T* from = data[i] + along.offset;  // no address where nothing is inside
        if constexpr (kAsync) {
          copy_async<kBytes>(stage + place(slot, i), from, inside);
        } else {
          waiting[slot * kMine + i] = inside ? *from : T{};
        }
      }
      walker.advance(kAcross * kVectorK);
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
    const int at_row = row + i * kRowStep, at_k = k + slot * kAcross * kVectorK;
    return kAlong ? at_row * kPitch + at_k : at_k * kPitch + at_row;
  }
};

// The sums of one warp.
template <class Math, class Tile>
struct WarpSums {
  static constexpr int kDown = Tile::kWarpM / Math::kM, kAcross = Tile::kWarpN / Math::kN;
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
  // Operands of this warp's, (row, k) at Stages::at.
  template <class Stages>
  CONV_EXT_DEVICE void multiply(const T* left, const T* right, int lane) {
#pragma unroll
    for (int k = 0; k < Math::kBlockK; k += Math::kK) {
      typename Math::Right b[kAcross];
#pragma unroll
      for (int j = 0; j < kAcross; j += 2)
        Math::template load_right<Stages::kOrder>(b[j], b[j + 1], right + Stages::right(j * Math::kN, k),
                                                  Stages::kRightPitch, lane);
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        typename Math::Left a;
        Math::template load_left<Stages::kOrder>(a, left + Stages::left(i * Math::kM, k), Stages::kLeftPitch, lane);
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
    if constexpr (Math::kFormsAgain) return total[i][j][e] * kSumScale;
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

// What a block keeps in shared memory: the steps' operands, and in their place, when all are multiplied, its sums: as
// many rows of warps at a time as fit.
template <class Math, class Tile, Order order>
struct SharedStages {
  using Sum = typename Math::Sum;
  static constexpr Order kOrder = order;
  static constexpr bool kAlong = order == Order::Along;
  static constexpr int kLeftPitch = kAlong ? Math::kBlockK + Math::kPad : Tile::kM + Math::kPadAcross;
  static constexpr int kRightPitch = kAlong ? kLeftPitch : Tile::kN + Math::kPadAcross;
  static constexpr int kLeft = (kAlong ? Tile::kM : Math::kBlockK) * kLeftPitch;
  static constexpr int kStage = kLeft + (kAlong ? Tile::kN : Math::kBlockK) * kRightPitch;
  static constexpr int kBytes = Math::kStages * kStage * int(sizeof(typename Math::Element));

  CONV_EXT_DEVICE static int left(int m, int k) { return kAlong ? m * kLeftPitch + k : k * kLeftPitch + m; }
  CONV_EXT_DEVICE static int right(int n, int k) { return kAlong ? n * kRightPitch + k : k * kRightPitch + n; }

  static constexpr int kSumPad = 16 / int(sizeof(Sum));
  static constexpr int sum_bytes(int m) {
    const int by_rows = m * (Tile::kN + kSumPad), by_columns = Tile::kN * (m + kSumPad);
    return (by_rows > by_columns ? by_rows : by_columns) * int(sizeof(Sum));
  }
  static constexpr int kSumM = sum_bytes(Tile::kM) <= kBytes ? Tile::kM : Tile::kWarpM;
  static_assert(sum_bytes(kSumM) <= kBytes, "sums find room where the operands were");
};

// The sums that lie in shared memory, sum (m, n) at m * step_m + n * step_n, as they were in the block from row first_m
// on.
template <class Math, class Tile, class Stages, bool along_m>
struct StagedSums {
  using Sum = typename Math::Sum;
  static constexpr int kM = Stages::kSumM, kN = Tile::kN;
  static constexpr int kStepM = along_m ? 1 : kN + Stages::kSumPad, kStepN = along_m ? kM + Stages::kSumPad : 1;
  Sum* sums;

  // Puts down a warp's sums.
  CONV_EXT_DEVICE void put(WarpSums<Math, Tile>& from, int m, int n, int lane) const {
    Sum* const to = sums + (m + Math::row(lane, 0)) * kStepM + (n + Math::column(lane, 0)) * kStepN;
    from.each([&](int i, int j, int e) {
      const int row = i * Math::kM + Math::row(0, e / Math::kColumns),
                column = j * Math::kN + Math::column(0, e % Math::kColumns);
      to[row * kStepM + column * kStepN] = from.sum(i, j, e);
    });
  }
  // Forms again what is not finite.
  template <class Pass, class Work>
  CONV_EXT_DEVICE void form_again(const Work& work, const typename Pass::Parameters& parameters,
                                  int64_t first_m) const {
    for (int i = thread_index(); i < kM * kN; i += Tile::kThreads) {
      const int64_t m = first_m + i / kN, n = work.first_n + i % kN;
      Sum& sum = sums[i / kN * kStepM + i % kN * kStepN];
      if (is_finite(sum) || m >= work.count_m || coordinate(work.columns, n).h == kNowhere) continue;
      int64_t at[4];
      Pass::index(work, m, n, at);
      sum = parameters.again.sum(at);
    }
  }
  // Writes them, neighbouring threads what are neighbours in memory, by kWide.
  template <int kWide, class Work>
  CONV_EXT_DEVICE void write(const Work& work, int64_t first_m) const {
    constexpr int kAcross = (along_m ? kM : kN) / kWide, kStep = Tile::kThreads / kAcross;
    static_assert(kStep * kAcross == Tile::kThreads, "the threads share a row evenly");
    const int across = thread_index() % kAcross * kWide, down = thread_index() / kAcross;
    Walker<decltype(work.columns)> column;
    column.map = work.columns;
    column.seek(work.first_n + (along_m ? down : across));
    for (int i = down; i < (along_m ? kN : kM); i += kStep) {
      const int m = along_m ? across : i, n = along_m ? i : across;
      const Coordinate place = column.here();
      if (first_m + m < work.count_m && place.h != kNowhere) {
        const Sum* const from = sums + m * kStepM + n * kStepN;
        if constexpr (kWide == 1) {
          work.result.write(first_m + m, place.offset, *from);
        } else {
          work.result.template write_vector<along_m, kWide>(first_m + m, place.offset, from);
        }
      }
      if (along_m) column.advance(kStep);
    }
  }
};

// Brings the sums into the result by way of shared memory, whose operands nobody needs any longer.
template <class Pass, class Stages, bool along_m, class Math, class Tile, class Work>
CONV_EXT_DEVICE void store_sums_along(WarpSums<Math, Tile>& sums, const Work& work,
                                      const typename Pass::Parameters& parameters, typename Math::Sum* shared,
                                      int warp_m, int warp_n) {
  using Staged = StagedSums<Math, Tile, Stages, along_m>;
  constexpr int kVector = 16 / int(sizeof(typename Math::Element));
  const Staged staged{shared};
  bool again = false;
  if constexpr (Math::kFormsAgain)
    if (work.result.partial == nullptr) sums.each([&](int i, int j, int e) { again |= !is_finite(sums.sum(i, j, e)); });
#pragma unroll
  for (int first = 0; first < Tile::kM; first += Staged::kM) {
    barrier();  // all have done with what lies there
    if (Staged::kM == Tile::kM || warp_m == first) staged.put(sums, warp_m - first, warp_n, thread_index() % 32);
    if constexpr (Math::kFormsAgain) {
      if (barrier_any(again)) {
        staged.template form_again<Pass>(work, parameters, work.first_m + first);
        barrier();
      }
    } else {
      barrier();  // all sums lie there
    }
    if (work.result.vectors) {
      staged.template write<kVector>(work, work.first_m + first);
    } else {
      staged.template write<1>(work, work.first_m + first);
    }
  }
}
template <class Pass, class Stages, class Math, class Tile, class Work>
CONV_EXT_DEVICE void store_sums(WarpSums<Math, Tile>& sums, const Work& work,
                                const typename Pass::Parameters& parameters, typename Math::Sum* shared, int warp_m,
                                int warp_n) {
  if (work.result.along_m) {
    store_sums_along<Pass, Stages, true>(sums, work, parameters, shared, warp_m, warp_n);
  } else {
    store_sums_along<Pass, Stages, false>(sums, work, parameters, shared, warp_m, warp_n);
  }
}

template <class Pass, class Math, class Tile>
CONV_EXT_KERNEL(Tile::kThreads)
igemm(typename Pass::Parameters parameters) {
  if constexpr (kHasTensorCores || !Math::kTensorCores) {
    using T = typename Math::Element;
    using Stages = SharedStages<Math, Tile, kOrderOf<Pass::kLoadLeft>>;
    static_assert(kOrderOf<Pass::kLoadLeft> == kOrderOf<Pass::kLoadRight>, "both operands lie alike");
    using Left = Loader<T, Tile::kM, Tile::kThreads, Math::kBlockK, Stages::kLeftPitch, Pass::kLoadLeft,
                        typename Pass::LeftRows, typename Pass::LeftK>;
    using Right = Loader<T, Tile::kN, Tile::kThreads, Math::kBlockK, Stages::kRightPitch, Pass::kLoadRight,
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
    for (int s = 0; s < Math::kStages - 1; ++s) {
      if (s < work.steps) {
        left.fetch(stages + s * Stages::kStage);
        right.fetch(stages + s * Stages::kStage + Stages::kLeft);
        left.put(stages + s * Stages::kStage);
        right.put(stages + s * Stages::kStage + Stages::kLeft);
      }
      commit_copies();
    }
    [[maybe_unused]] int until = work.chain;
    for (int step = 0; step < work.steps; ++step) {
      wait_copies<Math::kStages - 2>();
      barrier();  // the step is complete, and all have done with the one before, whose place is filled anew
      const bool more = step + Math::kStages - 1 < work.steps;
      T* const next = stages + (step + Math::kStages - 1) % Math::kStages * Stages::kStage;
      if (more) {
        left.fetch(next);
        right.fetch(next + Stages::kLeft);
      }
      commit_copies();
      const T* const now = stages + step % Math::kStages * Stages::kStage;
      sums.template multiply<Stages>(now + Stages::left(warp_m, 0), now + Stages::kLeft + Stages::right(warp_n, 0),
                                     lane);
      if (more) {
        left.put(next);
        right.put(next + Stages::kLeft);
      }
      if constexpr (Math::kChain == Math::kBlockK) {
        sums.close_chains();
      } else if constexpr (Math::kChain > 0) {
        if (--until == 0) {
          sums.close_chains();
          until = work.chain;
        }
      }
    }
    sums.close_chains();
    store_sums<Pass, Stages>(sums, work, parameters, reinterpret_cast<typename Math::Sum*>(stages), warp_m, warp_n);
  }
}

}  // namespace cuda
}  // namespace conv_ext
