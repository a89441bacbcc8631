// The weight's gradient of small layers: a block owns a piece of the weight and walks the whole
// batch in order, as many samples at a time as shared memory holds. The piece's columns are pairs
// of (channel, tap), and after them one that is the bias: its input is 1 everywhere.
#pragma once
#include "cuda/fits.h"
#include "cuda/long_sums.h"
#include "cuda/staging.h"

namespace convlm::cuda {
namespace small_gradient {

constexpr int kRows = 4;      // of a thread
constexpr int kQuarters = 4;  // of the positions, for threads to share
constexpr int kRowsOfBlock = static_cast<int>(kSmallGradientRows);
constexpr int kColumns = static_cast<int>(kSmallColumns);
constexpr int kThreads = kColumns * (kRowsOfBlock / kRows) * kQuarters;
constexpr int kRowPitch = kRowsOfBlock + 4;  // positions' vectors of rows: whole, in other banks
// A multiprocessor's: left to itself the compiler aims at more than there are, and spills.
template <class S>
constexpr int kBlocks = sizeof(Compute<S>) == 4 ? 4 : 3;

// What is done with a gradient: it is written, or a parameter moves against it.
template <class S>
struct Use {
  bool as_step;
  Compute<S> lr;

  __device__ void operator()(S* to, Compute<S> gradient) const {
    *to = from_compute<S>(as_step ? to_compute(*to) - lr * gradient : gradient);
  }
};

template <class S>
struct SmallGradient {
  WeightGradient<S> p;
  Use<S> use;
  int64_t stride[3], bias_stride;  // of grad_weight and grad_bias
  int width, samples;              // of x in shared memory; samples at a time
  int samples_of_chain;
  int64_t row_blocks, column_blocks;
  int shared_bytes;
};

// The piece of the weight that a block makes.
struct Piece {
  int64_t first_row;
  int rows, first_column, channel, x_lines;
};

template <class S>
__device__ Piece piece_of(const SmallGradient<S>& d, int64_t block) {
  const WeightGradient<S>& p = d.p;
  Piece piece;
  piece.first_column = static_cast<int>(block % d.column_blocks) * kColumns;
  piece.first_row = block / d.column_blocks * kRowsOfBlock;
  const int64_t rows = p.rows - piece.first_row;
  piece.rows = static_cast<int>(rows < kRowsOfBlock ? rows : kRowsOfBlock);
  const int taps = static_cast<int>(p.kernel_size), channels = static_cast<int>(p.channels);
  piece.channel = piece.first_column / taps;
  const int last = (piece.first_column + kColumns - 1) / taps;
  piece.x_lines = (last < channels ? last + 1 : channels) - piece.channel;
  return piece;
}

// Adds the products of this thread's rows, column and positions over some samples, chain by chain.
template <class S>
__device__ void add_samples(const SmallGradient<S>& d, const Piece& piece, int samples,
                            const Compute<S>* x, const Compute<S>* gradient, int column,
                            int quarter, double (&sums)[kRows]) {
  using C = Compute<S>;
  const int taps = static_cast<int>(d.p.kernel_size), outputs = static_cast<int>(d.p.outputs);
  const int stride = static_cast<int>(d.p.stride), dilation = static_cast<int>(d.p.dilation);
  const bool is_bias = column == static_cast<int>(d.p.channels) * taps;
  const int in = is_bias ? 0 : (column / taps - piece.channel) * d.width + column % taps * dilation;
  for (int sample = 0; sample < samples;) {
    const int most = sample + d.samples_of_chain, last = most < samples ? most : samples;
    C chains[kRows] = {};
    for (; sample < last; ++sample) {
      const C* g = gradient + sample * outputs * kRowPitch;
      const C* line = x + sample * piece.x_lines * d.width + in;
#pragma unroll 4
      for (int q = quarter; q < outputs; q += kQuarters) {
        const Four<C> rows = load_four(g + q * kRowPitch);
        const C value = is_bias ? C(1) : line[q * stride];
#pragma unroll
        for (int r = 0; r < kRows; ++r) chains[r] += rows.lanes[r] * value;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] += chains[r];
  }
}

template <class S>
__device__ void write_gradient(const SmallGradient<S>& d, int64_t row, int column, Compute<S> sum) {
  const WeightGradient<S>& p = d.p;
  const int taps = static_cast<int>(p.kernel_size), columns = static_cast<int>(p.channels) * taps;
  if (column < columns)
    d.use(p.grad_weight + row * d.stride[0] + column / taps * d.stride[1] +
              column % taps * d.stride[2],
          sum);
  else if (p.grad_bias != nullptr)
    d.use(p.grad_bias + row * d.bias_stride, sum);
}

template <class S>
__device__ void make_piece(const SmallGradient<S>& d, const Piece& piece, int64_t batch) {
  using C = Compute<S>;
  const WeightGradient<S>& p = d.p;
  const int outputs = static_cast<int>(p.outputs);
  const int column = piece.first_column + threadIdx.x % kColumns;
  const int row = threadIdx.x / kColumns % (kRowsOfBlock / kRows) * kRows;
  const int quarter = threadIdx.x / (kThreads / kQuarters);
  const bool mine = row < piece.rows && column <= static_cast<int>(p.channels * p.kernel_size);
  C* gradient = reinterpret_cast<C*>(shared_memory());
  C* x = gradient + d.samples * outputs * kRowPitch;

  double sums[kRows] = {};
  for (int64_t first = 0; first < batch; first += d.samples) {
    const int64_t left = batch - first;
    const int samples = static_cast<int>(left < d.samples ? left : d.samples);
    stage_samples(Window<S>{p.grad_output, first, piece.first_row, 0, p.outputs, piece.rows,
                            outputs, 0, gradient},
                  samples, {outputs * kRowPitch, 1, kRowPitch});
    stage_samples(
        Window<S>{p.x, first, piece.channel, -p.pad_left, p.length, piece.x_lines, d.width, 0, x},
        samples, {piece.x_lines * d.width, d.width, 1});
    __syncthreads();
    if (mine) add_samples(d, piece, samples, x, gradient + row, column, quarter, sums);
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) gradient[r * kThreads + threadIdx.x] = static_cast<C>(sums[r]);
  __syncthreads();
  for (int r = 0; r < kRows && mine && quarter == 0 && row + r < piece.rows; ++r) {
    C sum = C(0);
    for (int other = 0; other < kQuarters; ++other)
      sum += gradient[r * kThreads + threadIdx.x + other * (kThreads / kQuarters)];
    write_gradient(d, piece.first_row + row + r, column, sum);
  }
  __syncthreads();
}

// What blocks 0 to row_blocks * column_blocks - 1 make, for a gradient that is contiguous.
template <class S>
SmallGradient<S> plan(const WeightGradient<S>& p) {
  constexpr int64_t kElements = kMostSharedBytes / static_cast<int64_t>(sizeof(Compute<S>));
  SmallGradient<S> d{};
  d.p = p;
  d.stride[0] = p.channels * p.kernel_size;
  d.stride[1] = p.kernel_size;
  d.stride[2] = d.bias_stride = 1;
  d.width = static_cast<int>((p.outputs - 1) * p.stride + (p.kernel_size - 1) * p.dilation + 1);
  d.row_blocks = divide_up(p.rows, kRowsOfBlock);
  d.column_blocks = divide_up(p.channels * p.kernel_size + 1, kColumns);
  const int64_t lines = divide_up(kColumns - 1, p.kernel_size) + 1;
  const int64_t x_lines = lines < p.channels ? lines : p.channels;
  const int64_t of_sample = p.outputs * kRowPitch + x_lines * d.width;
  const int64_t most = kElements / of_sample;
  d.samples = static_cast<int>(p.batch < most ? p.batch : most);
  const int64_t chain = kChain / divide_up(p.outputs < 1 ? 1 : p.outputs, kQuarters);
  d.samples_of_chain = static_cast<int>(chain < 1 ? 1 : chain);
  const int64_t sums = kRows * kThreads, staged = d.samples * of_sample;
  d.shared_bytes = static_cast<int>((staged > sums ? staged : sums) * sizeof(Compute<S>));
  return d;
}

}  // namespace small_gradient

using small_gradient::SmallGradient;
using small_gradient::Use;

}  // namespace convlm::cuda
