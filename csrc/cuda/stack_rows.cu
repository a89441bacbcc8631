#include "cuda/stack_loss.h"
#include "cuda/stack_rows.h"

namespace convlm::cuda {
namespace {

constexpr int64_t kMostTilesAtOnce = 512;  // how many there are only the device knows

// Some rows of a layer. Past the last one a tile repeats it: as input only, with no gradient.
struct Tile {
  int64_t index;
  int first, rows;
};

// To [channel][tap, row of the tile], by way of the numbers of the rows that are read.
template <class S>
__device__ void gather(const LayerOfRows<S>& l, const Tile& tile,
                       const StackBuffers<Compute<S>>& b) {
  using C = Compute<S>;
  const int tile_rows = l.layer.out_length, width = l.layer.in_length;
  const int channels = l.layer.in_channels;
  int32_t* read_rows = reinterpret_cast<int32_t*>(b.weights);
  for (int i = threadIdx.x; i < width; i += kStackBlock) {
    const int row = i % tile_rows, last = tile.rows - 1;
    read_rows[i] = l.contexts.row_read(tile.first + (row < last ? row : last), i / tile_rows);
    if (l.words_read != nullptr)
      l.words_read[tile.index * width + i] = row <= last ? read_rows[i] : kNoField;
  }
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < width * channels; i += kStackBlock) {
    const int channel = i % channels, at = i / channels;  // neighbouring lanes load neighbours
    const int32_t row = read_rows[at];
    C value = C(0);
    if (row != kNoField && l.in != nullptr)
      value = l.in[static_cast<int64_t>(row) * channels + channel];
    else if (row != kNoField)
      value = row < l.vocab ? read(l.words, row, channel, 0) : C(NAN);
    b.x[channel * width + at] = value;
  }
  __syncthreads();
  if (l.input == nullptr) return;
  for (int i = threadIdx.x; i < width * channels; i += kStackBlock)
    l.input[tile.index * width * channels + i] = from_compute<S>(b.x[i]);
}

template <class S>
__device__ void write_rows(const LayerOfRows<S>& l, const Tile& tile, const Compute<S>* y) {
  const int channels = l.layer.out_channels, length = l.contexts.out_length;
  for (int i = threadIdx.x; l.out != nullptr && i < tile.rows * channels; i += kStackBlock)
    l.out[static_cast<int64_t>(tile.first) * channels + i] =
        y[i % channels * l.layer.out_length + i / channels];
  for (int i = threadIdx.x; l.output != nullptr && i < tile.rows * channels; i += kStackBlock) {
    const int channel = i / tile.rows, row = i % tile.rows, position = tile.first + row;
    const int64_t line = static_cast<int64_t>(position / length) * channels + channel;
    l.output[line * length + position % length] =
        from_compute<S>(y[channel * l.layer.out_length + row]);
  }
}

// The gradient of the result, to [channel][row of the tile]; that of a loss is there already.
template <class S>
__device__ void stage_gradient(const LayerOfRows<S>& l, const Tile& tile, Compute<S>* gradient) {
  const int channels = l.layer.out_channels, tile_rows = l.layer.out_length;
  const int length = l.contexts.out_length;
  for (int i = threadIdx.x; i < channels * tile_rows; i += kStackBlock) {
    const bool by_row = l.grad_out != nullptr;
    const int channel = by_row ? i % channels : i / tile_rows;
    const int row = by_row ? i / channels : i % tile_rows, position = tile.first + row;
    Compute<S>& to = gradient[channel * tile_rows + row];
    if (row >= tile.rows)
      to = Compute<S>(0);
    else if (by_row)
      to = l.grad_out[static_cast<int64_t>(position) * channels + channel];
    else if (l.grad_output.data != nullptr)
      to = read(l.grad_output, position / length, channel, position % length);
  }
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
    l.grad_read[begin + i] = gradient[i % channels * width + tap * l.layer.out_length + row];
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
  const int rows = static_cast<int>(*l.contexts.row_count), tile_rows = l.layer.out_length;
  for (int64_t index = blockIdx.x; index * tile_rows < rows; index += gridDim.x) {
    const int first = static_cast<int>(index) * tile_rows, left = rows - first;
    const Tile tile{index, first, left < tile_rows ? left : tile_rows};
    gather(l, tile, b);
    if (l.forward) {
      layer_forward(l.layer, index, static_cast<S*>(nullptr), b);
      __syncthreads();
      write_rows(l, tile, b.y);
      if (l.target.data != nullptr)
        cross_entropy(
            b.y, l.layer.out_channels, tile_rows, tile.rows,
            [&](int row) {
              const int position = first + row, length = l.contexts.out_length;
              return l.target.at(position / length, position % length);
            },
            l.scale, l.losses + first, b.weights);
      __syncthreads();
    }
    if (l.backward) {
      stage_gradient(l, tile, b.y);
      __syncthreads();
      layer_backward(l.layer, l.grad_words != nullptr || l.grad_read != nullptr, index, b);
      __syncthreads();
      write_gradient_read(l, tile, b.x);
    }
    __syncthreads();
  }
}

constexpr int kLanes = 32;  // channels
constexpr int kParts = 8;   // of a row's readers
constexpr int kThreads = kLanes * kParts;
constexpr int64_t kMostRowsAtOnce = 4096;

template <class S>
__global__ void __launch_bounds__(kThreads)
    reader_sums_kernel(const __grid_constant__ ReaderSums<S> s) {
  using C = Compute<S>;
  C* sums = reinterpret_cast<C*>(shared_memory());
  const int lane = threadIdx.x % kLanes, part = threadIdx.x / kLanes;
  for (int64_t row = blockIdx.x; row < *s.row_count; row += gridDim.x) {
    const int32_t* readers = s.readers.readers + s.readers.begin[row];
    const int count = s.readers.count[row];
    for (int64_t channel = lane; channel - lane < s.channels; channel += kLanes) {
      C sum = C(0);
#pragma unroll 4
      for (int i = part; i < count; i += kParts)
        if (channel < s.channels) sum += s.grad_read[readers[i] * s.channels + channel];
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (part == 0 && channel < s.channels) {
        for (int other = 1; other < kParts; ++other) sum += sums[other * kLanes + lane];
        s.grad_out[row * s.channels + channel] = sum;
      }
      __syncthreads();
    }
  }
}

}  // namespace

template <class S>
cudaError_t run_rows(const LayerOfRows<S>& l, int shared_bytes, cudaStream_t stream) {
  const int64_t tiles = divide_up(l.contexts.most_rows, l.layer.out_length);
  return launch(&rows_kernel<S>, tiles < kMostTilesAtOnce ? tiles : kMostTilesAtOnce, kStackBlock,
                shared_bytes, stream, l);
}

template <class S>
cudaError_t add_up_readers(const ReaderSums<S>& s, cudaStream_t stream) {
  return launch(&reader_sums_kernel<S>,
                s.most_rows < kMostRowsAtOnce ? s.most_rows : kMostRowsAtOnce, kThreads,
                kThreads * static_cast<int>(sizeof(Compute<S>)), stream, s);
}

#define CONVLM_INSTANTIATE(S)                                                 \
  template cudaError_t run_rows<S>(const LayerOfRows<S>&, int, cudaStream_t); \
  template cudaError_t add_up_readers<S>(const ReaderSums<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
