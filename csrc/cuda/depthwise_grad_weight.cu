// The weight's gradient of depthwise convolutions: each tap of a row is the sum of a product over
// the batch and all outputs. A block owns a few rows, up to kTaps of their taps and a piece of the
// tiles of (sample, positions); its threads keep a sum for each tap in registers, add them up at
// the end of the piece, and a second kernel adds the pieces. Pieces depend on the problem alone, so
// the order of every sum is fixed.
#include "cuda/fits.h"
#include "cuda/kernels.h"
#include "cuda/long_sums.h"
#include "cuda/staging.h"

namespace convlm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTaps = 8;
constexpr int kOutputs = 2048;      // of a tile, all rows together
constexpr int64_t kMostTiles = 16;  // of a piece: short sums, and blocks for every multiprocessor
constexpr int64_t kEnoughBlocks = 1024;
constexpr int64_t kSharedBytes = 48 * 1024;

template <class S>
struct DepthwiseGradient {
  WeightGradient<S> p;
  int rows, outputs;  // of a tile
  int x_lines, x_width, x_pitch, grad_pitch;
  int x_size;  // of its window, whole vectors
  int64_t row_tiles, tap_blocks, position_tiles;
  int64_t pieces, tiles_of_piece;
  int64_t elements;  // of a piece: the weight's and, after each row's taps, the bias's
  int shared_bytes;
  Compute<S>* partial;
};

// Adds up the products of one tile.
template <class S>
__device__ void add_tile(const DepthwiseGradient<S>& d, const Window<S>& x, const Window<S>& grad,
                         int64_t first_row, int row, int lane, int lanes, int count, int taps,
                         Compute<S> (&sums)[kTaps], Compute<S>& bias) {
  using C = Compute<S>;
  if (row >= grad.lines) return;
  const int stride = static_cast<int>(d.p.stride), dilation = static_cast<int>(d.p.dilation);
  const C* gradient = grad.line(row);
  const C* in = x.line(static_cast<int>((first_row + row) / d.p.rows - x.channel));
  for (int q = lane; q < count; q += lanes) {
    const C g = gradient[q];
    bias += g;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap)
      if (tap < taps) sums[tap] += g * in[q * stride + tap * dilation];
  }
}

// values[tap][thread] of the `lanes` threads of each row become values[tap][the row's first].
template <class C>
__device__ void add_lanes(C* values, int lane, int lanes) {
  for (int half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane >= half) continue;
#pragma unroll
    for (int tap = 0; tap <= kTaps; ++tap) {
      C* value = values + tap * kThreads + threadIdx.x;
      *value += value[half];
    }
  }
}

template <class S>
__device__ void make_piece(const DepthwiseGradient<S>& d, int64_t piece, int64_t first_row,
                           int first_tap) {
  using C = Compute<S>;
  const WeightGradient<S>& p = d.p;
  const int lanes = kThreads / d.rows, row = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int64_t all_rows = p.groups * p.rows, tiles = p.batch * d.position_tiles;
  const int rows = static_cast<int>(all_rows - first_row < d.rows ? all_rows - first_row : d.rows);
  const int left = static_cast<int>(p.kernel_size) - first_tap;
  const int taps = left < kTaps ? left : kTaps;
  const int64_t channel = first_row / p.rows;
  const int x_lines = static_cast<int>((first_row + rows - 1) / p.rows - channel) + 1;
  C* staged = reinterpret_cast<C*>(shared_memory());
  C* staged_grad = staged + d.x_size;

  C sums[kTaps] = {}, bias = C(0);
  const int64_t end = (piece + 1) * d.tiles_of_piece;
  for (int64_t tile = piece * d.tiles_of_piece; tile < end && tile < tiles; ++tile) {
    const int64_t sample = tile / d.position_tiles, first = tile % d.position_tiles * d.outputs;
    const int64_t begin = input_position(first, first_tap, p.stride, p.dilation, p.pad_left);
    const Window<S> x{p.x, sample, channel, begin, p.length, x_lines, d.x_width, d.x_pitch, staged};
    const Window<S> grad{p.grad_output, sample,    first_row,    first,      p.outputs,
                         rows,          d.outputs, d.grad_pitch, staged_grad};
    stage(x);
    stage(grad);
    __syncthreads();
    const int64_t exist = p.outputs - first;
    const int count = static_cast<int>(exist < d.outputs ? exist : d.outputs);
    add_tile(d, x, grad, first_row, row, lane, lanes, count, taps, sums, bias);
    __syncthreads();
  }

#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) staged[tap * kThreads + threadIdx.x] = sums[tap];
  staged[kTaps * kThreads + threadIdx.x] = bias;
  add_lanes(staged, lane, lanes);
  if (lane == 0 && row < rows) {
    C* out = d.partial + piece * d.elements + (first_row + row) * (p.kernel_size + 1);
    for (int tap = 0; tap < taps; ++tap)
      out[first_tap + tap] = staged[tap * kThreads + threadIdx.x];
    if (first_tap == 0) out[p.kernel_size] = staged[kTaps * kThreads + threadIdx.x];
  }
  __syncthreads();
}

template <class S>
__global__ void __launch_bounds__(kThreads, 3) depthwise_gradient_kernel(DepthwiseGradient<S> d) {
  const int64_t jobs = d.pieces * d.row_tiles * d.tap_blocks;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x)
    make_piece(d, job / d.tap_blocks % d.pieces, job / d.tap_blocks / d.pieces * d.rows,
               static_cast<int>(job % d.tap_blocks) * kTaps);
}

template <class S>
__global__ void __launch_bounds__(kThreads) add_pieces_kernel(DepthwiseGradient<S> d) {
  const int64_t threads = int64_t{gridDim.x} * kThreads, columns = d.p.kernel_size + 1;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < d.elements; i += threads) {
    const Compute<S> sum = sum_in_chains<Compute<S>>(
        0, d.pieces, 1, [&](int64_t piece) { return d.partial[piece * d.elements + i]; });
    const int64_t row = i / columns, tap = i % columns;
    if (tap < d.p.kernel_size)
      d.p.grad_weight[row * d.p.kernel_size + tap] = from_compute<S>(sum);
    else if (d.p.grad_bias != nullptr)
      d.p.grad_bias[row] = from_compute<S>(sum);
  }
}

template <class S>
void size_tile(DepthwiseGradient<S>& d) {
  const WeightGradient<S>& p = d.p;
  const int64_t taps = p.kernel_size < kTaps ? p.kernel_size : kTaps;
  d.x_width = static_cast<int>((d.outputs - 1) * p.stride + (taps - 1) * p.dilation + 1);
  d.x_pitch = window_pitch(p.x, d.x_width);
  d.grad_pitch = window_pitch(p.grad_output, d.outputs);
  // A tile of several rows may start in the middle of a channel's.
  d.x_lines = d.rows == 1 ? 1 : static_cast<int>((d.rows - 2) / p.rows + 2);
  d.x_size = static_cast<int>(divide_up(d.x_lines * d.x_pitch, kVector<S>)) * kVector<S>;
  const int staged = d.x_size + d.rows * d.grad_pitch;
  const int sums = (kTaps + 1) * kThreads;
  d.shared_bytes = (staged > sums ? staged : sums) * static_cast<int>(sizeof(Compute<S>));
}

// Long rows alone, short ones together; channels that are neighbours in memory together.
template <class S>
DepthwiseGradient<S> depthwise_gradient(const WeightGradient<S>& p) {
  constexpr int kChannelsTogether = 32, kLeastOutputs = 32;
  DepthwiseGradient<S> d{};
  d.p = p;
  const bool together = along_channels(p.x) || along_channels(p.grad_output);
  const int64_t all_rows = p.groups * p.rows;
  d.rows = 1;
  d.outputs = kOutputs;
  while (d.rows < kChannelsTogether && d.rows < all_rows && d.outputs > kLeastOutputs &&
         (together || d.outputs / 2 >= p.outputs)) {
    d.rows *= 2;
    d.outputs /= 2;
  }
  size_tile(d);
  for (; d.shared_bytes > kSharedBytes && d.rows > 1; size_tile(d)) d.rows /= 2;
  for (; d.shared_bytes > kMostSharedBytes && d.outputs > kLeastOutputs; size_tile(d))
    d.outputs /= 2;

  d.row_tiles = divide_up(all_rows, d.rows);
  d.tap_blocks = divide_up(p.kernel_size, kTaps);
  d.position_tiles = divide_up(p.outputs, d.outputs);
  const int64_t tiles = p.batch * d.position_tiles;
  const int64_t enough = tiles * d.row_tiles * d.tap_blocks / kEnoughBlocks;
  d.tiles_of_piece = enough < 1 ? 1 : enough < kMostTiles ? enough : kMostTiles;
  d.pieces = divide_up(tiles, d.tiles_of_piece);
  d.elements = all_rows * (p.kernel_size + 1);
  return d;
}

}  // namespace

template <class S>
int64_t weight_gradient_depthwise_workspace(const WeightGradient<S>& p) {
  const DepthwiseGradient<S> d = depthwise_gradient(p);
  return d.pieces * d.elements * static_cast<int64_t>(sizeof(Compute<S>));
}

template <class S>
cudaError_t weight_gradient_depthwise(const WeightGradient<S>& p, void* workspace,
                                      cudaStream_t stream) {
  DepthwiseGradient<S> d = depthwise_gradient(p);
  d.partial = static_cast<Compute<S>*>(workspace);
  const int64_t jobs = d.pieces * d.row_tiles * d.tap_blocks;
  const cudaError_t error =
      launch(&depthwise_gradient_kernel<S>, jobs, kThreads, d.shared_bytes, stream, d);
  if (error != cudaSuccess) return error;
  return launch(&add_pieces_kernel<S>, divide_up(d.elements, kThreads), kThreads, 0, stream, d);
}

#define CONVLM_INSTANTIATE(S)                                                        \
  template int64_t weight_gradient_depthwise_workspace<S>(const WeightGradient<S>&); \
  template cudaError_t weight_gradient_depthwise<S>(const WeightGradient<S>&, void*, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
