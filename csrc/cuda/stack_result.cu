// The positions of a result, tile by tile, each with the row of its context.
#include "cuda/stack_loss.h"
#include "cuda/stack_tiles.h"

namespace convlm::cuda {
namespace {

template <class S>
__device__ void write_result(const ResultOfRows<S>& r, const Tile& tile, const Compute<S>* y) {
  const int length = r.read.contexts.out_length;
  for (int i = threadIdx.x; i < r.read.channels * tile.rows; i += kStackBlock) {
    const int channel = i / tile.rows, row = i % tile.rows, position = tile.first + row;
    const int64_t line = static_cast<int64_t>(position / length) * r.read.channels + channel;
    r.output[line * length + position % length] = from_compute<S>(y[channel * r.read.tile + row]);
  }
}

template <class S>
__device__ void stage_gradient(const ResultOfRows<S>& r, const Tile& tile, Compute<S>* gradient) {
  const int length = r.read.contexts.out_length;
  for (int i = threadIdx.x; i < r.read.channels * tile.rows; i += kStackBlock) {
    const int channel = i / tile.rows, row = i % tile.rows, position = tile.first + row;
    gradient[channel * r.read.tile + row] =
        read(r.grad_output, position / length, channel, position % length);
  }
  __syncthreads();
}

// Adds what positions of the tile have for one row to the first of them: a word's padding reads
// the same row many times, and the list of that one's readers would be long.
template <class S>
__device__ void add_to_first(const ResultOfRows<S>& r, const Tile& tile, const int32_t* rows,
                             int32_t* first, Compute<S>* gradient) {
  for (int i = threadIdx.x; i < tile.rows; i += kStackBlock) {
    int other = 0;
    while (rows[other] != rows[i]) ++other;
    first[i] = other;
  }
  __syncthreads();
  for (int channel = threadIdx.x; channel < r.read.channels; channel += kStackBlock) {
    Compute<S>* line = gradient + channel * r.read.tile;
    for (int i = 0; i < tile.rows; ++i)
      if (first[i] != i) line[first[i]] += line[i];
  }
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(tile.first) * r.read.channels;
  for (int i = threadIdx.x; i < tile.rows * r.read.channels; i += kStackBlock) {
    const int row = i / r.read.channels;
    if (first[row] == row)
      r.grad_read[begin + i] = gradient[i % r.read.channels * r.read.tile + row];
  }
}

template <class S>
__global__ void __launch_bounds__(kStackBlock)
    result_kernel(const __grid_constant__ ResultOfRows<S> r) {
  using C = Compute<S>;
  C* y = reinterpret_cast<C*>(shared_memory());
  C* lanes = y + r.read.channels * r.read.tile;
  int32_t* rows = reinterpret_cast<int32_t*>(lanes + kStackThreads);
  for_each_tile(r.read.contexts, r.read.tile, [&](const Tile& tile) {
    find_rows(r.read, tile, rows);
    if (r.read.in != nullptr) gather(r.read, rows, y);
    if (r.output != nullptr) write_result(r, tile, y);
    if (r.target.data != nullptr)
      cross_entropy(
          y, r.read.channels, r.read.tile, tile.rows,
          [&](int row) {
            const int position = tile.first + row, length = r.read.contexts.out_length;
            return r.target.at(position / length, position % length);
          },
          r.scale, r.losses + tile.first, lanes);
    __syncthreads();
    if (r.grad_read == nullptr) return;
    if (r.grad_output.data != nullptr) stage_gradient(r, tile, y);
    add_to_first(r, tile, rows, rows + r.read.tile, y);
  });
}

}  // namespace

template <class S>
cudaError_t run_result(const ResultOfRows<S>& r, cudaStream_t stream) {
  const int64_t shared = (r.read.channels * r.read.tile + kStackThreads) * sizeof(Compute<S>) +
                         2 * r.read.tile * sizeof(int32_t);
  return launch(&result_kernel<S>, blocks_of_tiles(r.read.contexts, r.read.tile), kStackBlock,
                static_cast<int>(shared), stream, r);
}

#define CONVLM_INSTANTIATE(S) \
  template cudaError_t run_result<S>(const ResultOfRows<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
