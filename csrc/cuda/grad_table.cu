// The gradient of a table: what positions that read a row have as gradient, added up. A block owns
// some words of a tap, for some channels, and walks all positions; it has chains and sums of its
// own for each of several parts of them, so that no two threads add to the same, and adds the sums
// in order.
#include "cuda/dtypes.h"
#include "cuda/long_sums.h"
#include "cuda/lookup.h"
#include "cuda/problem.h"

namespace convlm::cuda {
namespace {

constexpr int kChannels = 32, kParts = 16, kWords = 8;
constexpr int kThreads = kChannels * kParts;

template <class S>
struct GradTable {
  GradTableProblem p;
  Input<S> grad_output;
  int64_t channel_blocks, word_blocks, blocks;  // of a tap; the bias' blocks come last
};

// The words of this block that position `t` of the output reads at `tap`, counted from the first
// one; the bias has one word, which all positions read.
__device__ inline int64_t word_of(const GradTableProblem& p, int64_t sample, int64_t t, int64_t tap,
                                  int64_t first_word) {
  const Conv1dGeometry& g = p.geometry;
  if (tap == g.kernel_size) return 0;
  const int64_t at = input_position(t, tap, g.stride, g.dilation, g.pad_left);
  return at < 0 || at >= g.length ? -1 : p.tokens.at(sample, at) - first_word;
}

template <class S>
__device__ void add_positions(const GradTable<S>& d, int64_t tap, int64_t first_word,
                              int64_t channel, Compute<S>* chains, double* sums) {
  const Conv1dGeometry& g = d.p.geometry;
  const int64_t positions = g.batch * g.out_length;
  for (int word = 0; word < kWords; ++word) {
    chains[word * kChannels] = Compute<S>(0);
    sums[word * kChannels] = 0;
  }
  if (channel >= g.out_channels) return;
  const int64_t part = threadIdx.x / kChannels;
  for_each_chain(part, positions, kParts, [&](int64_t begin, int64_t stop) {
#pragma unroll 4
    for (int64_t i = begin; i < stop; i += kParts) {
      const int64_t sample = i / g.out_length, t = i % g.out_length;
      const int64_t word = word_of(d.p, sample, t, tap, first_word);
      if (0 <= word && word < kWords)
        chains[word * kChannels] += read(d.grad_output, sample, channel, t);
    }
    for (int word = 0; word < kWords; ++word) {
      sums[word * kChannels] += chains[word * kChannels];
      chains[word * kChannels] = Compute<S>(0);
    }
  });
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    grad_table_kernel(const __grid_constant__ GradTable<S> d) {
  using C = Compute<S>;
  const Conv1dGeometry& g = d.p.geometry;
  double* sums = reinterpret_cast<double*>(shared_memory());
  C* chains = reinterpret_cast<C*>(sums + kThreads * kWords);
  const int lane = threadIdx.x % kChannels, part = threadIdx.x / kChannels;
  for (int64_t block = blockIdx.x; block < d.blocks; block += gridDim.x) {
    const int64_t row = block / d.channel_blocks;
    const int64_t tap = row / d.word_blocks, first_word = row % d.word_blocks * kWords;
    const int64_t first_channel = block % d.channel_blocks * kChannels;
    const int own = part * kWords * kChannels + lane;
    add_positions(d, tap, first_word, first_channel + lane, chains + own, sums + own);
    __syncthreads();
    const int64_t word = first_word + part, channel = first_channel + lane;
    const bool is_bias = tap == g.kernel_size;
    if (part < (is_bias ? 1 : kWords) && word < g.in_channels && channel < g.out_channels) {
      double sum = 0;
      for (int other = 0; other < kParts; ++other)
        sum += sums[(other * kWords + part) * kChannels + lane];
      S* to = is_bias
                  ? static_cast<S*>(d.p.grad_bias)
                  : static_cast<S*>(d.p.grad_table) + (tap * g.in_channels + word) * g.out_channels;
      to[channel] = from_compute<S>(static_cast<C>(sum));
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t add_up_table(const GradTableProblem& p, cudaStream_t stream) {
  const Conv1dGeometry& g = p.geometry;
  return for_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    GradTable<S> d{};
    d.p = p;
    d.grad_output = input<S>(p.grad_output);
    d.channel_blocks = divide_up(g.out_channels, kChannels);
    d.word_blocks = divide_up(g.in_channels, kWords);
    const int64_t rows = g.kernel_size * d.word_blocks + (p.grad_bias == nullptr ? 0 : 1);
    d.blocks = rows * d.channel_blocks;
    const int shared_bytes =
        kThreads * kWords * static_cast<int>(sizeof(double) + sizeof(Compute<S>));
    return launch(&grad_table_kernel<S>, d.blocks, kThreads, shared_bytes, stream, d);
  });
}

}  // namespace convlm::cuda
