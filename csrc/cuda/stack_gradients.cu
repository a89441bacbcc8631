// What the samples of a fused stack share, in one launch: each block makes a piece of a weight's
// gradient, the gradient of a word, or the mean loss, and walks the batch in an order of its own
// that never changes.
#include <cmath>

#include "cuda/fused_stack.h"

namespace convlm::cuda {
namespace {

using namespace small_gradient;

constexpr int kWordChannels = 16;  // at a time, a thread each
constexpr int kParts = kThreads / kWordChannels;
constexpr int kBlocksOfStack = 2;  // a multiprocessor; its shared memory has room for few more

template <class S>
__device__ void add_up_word(const SharedGradients<S>& g, int64_t word) {
  using C = Compute<S>;
  C* sums = reinterpret_cast<C*>(shared_memory());
  const int lane = threadIdx.x % kWordChannels, part = threadIdx.x / kWordChannels;
  const int64_t positions = g.samples(0) * g.length;
  for (int64_t first = 0; first < g.channels; first += kWordChannels) {
    const int64_t channel = first + lane;
    C sum = sum_in_chains<C>(part, positions, kParts, [&](int64_t i) {
      const int64_t sample = i / g.length, position = i % g.length;
      return g.tokens.at(sample, position) == word && channel < g.channels
                 ? g.grad_words[(sample * g.channels + channel) * g.length + position]
                 : C(0);
    });
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (part == 0 && channel < g.channels) {
      for (int other = 1; other < kParts; ++other) sum += sums[other * kWordChannels + lane];
      g.use(g.grad_embedding + word * g.word_stride + channel * g.channel_stride, sum);
    }
    __syncthreads();
  }
}

// In an order that is every block's.
template <class S>
__device__ Compute<S> mean_loss(const SharedGradients<S>& g) {
  double* sums = reinterpret_cast<double*>(shared_memory());
  double sum = 0;
  for (int64_t i = threadIdx.x; i < g.loss_count; i += kThreads) sum += g.losses[i];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  const double mean = sums[0] / g.loss_count;
  __syncthreads();
  return static_cast<Compute<S>>(mean);
}

template <class S>
__device__ void write_loss(const SharedGradients<S>& g) {
  const Compute<S> mean = mean_loss(g);
  if (threadIdx.x == 0) *g.loss = from_compute<S>(mean);
}

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocksOfStack)
    add_up_kernel(const __grid_constant__ SharedGradients<S> g, int64_t words, int64_t blocks) {
  const bool steps = !g.use.as_step || std::isfinite(mean_loss(g));
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    int64_t rest = block;
    int layer = 0;
    for (; layer < g.depth; ++layer) {
      const int64_t pieces = g.layers[layer].row_blocks * g.layers[layer].column_blocks;
      if (rest < pieces) break;
      rest -= pieces;
    }
    if (layer == g.depth && rest == words)
      write_loss(g);
    else if (steps && layer < g.depth)
      make_piece(g.layers[layer], piece_of(g.layers[layer], rest), g.samples(layer));
    else if (steps)
      add_up_word(g, rest);
  }
}

}  // namespace

template <class S>
cudaError_t add_up_samples(const SharedGradients<S>& g, cudaStream_t stream) {
  const int64_t words = g.grad_words != nullptr ? g.vocab : 0;
  int64_t blocks = words + (g.losses != nullptr ? 1 : 0);
  int shared_bytes = kThreads * static_cast<int>(sizeof(double));
  for (int i = 0; i < g.depth; ++i) {
    blocks += g.layers[i].row_blocks * g.layers[i].column_blocks;
    if (g.layers[i].shared_bytes > shared_bytes) shared_bytes = g.layers[i].shared_bytes;
  }
  return launch(&add_up_kernel<S>, blocks, kThreads, shared_bytes, stream, g, words, blocks);
}

#define CONVLM_INSTANTIATE(S) \
  template cudaError_t add_up_samples<S>(const SharedGradients<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
