// Layers so small that launches are most of their cost, such as those of character models: a few
// hundred positions, some hundred channels. One launch makes everything. A block has a sample and
// some rows; the sample's input and the rows' weights lie in shared memory whole, and a thread adds
// up four rows of one position, so that two loads feed four multiply-adds.
#include "cuda/fits.h"
#include "cuda/kernels.h"
#include "cuda/staging.h"
#include "cuda/taps.h"

namespace convlm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;  // of a thread

template <class S>
struct Small {
  Correlation<S> p;
  Taps taps;
  int rows, width;  // rows of a block, a multiple of kRows
  int64_t row_blocks;
  int shared_bytes;
};

// To staged[channel][tap][row], so that a thread's rows are a vector. Rows that do not exist are
// zero.
template <class S>
__device__ void stage_weights(const Small<S>& d, int64_t first_row, Compute<S>* staged) {
  const Correlation<S>& p = d.p;
  const int taps = static_cast<int>(p.kernel_size), columns = static_cast<int>(p.channels) * taps;
#pragma unroll 4
  for (int i = threadIdx.x; i < columns * d.rows; i += kThreads) {
    const int column = i % columns, row = i / columns;
    const S* weight = p.weight + (first_row + row) * p.weight_row +
                      column / taps * p.weight_channel + column % taps * p.weight_tap;
    staged[column * d.rows + row] = first_row + row < p.rows ? to_compute(*weight) : Compute<S>(0);
  }
}

template <class S>
__device__ void correlate_position(const Small<S>& d, const Compute<S>* window,
                                   const Compute<S>* weights, int64_t sample, int64_t first_row,
                                   int position) {
  using C = Compute<S>;
  const Correlation<S>& p = d.p;
  const int classes = static_cast<int>(p.classes), row_stride = d.rows;
  const ClassTaps taps = d.taps.classes[position % classes];
  const int tap_stride = d.taps.weight_step * row_stride;
  const C* in = window + position / classes * static_cast<int>(p.step) + taps.in;
  const C* w = weights + taps.weight * row_stride;
  C sums[kRows] = {};
  for (int channel = 0; channel < static_cast<int>(p.channels); ++channel) {
#pragma unroll 4
    for (int tap = 0; tap < taps.count; ++tap) {
      const Four<C> rows = load_four(w + tap * tap_stride);
      const C value = in[tap * d.taps.in_step];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[r] += rows.lanes[r] * value;
    }
    in += d.width;
    w += static_cast<int>(p.kernel_size) * row_stride;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (first_row + r >= p.rows) break;
    const int64_t row = first_row + r;
    const C bias = p.bias == nullptr ? C(0) : to_compute(p.bias[row * p.bias_stride]);
    p.out[(sample * p.rows + row) * p.outputs + position] =
        from_compute<S>(activate(p.activation, sums[r] + bias));
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) small_kernel(Small<S> d) {
  using C = Compute<S>;
  const Correlation<S>& p = d.p;
  const int channels = static_cast<int>(p.channels), outputs = static_cast<int>(p.outputs);
  C* weights = reinterpret_cast<C*>(shared_memory());
  C* staged = weights + channels * static_cast<int>(p.kernel_size) * d.rows;
  const int64_t blocks = p.batch * d.row_blocks;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t first_row = block % d.row_blocks * d.rows;
    const int64_t sample = block / d.row_blocks;
    const Window<S> window{p.in,     sample,  0,       d.taps.begin, p.length,
                           channels, d.width, d.width, staged};
    stage_samples(window, 1, {0, d.width, 1});
    stage_weights(d, first_row, weights);
    __syncthreads();
    for (int i = threadIdx.x; i < d.rows / kRows * outputs; i += kThreads) {
      const int row = i / outputs * kRows;
      correlate_position(d, staged, weights + row, sample, first_row + row, i % outputs);
    }
    __syncthreads();
  }
}

}  // namespace

template <class S>
cudaError_t correlate_small(const Correlation<S>& p, cudaStream_t stream) {
  Small<S> d{};
  d.p = p;
  d.taps = taps_of(p);
  d.row_blocks = divide_up(p.rows, kSmallRows);
  d.rows = static_cast<int>(divide_up(divide_up(p.rows, d.row_blocks), kRows)) * kRows;
  d.width = d.taps.window(divide_up(p.outputs, p.classes), p.step);
  const int64_t elements = p.channels * (p.kernel_size * d.rows + d.width);
  d.shared_bytes = static_cast<int>(elements * sizeof(Compute<S>));
  return launch(&small_kernel<S>, p.batch * d.row_blocks, kThreads, d.shared_bytes, stream, d);
}

#define CONVLM_INSTANTIATE(S) \
  template cudaError_t correlate_small<S>(const Correlation<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
