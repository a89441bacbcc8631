#include "cuda/long_sums.h"
#include "cuda/stack_layers.h"
#include "cuda/stack_rows.h"
#include "cuda/stack_tiles.h"

namespace convlm::cuda {
namespace {

template <class S>
__device__ void keep_input(const LayerOfRows<S>& l, const Tile& tile, const int32_t* rows,
                           const Compute<S>* x) {
  const int width = l.layer.in_length, count = width * l.layer.in_channels;
  for (int i = threadIdx.x; l.words_read != nullptr && i < width; i += kStackBlock)
    l.words_read[tile.index * width + i] = i % l.read.tile < tile.rows ? rows[i] : kNoField;
  for (int i = threadIdx.x; i < count; i += kStackBlock)
    l.input[tile.index * count + i] = from_compute<S>(x[i]);
}

template <class S>
__device__ void write_rows(const LayerOfRows<S>& l, const Tile& tile, const Compute<S>* y) {
  const int channels = l.layer.out_channels;
  for (int i = threadIdx.x; i < tile.rows * channels; i += kStackBlock)
    l.out[static_cast<int64_t>(tile.first) * channels + i] =
        y[i % channels * l.read.tile + i / channels];
}

template <class S>
__device__ void stage_gradient(const LayerOfRows<S>& l, const Tile& tile, Compute<S>* gradient) {
  const int channels = l.layer.out_channels, count = tile.rows * channels;
  for (int i = threadIdx.x; i < channels * l.read.tile; i += kStackBlock)
    gradient[i % channels * l.read.tile + i / channels] =
        i < count ? l.grad_out[static_cast<int64_t>(tile.first) * channels + i] : Compute<S>(0);
  __syncthreads();
}

template <class S>
__device__ void write_gradient_read(const LayerOfRows<S>& l, const Tile& tile,
                                    const Compute<S>* gradient) {
  const int channels = l.layer.in_channels, taps = l.layer.taps, width = l.layer.in_length;
  for (int i = threadIdx.x; l.grad_words != nullptr && i < width * channels; i += kStackBlock)
    l.grad_words[tile.index * width * channels + i] = gradient[i];
  const int64_t begin = static_cast<int64_t>(tile.first) * taps * channels;
  const int count = tile.rows * taps * channels;
  for (int i = threadIdx.x; l.grad_read != nullptr && i < count; i += kStackBlock) {
    const int tap = i / channels % taps, row = i / channels / taps;
    l.grad_read[begin + i] = gradient[i % channels * width + tap * l.read.tile + row];
  }
}

// One gathers while the other multiplies; numbers of 8 bytes leave registers for one.
template <class S>
constexpr int kBlocksOfRows = sizeof(Compute<S>) == 4 ? 2 : 1;  // a multiprocessor

template <class S>
__global__ void __launch_bounds__(kStackBlock, kBlocksOfRows<S>)
    rows_kernel(const __grid_constant__ LayerOfRows<S> l) {
  using C = Compute<S>;
  C* shared = reinterpret_cast<C*>(shared_memory());
  const StackBuffers<C> b{shared, shared + l.activations, shared + 2 * l.activations,
                          shared + 2 * l.activations + l.products};
  for_each_tile(l.read.contexts, l.read.tile, [&](const Tile& tile) {
    int32_t* rows = reinterpret_cast<int32_t*>(b.weights);
    find_rows(l.read, tile, rows);
    gather(l.read, rows, b.x);
    if (!l.backward) {
      layer_forward(l.layer, tile.index, static_cast<S*>(nullptr), b);
      __syncthreads();
      write_rows(l, tile, b.y);
    } else {
      keep_input(l, tile, rows, b.x);
      stage_gradient(l, tile, b.y);
      layer_backward(l.layer, l.grad_words != nullptr || l.grad_read != nullptr, tile.index, b);
      __syncthreads();
      write_gradient_read(l, tile, b.x);
    }
  });
}

constexpr int kRowChannels = 32;  // channels
constexpr int kParts = 16;        // a row each, or parts of one row's readers
constexpr int kThreads = kRowChannels * kParts;
constexpr int kFewReaders = 64;
constexpr int64_t kMostSumsAtOnce = 1024;

template <class S>
__device__ Compute<S> sum_of_readers(const ReaderSums<S>& s, int64_t row, int64_t channel, int part,
                                     int parts) {
  const int32_t* readers = s.readers.readers + s.readers.begin[row];
  return sum_in_chains<Compute<S>>(part, s.readers.count[row], parts, [&](int64_t i) {
    return s.grad_read[readers[i] * s.channels + channel];
  });
}

// Most rows have few readers, and a block takes several of them; then those of many, one by one.
template <class S>
__global__ void __launch_bounds__(kThreads)
    reader_sums_kernel(const __grid_constant__ ReaderSums<S> s) {
  using C = Compute<S>;
  C* sums = reinterpret_cast<C*>(shared_memory());
  const int lane = threadIdx.x % kRowChannels, part = threadIdx.x / kRowChannels;
  const int64_t rows = *s.row_count, channel_blocks = divide_up(s.channels, kRowChannels);
  const int64_t blocks = divide_up(rows, kParts) * channel_blocks;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t first = block / channel_blocks * kParts, own = first + part;
    const int64_t channel = block % channel_blocks * kRowChannels + lane;
    const bool mine = channel < s.channels;
    if (mine && own < rows && s.readers.count[own] <= kFewReaders)
      s.grad_out[own * s.channels + channel] = sum_of_readers(s, own, channel, 0, 1);
    for (int64_t row = first; row < first + kParts && row < rows; ++row) {
      if (s.readers.count[row] <= kFewReaders) continue;
      C sum = mine ? sum_of_readers(s, row, channel, part, kParts) : C(0);
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (part == 0 && mine) {
        for (int other = 1; other < kParts; ++other) sum += sums[other * kRowChannels + lane];
        s.grad_out[row * s.channels + channel] = sum;
      }
      __syncthreads();
    }
  }
}

}  // namespace

template <class S>
cudaError_t run_rows(const LayerOfRows<S>& l, int shared_bytes, cudaStream_t stream) {
  return launch(&rows_kernel<S>, blocks_of_tiles(l.read.contexts, l.read.tile), kStackBlock,
                shared_bytes, stream, l);
}

template <class S>
cudaError_t add_up_readers(const ReaderSums<S>& s, cudaStream_t stream) {
  const int64_t blocks = divide_up(s.most_rows, kParts) * divide_up(s.channels, kRowChannels);
  return launch(&reader_sums_kernel<S>, blocks < kMostSumsAtOnce ? blocks : kMostSumsAtOnce,
                kThreads, kThreads * static_cast<int>(sizeof(Compute<S>)), stream, s);
}

#define CONVLM_INSTANTIATE(S)                                                 \
  template cudaError_t run_rows<S>(const LayerOfRows<S>&, int, cudaStream_t); \
  template cudaError_t add_up_readers<S>(const ReaderSums<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
