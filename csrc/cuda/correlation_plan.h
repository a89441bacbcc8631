// How a correlation is cut into tiles and stages, and its weights in the order of use.
// correlation_tiles.h says what becomes of them.
#pragma once
#include "cuda/tensor_sums.h"
#include "cuda/tile_vectors.h"

namespace convlm::cuda {

// Of a stage, at most. So two stages of 128 rows fit the 99 KB that smaller GPUs give a block, and
// of 64 rows, two blocks fit the 164 KB of an A100.
constexpr int kStageTaps = 3;
constexpr int kStagedRows = 192;

template <class Sums>
constexpr int kStageBytes = (kStageTaps * Sums::kRows + kStagedRows) * kRowPitch;
constexpr int kResultPitch = kTileColumns + 8;  // of results on their way out, in numbers

template <class S>
constexpr int kBlockChannels = kRowBytes / static_cast<int>(sizeof(S));

// Tiles of 64 rows rather than 128: where those would have more rows to spare. Of equals the larger
// is better, because its block loads less for each product.
inline bool prefers_small_tiles(int64_t rows) { return divide_up(rows, 64) % 2 == 1; }

// What of a correlation's tiles is the same for all of them.
struct CorrelationPlan {
  int64_t blocks, row_tiles, position_tiles, sample_tiles, tiles;
  int columns_log2;  // columns of a tile that a sample has
  int samples;       // of a tile

  int64_t period;                // taps t and t + period are in the same chain
  int64_t chains, longer, taps;  // the first `longer` chains have one tap more than `taps`
  int64_t shift;                 // rows of x between neighbours in a chain, negative for grad_input
  int stage_taps;                // of a stage, at most
  int row_shift;                 // |shift|, where a stage has several
  Divisor sample_rows;           // of x, staged for one sample
};

template <class Sums>
CorrelationPlan plan(const Correlation<typename Sums::Element>& p) {
  CorrelationPlan plan{};
  plan.blocks = divide_up(p.channels, kBlockChannels<typename Sums::Element>);
  plan.row_tiles = divide_up(p.rows, Sums::kRows);
  const int64_t outputs = divide_up(p.outputs, p.classes);
  plan.columns_log2 = 3;
  while (1 << plan.columns_log2 < kTileColumns && 1 << plan.columns_log2 < outputs)
    ++plan.columns_log2;
  const int columns = 1 << plan.columns_log2;
  plan.samples = kTileColumns / columns;
  plan.position_tiles = divide_up(outputs, columns);
  plan.sample_tiles = divide_up(p.batch, plan.samples);
  plan.tiles = p.groups * plan.row_tiles * p.classes * plan.position_tiles * plan.sample_tiles;

  const int64_t divisor = greatest_common_divisor(p.stride, p.dilation);
  plan.period = p.stride / divisor;
  plan.shift = p.dilation / divisor * (p.transposed ? -1 : 1);
  plan.chains = p.transposed ? 1 : plan.period < p.kernel_size ? plan.period : p.kernel_size;
  plan.longer = p.kernel_size % plan.period;
  plan.taps = p.kernel_size / plan.period;

  const int64_t distance = p.dilation / divisor;
  const int64_t most = divide_up(p.kernel_size, plan.period);
  int64_t taps = 1 + (kStagedRows / plan.samples - columns) / distance;
  if (taps > kStageTaps) taps = kStageTaps;
  plan.stage_taps = static_cast<int>(divide_up(most, divide_up(most, taps)));  // even stages
  plan.row_shift = plan.stage_taps > 1 ? static_cast<int>(distance) : 0;
  plan.sample_rows = Divisor(columns + (plan.stage_taps - 1) * plan.row_shift);
  return plan;
}

// Weights as [group][tile of rows][block of channels][tap][row][channel], zeros beyond the last row
// and channel.
template <class Sums>
int64_t packed_vectors(const Correlation<typename Sums::Element>& p, const CorrelationPlan& plan) {
  return p.groups * plan.row_tiles * plan.blocks * p.kernel_size * Sums::kRows *
         (kRowBytes / kVectorBytes);
}

constexpr int kPackingThreads = 256;

template <class Sums, class S>
__global__ void __launch_bounds__(kPackingThreads)
    pack_weight_kernel(const __grid_constant__ Correlation<S> p,
                       const __grid_constant__ CorrelationPlan plan, int64_t vectors,
                       unsigned char* packed) {
  constexpr int kVectors = kRowBytes / kVectorBytes;
  const int64_t threads = int64_t{gridDim.x} * kPackingThreads;
  for (int64_t i = int64_t{blockIdx.x} * kPackingThreads + threadIdx.x; i < vectors; i += threads) {
    int64_t rest = i / (kVectors * Sums::kRows);
    const int64_t tap = rest % p.kernel_size;
    rest /= p.kernel_size;
    const int64_t block = rest % plan.blocks;
    rest /= plan.blocks;
    const int64_t row = rest % plan.row_tiles * Sums::kRows + i / kVectors % Sums::kRows;
    const int64_t channel = block * kBlockChannels<S> + i % kVectors * kVector<S>;
    const S* from = p.weight + rest / plan.row_tiles * p.weight_group + row * p.weight_row +
                    channel * p.weight_channel + tap * p.weight_tap;
    Vector<S> vector{};
#pragma unroll
    for (int c = 0; c < kVector<S>; ++c)
      if (row < p.rows && channel + c < p.channels) vector.lanes[c] = from[c * p.weight_channel];
    store_prepared<Sums>(packed + i * kVectorBytes, vector);
  }
}

}  // namespace convlm::cuda
