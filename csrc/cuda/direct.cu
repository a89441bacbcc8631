// One thread per output, straight from the definition: any shape, any strides, any alignment. Slow,
// and right; what the other kernels leave to it, and what they are measured against.
#include "cuda/activation.h"
#include "cuda/kernels.h"
#include "cuda/long_sums.h"
#include "cuda/problem.h"

namespace convlm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kThreadsOfSum = 64;

template <class S>
__global__ void __launch_bounds__(kThreads) correlate_kernel(Correlation<S> p) {
  using C = Compute<S>;
  const int64_t rows = p.groups * p.rows;
  const int64_t count = p.batch * rows * p.outputs;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += threads) {
    const int64_t position = i % p.outputs;
    const int64_t row = i / p.outputs % rows;
    const int64_t sample = i / p.outputs / rows;
    const int64_t group = row / p.rows;
    const PositionClass c = position_class(p, position % p.classes);
    const int64_t start = position / p.classes * p.step + c.offset;
    const S* weight = p.weight + group * p.weight_group + row % p.rows * p.weight_row;
    C sum = C(0);
    for (int64_t tap = 0; tap < c.taps; ++tap) {
      const int64_t at = start + tap * c.offset_step;
      const bool inside = 0 <= at && at < p.length;
      const S* w = weight + (c.first + tap * c.step) * p.weight_tap;
      C tap_sum = C(0);
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        // A padded zero is multiplied too: with an infinite weight it gives NaN.
        const C value = inside ? read(p.in, sample, group * p.channels + channel, at) : C(0);
        tap_sum += to_compute(w[channel * p.weight_channel]) * value;
      }
      sum += tap_sum;
    }
    if (p.bias != nullptr) sum += to_compute(p.bias[row * p.bias_stride]);
    p.out[i] = from_compute<S>(activate(p.activation, sum));
  }
}

// The sum of every thread's value, in an order that never changes. For thread 0 only.
template <class C>
__device__ C sum_of_block(C value) {
  C* values = reinterpret_cast<C*>(shared_memory());
  values[threadIdx.x] = value;
  for (int half = kThreadsOfSum / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) values[threadIdx.x] += values[threadIdx.x + half];
  }
  const C sum = values[0];
  __syncthreads();
  return sum;
}

// A block for each element of the weight; those after them each make one of the bias.
template <class S>
__global__ void __launch_bounds__(kThreadsOfSum) weight_gradient_kernel(WeightGradient<S> p) {
  using C = Compute<S>;
  const int64_t rows = p.groups * p.rows;
  const int64_t weights = rows * p.channels * p.kernel_size;
  const int64_t elements = weights + (p.grad_bias != nullptr ? rows : 0);
  const int64_t products = p.batch * p.outputs;
  for (int64_t element = blockIdx.x; element < elements; element += gridDim.x) {
    const bool is_bias = element >= weights;
    const int64_t tap = is_bias ? 0 : element % p.kernel_size;
    const int64_t channel = is_bias ? 0 : element / p.kernel_size % p.channels;
    const int64_t row = is_bias ? element - weights : element / p.kernel_size / p.channels;
    const int64_t x_channel = row / p.rows * p.channels + channel;
    C sum = sum_in_chains<C>(threadIdx.x, products, kThreadsOfSum, [&](int64_t i) {
      const int64_t sample = i / p.outputs, q = i % p.outputs;
      const C gradient = read(p.grad_output, sample, row, q);
      if (is_bias) return gradient;
      const int64_t at = input_position(q, tap, p.stride, p.dilation, p.pad_left);
      const bool inside = 0 <= at && at < p.length;
      return gradient * (inside ? read(p.x, sample, x_channel, at) : C(0));
    });
    sum = sum_of_block(sum);
    if (threadIdx.x == 0)
      (is_bias ? p.grad_bias[row] : p.grad_weight[element]) = from_compute<S>(sum);
  }
}

}  // namespace

template <class S>
cudaError_t correlate_direct(const Correlation<S>& p, cudaStream_t stream) {
  const int64_t count = p.batch * p.groups * p.rows * p.outputs;
  return launch(&correlate_kernel<S>, divide_up(count, kThreads), kThreads, 0, stream, p);
}

template <class S>
cudaError_t weight_gradient_direct(const WeightGradient<S>& p, cudaStream_t stream) {
  const int64_t rows = p.groups * p.rows;
  const int64_t elements = rows * p.channels * p.kernel_size + (p.grad_bias ? rows : 0);
  const int shared = kThreadsOfSum * static_cast<int>(sizeof(Compute<S>));
  return launch(&weight_gradient_kernel<S>, elements, kThreadsOfSum, shared, stream, p);
}

#define CONVLM_INSTANTIATE(S)                                                    \
  template cudaError_t correlate_direct<S>(const Correlation<S>&, cudaStream_t); \
  template cudaError_t weight_gradient_direct<S>(const WeightGradient<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
