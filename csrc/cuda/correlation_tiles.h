// A correlation by tiles: a block makes the sums of some rows by 128 positions, stage by stage.
//
// A stage is a block of channels, 64 bytes of them, and a few taps. Its weights are copied as they
// are, from a packed copy that holds them in the order of use, without edges. Its x is staged once,
// with the halo that these taps need, and each tap reads it from another row on (see
// tile_vectors.h). While one stage is multiplied the next is on its way: two buffers, one barrier a
// stage.
//
// A row of staged x is a step of the correlation further than the one before it: taps whose reads
// are a whole number of steps apart share it. So with a stride, taps fall into `chains` of such
// taps, which are staged one after the other, and neither staging nor products touch a position in
// between. Where a sample has few outputs, a tile takes several samples.
//
// The order of a sum is that of channel blocks, then chains, then taps, whatever a tile holds: a
// sample has the same bits in any batch.
#pragma once
#include "cuda/correlation_plan.h"

namespace convlm::cuda {

// Where a tile is.
struct CorrelationTile {
  int64_t group, row_tile, sample, first;  // sample and position (of its class) of column 0
  PositionClass positions;
};

template <class S>
__device__ CorrelationTile tile_at(const Correlation<S>& p, const CorrelationPlan& plan,
                                   int64_t index) {
  CorrelationTile tile;
  // Blocks that run at the same time share their x.
  tile.row_tile = index % plan.row_tiles;
  index /= plan.row_tiles;
  tile.positions = position_class(p, index % p.classes);
  index /= p.classes;
  tile.first = index % plan.position_tiles << plan.columns_log2;
  index /= plan.position_tiles;
  tile.sample = index % plan.sample_tiles * plan.samples;
  tile.group = index / plan.sample_tiles;
  return tile;
}

// Taps `tap` and the following ones of a chain, by one block of channels. 32 bits are enough: a
// weight with more taps, or blocks of channels, than that would fit no memory.
struct CorrelationStage {
  int block, chain, tap, taps;
};

template <class Sums>
class CorrelationBlock {
 public:
  using S = typename Sums::Element;

  __device__ __forceinline__ CorrelationBlock(const Correlation<S>& p, const CorrelationPlan& plan,
                                              const unsigned char* packed)
      : p_(p), plan_(plan), packed_(packed), thread_(static_cast<int>(threadIdx.x)) {}

  __device__ __forceinline__ void run(int64_t index) {
    tile_ = tile_at(p_, plan_, index);
    sums_.clear();
    add_products();
    __syncthreads();
    Sum* results = reinterpret_cast<Sum*>(shared_memory());
    sums_.visit_rows(
        [&](int row, int column, Sum sum) { results[row * kResultPitch + column] = sum; });
    __syncthreads();
    store_results(results);
    __syncthreads();
  }

 private:
  using Sum = typename Sums::Sum;
  static constexpr int kVectors = kRowBytes / kVectorBytes;
  static constexpr int kXBegin = kStageTaps * Sums::kRows * kRowPitch;  // after the weights
  static constexpr int kStagedVectors = kStagedRows * kVectors / Sums::kThreads;  // of a thread
  struct Held {
    Vector<S> vectors[kStagedVectors];
  };

  __device__ __forceinline__ int taps_of(int chain) const {
    return static_cast<int>(p_.transposed ? tile_.positions.taps
                                          : plan_.taps + (chain < plan_.longer));
  }

  __device__ __forceinline__ CorrelationStage stage_at(int block, int chain, int tap) const {
    const int left = taps_of(chain) - tap;
    return {block, chain, tap, left < plan_.stage_taps ? left : plan_.stage_taps};
  }

  // After the last one, its block is plan_.blocks.
  __device__ __forceinline__ CorrelationStage next(const CorrelationStage& stage) const {
    const int tap = stage.tap + stage.taps;
    if (tap < taps_of(stage.chain)) return stage_at(stage.block, stage.chain, tap);
    if (stage.chain + 1 < plan_.chains) return stage_at(stage.block, stage.chain + 1, 0);
    return stage_at(stage.block + 1, 0, 0);
  }

  __device__ __forceinline__ void add_products() {
    if (taps_of(0) == 0) return;
    unsigned char* buffers = shared_memory();
    const auto places = sums_.places_of_rows([&](int column) {
      const int sample = column >> plan_.columns_log2;
      return (column - (sample << plan_.columns_log2) + sample * plan_.sample_rows.value()) *
             kRowPitch;
    });
    CorrelationStage stage{0, 0, 0, 0};  // of no taps: at first there is nothing to multiply
    CorrelationStage following = stage_at(0, 0, 0);
    for (int buffer = 0;; buffer ^= 1) {
      const unsigned char* now = buffers + buffer * kStageBytes<Sums>;
      unsigned char* later = buffers + (buffer ^ 1) * kStageBytes<Sums>;
      const bool more = following.block < plan_.blocks;
      Held held;
      if (more) {
        copy_weights(later, following);
        read_x(held, following);
      }
      for (int tap = 0; tap < stage.taps; ++tap)
        sums_.add_rows(now + tap * Sums::kRows * kRowPitch,
                       now + kXBegin + row_of_tap(stage, tap) * kRowPitch, places);
      if (!more) return;
      store_x(held, later, following);
      wait_for_copies();
      __syncthreads();
      stage = following;
      following = next(stage);
    }
  }

  // The row of staged x that column 0 reads.
  __device__ __forceinline__ int row_of_tap(const CorrelationStage& stage, int tap) const {
    return plan_.row_shift * (p_.transposed ? stage.taps - 1 - tap : tap);
  }

  __device__ __forceinline__ void copy_weights(unsigned char* buffer,
                                               const CorrelationStage& stage) const {
    constexpr int kTapVectors = Sums::kRows * kVectors;
    const int64_t first = tile_.positions.first + stage.chain + stage.tap * plan_.period;
    const int64_t block =
        (tile_.group * plan_.row_tiles + tile_.row_tile) * plan_.blocks + stage.block;
    const unsigned char* from =
        packed_ + (block * p_.kernel_size + first) * kTapVectors * kVectorBytes;
    const int64_t tap_bytes = plan_.period * kTapVectors * kVectorBytes;
    for (int i = thread_; i < stage.taps * kTapVectors; i += Sums::kThreads)
      copy_16_bytes(buffer + i / kVectors * kRowPitch + i % kVectors * kVectorBytes,
                    from + i / kTapVectors * tap_bytes + i % kTapVectors * kVectorBytes);
  }

  // f(i, row, vector, sample, row of that sample) for the vectors of x that this thread stages.
  template <class F>
  __device__ __forceinline__ void for_staged(const CorrelationStage& stage, const F& f) const {
    const int needed = (1 << plan_.columns_log2) + (stage.taps - 1) * plan_.row_shift;
#pragma unroll
    for (int i = 0; i < kStagedVectors; ++i) {
      const int task = thread_ + i * Sums::kThreads;
      const int row = task % kStagedRows, vector = task / kStagedRows;
      const int sample = plan_.sample_rows.divide(row);
      const int row_of_sample = row - sample * plan_.sample_rows.value();
      if (sample < plan_.samples && row_of_sample < needed)
        f(i, row, vector, sample, row_of_sample);
    }
  }

  __device__ __forceinline__ void read_x(Held& held, const CorrelationStage& stage) const {
    const PositionClass& c = tile_.positions;
    const int tap = p_.transposed ? stage.tap + stage.taps - 1 : stage.tap;
    const int64_t start =
        c.offset + stage.chain * p_.dilation + (tile_.first + tap * plan_.shift) * p_.step;
    const int64_t block = int64_t{stage.block} * kBlockChannels<S>;
    for_staged(stage, [&](int i, int, int vector, int sample, int row) {
      const int64_t position = start + row * p_.step;
      const int64_t channel = block + vector * kVector<S>;
      const bool inside = 0 <= position && position < p_.length &&
                          tile_.sample + sample < p_.batch && channel < p_.channels;
      held.vectors[i] =
          inside ? read_channels(p_.in, tile_.sample + sample, tile_.group * p_.channels + channel,
                                 p_.channels - channel, position)
                 : Vector<S>{};
    });
  }

  __device__ __forceinline__ void store_x(const Held& held, unsigned char* buffer,
                                          const CorrelationStage& stage) const {
    for_staged(stage, [&](int i, int row, int vector, int, int) {
      store_prepared<Sums>(buffer + kXBegin + row * kRowPitch + vector * kVectorBytes,
                           held.vectors[i]);
    });
  }

  // A warp stores a row of the tile, its lanes neighbouring positions.
  __device__ __forceinline__ void store_results(const Sum* results) const {
    const PositionClass& c = tile_.positions;
    for (int r = thread_ / kWarpSize; r < Sums::kRows; r += Sums::kThreads / kWarpSize) {
      const int64_t row = tile_.row_tile * Sums::kRows + r;
      if (row >= p_.rows) return;
      const int64_t channel = tile_.group * p_.rows + row;
      const Sum bias = p_.bias == nullptr ? Sum(0) : to_compute(p_.bias[channel * p_.bias_stride]);
      for (int column = thread_ % kWarpSize; column < kTileColumns; column += kWarpSize) {
        const int64_t sample = tile_.sample + (column >> plan_.columns_log2);
        const int64_t position = tile_.first + column % (1 << plan_.columns_log2);
        if (sample >= p_.batch || position >= c.outputs) continue;
        const Sum value = activate(p_.activation, results[r * kResultPitch + column] + bias);
        p_.out[(sample * p_.groups * p_.rows + channel) * p_.outputs + c.start +
               position * p_.classes] = from_compute<S>(value);
      }
    }
  }

  const Correlation<S>& p_;
  const CorrelationPlan& plan_;
  const unsigned char* packed_;
  int thread_;
  CorrelationTile tile_;
  Sums sums_;
};

template <class Sums, class S>
__global__ void __launch_bounds__(Sums::kThreads)
    correlation_kernel(const __grid_constant__ Correlation<S> p,
                       const __grid_constant__ CorrelationPlan plan, const unsigned char* packed) {
  CorrelationBlock<Sums> block(p, plan, packed);
  for (int64_t tile = blockIdx.x; tile < plan.tiles; tile += gridDim.x) block.run(tile);
}

template <class Sums>
int64_t correlation_workspace(const Correlation<typename Sums::Element>& p) {
  return packed_vectors<Sums>(p, plan<Sums>(p)) * kVectorBytes;
}

template <class Sums>
cudaError_t correlate(const Correlation<typename Sums::Element>& p, void* workspace,
                      cudaStream_t stream) {
  using S = typename Sums::Element;
  constexpr int kStages = 2 * kStageBytes<Sums>;
  constexpr int kResults =
      Sums::kRows * kResultPitch * static_cast<int>(sizeof(typename Sums::Sum));
  const CorrelationPlan tiles = plan<Sums>(p);
  unsigned char* packed = static_cast<unsigned char*>(workspace);
  const int64_t vectors = packed_vectors<Sums>(p, tiles);
  const cudaError_t error =
      launch(&pack_weight_kernel<Sums, S>, divide_up(vectors, kPackingThreads), kPackingThreads, 0,
             stream, p, tiles, vectors, packed);
  if (error != cudaSuccess) return error;
  return launch(&correlation_kernel<Sums, S>, tiles.tiles, Sums::kThreads,
                kStages < kResults ? kResults : kStages, stream, p, tiles, packed);
}

}  // namespace convlm::cuda
