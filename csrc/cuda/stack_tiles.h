// Tiles of rows, and what they read.
#pragma once
#include <cmath>

#include "cuda/stack_product.h"
#include "cuda/stack_rows.h"

namespace convlm::cuda {

// How many there are only the device knows.
constexpr int64_t kMostTilesAtOnce = 512;

inline int64_t blocks_of_tiles(const LayerContexts& contexts, int64_t tile) {
  const int64_t tiles = divide_up(contexts.most_rows, tile);
  return tiles < kMostTilesAtOnce ? tiles : kMostTilesAtOnce;
}

// Past its rows a tile repeats the last one: as input only, with no gradient.
struct Tile {
  int64_t index;
  int first, rows;
};

// Calls body(tile) for those of a block, which meets before the next.
template <class Body>
__device__ void for_each_tile(const LayerContexts& contexts, int tile, const Body& body) {
  const int rows = static_cast<int>(*contexts.row_count);
  for (int64_t index = blockIdx.x; index * tile < rows; index += gridDim.x) {
    const int first = static_cast<int>(index) * tile, left = rows - first;
    body(Tile{index, first, left < tile ? left : tile});
    __syncthreads();
  }
}

// Which row `tap` of a row of the tile reads, to rows[tap][row of the tile].
template <class S>
__device__ void find_rows(const RowsRead<S>& r, const Tile& tile, int32_t* rows) {
  for (int i = threadIdx.x; i < r.contexts.taps * r.tile; i += kStackBlock) {
    const int row = i % r.tile < tile.rows ? i % r.tile : tile.rows - 1;
    rows[i] = r.contexts.row_read(tile.first + row, i / r.tile);
  }
  __syncthreads();
}

// To x[channel][tap, row of the tile].
template <class S>
__device__ void gather(const RowsRead<S>& r, const int32_t* rows, Compute<S>* x) {
  using C = Compute<S>;
  const int width = r.contexts.taps * r.tile;
#pragma unroll 4
  for (int i = threadIdx.x; i < width * r.channels; i += kStackBlock) {
    const int channel = i % r.channels, at = i / r.channels;  // neighbouring lanes load neighbours
    const int32_t row = rows[at];
    C value = C(0);
    if (row != kNoField && r.in != nullptr)
      value = r.in[static_cast<int64_t>(row) * r.channels + channel];
    else if (row != kNoField)
      value = row < r.vocab ? read(r.words, row, channel, 0) : C(NAN);
    x[channel * width + at] = value;
  }
  __syncthreads();
}

}  // namespace convlm::cuda
