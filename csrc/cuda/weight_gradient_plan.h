// How the gradient of a weight is cut into tiles, and the sums of those into pieces.
// weight_gradient_tiles.h says what becomes of them.
#pragma once
#include "cuda/tensor_sums.h"
#include "cuda/tile_vectors.h"

namespace convlm::cuda {

constexpr int kTileOctets = kTileColumns / kOctet;

// Positions of a stage: two products of matrices deep.
template <class S>
constexpr int kStagePositions = kRowBytes / static_cast<int>(sizeof(S));

template <class Sums>
constexpr int kChainStages = Sums::kChainProducts / kStagePositions<typename Sums::Element>;

struct WeightGradientPlan {
  int64_t row_tiles, channel_tiles, tap_tiles, pieces, tiles;  // tiles: of all pieces
  int64_t stages, piece_stages;
  int taps;            // of a tile
  Divisor tap_octets;  // of its columns that are of one tap
  bool shares;         // taps may share rows of staged x
  Divisor shared_rows, own_rows;
  int left_pitch, right_pitch, stage_bytes;
  bool in_chains;  // that become totals, which lie behind two stages
  int shared_bytes;
};

// The number of taps that takes fewest tiles; of equals the largest, since taps share x.
inline int taps_of_tile(int64_t channels, int64_t kernel_size) {
  int best = 1;
  int64_t fewest = 0;
  for (int taps = 1; taps <= kTileOctets && taps <= kernel_size; ++taps) {
    const int64_t tiles =
        divide_up(kernel_size, taps) * divide_up(channels, kTileOctets / taps * kOctet);
    if (taps > 1 && tiles > fewest) continue;
    best = taps;
    fewest = tiles;
  }
  return best;
}

// Enough blocks to fill a large GPU, unless pieces get so short that staging and the second kernel
// weigh more. And none longer than 65,536 products, for the rounding errors' sake.
inline int64_t pieces_of(int64_t stages, int64_t tiles, int positions) {
  constexpr int64_t kBlocks = 512, kFewestStages = 8, kMostProducts = 65536;
  int64_t pieces = divide_up(kBlocks, tiles);
  if (pieces > divide_up(stages, kFewestStages)) pieces = divide_up(stages, kFewestStages);
  const int64_t fewest = divide_up(stages * positions, kMostProducts);
  return pieces < fewest ? fewest : pieces;
}

template <class Sums>
WeightGradientPlan plan(const WeightGradient<typename Sums::Element>& p) {
  using S = typename Sums::Element;
  constexpr int kPositions = kStagePositions<S>;
  WeightGradientPlan plan{};
  plan.taps = taps_of_tile(p.channels, p.kernel_size);
  const int octets = kTileOctets / plan.taps;
  plan.tap_octets = Divisor(octets);
  plan.row_tiles = divide_up(p.rows, Sums::kRows);
  plan.channel_tiles = divide_up(p.channels, octets * kOctet);
  plan.tap_tiles = divide_up(p.kernel_size, plan.taps);
  const int64_t tiles = p.groups * plan.row_tiles * plan.channel_tiles * plan.tap_tiles;
  plan.stages = divide_up(p.batch * p.outputs, kPositions);
  if (plan.stages > 0) {
    plan.piece_stages = divide_up(plan.stages, pieces_of(plan.stages, tiles, kPositions));
    plan.pieces = divide_up(plan.stages, plan.piece_stages);
  }
  plan.tiles = tiles * plan.pieces;

  // Then the shared rows are no more than the taps' own.
  plan.shares = p.stride == 1 && p.dilation <= kPositions;
  const int own = kPositions * plan.taps;
  const int shared = kPositions + (plan.taps - 1) * static_cast<int>(p.dilation);
  plan.own_rows = Divisor(own);
  plan.shared_rows = Divisor(plan.shares ? shared : own);
  plan.left_pitch = Sums::pitch(Sums::kRows / kVector<S>);
  plan.right_pitch = Sums::pitch(octets * kOctet / kVector<S>);
  plan.stage_bytes = kPositions * plan.left_pitch + own * plan.right_pitch;
  plan.shared_bytes = 2 * plan.stage_bytes;
  if constexpr (kChainStages<Sums> > 0) {
    plan.in_chains = plan.piece_stages > kChainStages<Sums>;
    if (plan.in_chains)
      plan.shared_bytes += Sums::kTotals * static_cast<int>(sizeof(typename Sums::Sum));
  }
  return plan;
}

// Sums of pieces as [piece][row of all groups][tap][channel], then those of the bias, [piece][row].
template <class S>
int64_t sums_of_piece(const WeightGradient<S>& p) {
  return p.groups * p.rows * p.kernel_size * p.channels;
}

}  // namespace convlm::cuda
