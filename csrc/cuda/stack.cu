// A stack of convolutions in one launch: a block takes a sample through all layers, and where
// gradients are wanted, back. What samples share is left to stack_gradients.cu.
#include "cuda/stack_loss.h"

namespace convlm::cuda {
namespace {

// To [channel][position]. A token that is no word is NaN.
template <class S>
__device__ void stage_input(const FusedStack<S>& s, int64_t sample, Compute<S>* x) {
  using C = Compute<S>;
  const int length = s.layers[0].in_length, count = s.layers[0].in_channels * length;
  for (int i = threadIdx.x; i < count; i += kStackBlock) {
    const int channel = i / length, position = i % length;
    if (s.tokens.data == nullptr) {
      x[i] = read(s.x, sample, channel, position);
    } else {
      const int64_t word = s.tokens.at(sample, position);
      x[i] = 0 <= word && word < s.vocab ? read(s.x, word, channel, 0) : C(NAN);
    }
  }
}

// Leaves the last layer's result in b.y.
template <class S>
__device__ void forward_sample(const FusedStack<S>& s, int64_t sample,
                               StackBuffers<Compute<S>>& b) {
  stage_input(s, sample, b.y);
  for (int i = 0; i < s.depth; ++i) {
    b.swap();
    layer_forward(s.layers[i], sample, i + 1 < s.depth ? nullptr : s.output, b);
  }
  __syncthreads();
}

template <class S>
__device__ void stage_gradient(const FusedStack<S>& s, int64_t sample, Compute<S>* gradient) {
  const FusedLayer<S>& last = s.layers[s.depth - 1];
  for (int i = threadIdx.x; i < last.out_channels * last.out_length; i += kStackBlock)
    gradient[i] = read(s.grad_output, sample, i / last.out_length, i % last.out_length);
}

template <class S>
__device__ void write_input_gradient(const FusedStack<S>& s, int64_t sample,
                                     const Compute<S>* gradient) {
  const int count = s.layers[0].in_channels * s.layers[0].in_length;
  for (int i = threadIdx.x; i < count; i += kStackBlock) {
    if (s.grad_words != nullptr) s.grad_words[sample * count + i] = gradient[i];
    if (s.grad_input != nullptr) s.grad_input[sample * count + i] = from_compute<S>(gradient[i]);
  }
}

// From the gradient of the last layer's result, in b.y.
template <class S>
__device__ void backward_sample(const FusedStack<S>& s, int64_t sample,
                                StackBuffers<Compute<S>>& b) {
  const bool with_input = s.grad_words != nullptr || s.grad_input != nullptr;
  for (int i = s.depth - 1; i >= 0; --i) {
    __syncthreads();
    layer_backward(s.layers[i], i > 0 || with_input, sample, b);
    b.swap();
  }
  __syncthreads();
  if (with_input) write_input_gradient(s, sample, b.y);
  if (s.input == nullptr) return;
  stage_input(s, sample, b.x);
  __syncthreads();
  const int count = s.layers[0].in_channels * s.layers[0].in_length;
  for (int i = threadIdx.x; i < count; i += kStackBlock)
    s.input[sample * count + i] = from_compute<S>(b.x[i]);
}

template <class S>
__global__ void __launch_bounds__(kStackBlock, 1)
    stack_kernel(const __grid_constant__ FusedStack<S> s) {
  using C = Compute<S>;
  StackBuffers<C> b = buffers_of(s);
  const FusedLayer<S>& last = s.layers[s.depth - 1];
  const C scale = s.backward ? C(1) / (C(s.batch) * C(last.out_length)) : C(0);
  for (int64_t sample = blockIdx.x; sample < s.batch; sample += gridDim.x) {
    if (s.forward) forward_sample(s, sample, b);
    if (s.losses != nullptr)
      cross_entropy(
          b.y, last.out_channels, last.out_length, last.out_length,
          [&](int position) { return s.target.at(sample, position); }, scale,
          s.losses + sample * last.out_length, b.weights);
    if (s.grad_output.data != nullptr) stage_gradient(s, sample, b.y);
    if (s.backward) backward_sample(s, sample, b);
    __syncthreads();
  }
}

}  // namespace

template <class S>
cudaError_t run_samples(const FusedStack<S>& s, int shared_bytes, cudaStream_t stream) {
  return launch(&stack_kernel<S>, s.batch, kStackBlock, shared_bytes, stream, s);
}

#define CONVLM_INSTANTIATE(S) \
  template cudaError_t run_samples<S>(const FusedStack<S>&, int, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
