// Neighbouring lanes read neighbouring channels of a row, and write neighbouring positions: a tile
// of both is turned in shared memory.
#include <cmath>

#include "cuda/activation.h"
#include "cuda/dtypes.h"
#include "cuda/lookup.h"
#include "cuda/problem.h"

namespace convlm::cuda {
namespace {

constexpr int kTile = 32;  // channels, and positions
constexpr int kThreads = 256;
constexpr int kPitch = kTile + 1;  // so that both ways round lanes are in different banks

template <class S>
__device__ Compute<S> sum_of_rows(const LookupProblem& p, int64_t sample, int64_t channel,
                                  int64_t position) {
  using C = Compute<S>;
  const Conv1dGeometry& g = p.geometry;
  const S* table = static_cast<const S*>(p.table.data) + channel * p.table.stride[2];
  C sum = C(0);
  for (int64_t tap = 0; tap < g.kernel_size; ++tap) {
    const int64_t at = input_position(position, tap, g.stride, g.dilation, g.pad_left);
    if (at < 0 || at >= g.length) continue;
    const int64_t word = p.tokens.at(sample, at);
    const bool known = 0 <= word && word < g.in_channels;
    sum += known ? to_compute(table[tap * p.table.stride[0] + word * p.table.stride[1]]) : C(NAN);
  }
  return sum;
}

template <class S>
__device__ void make_tile(const LookupProblem& p, int64_t sample, int64_t first_channel,
                          int64_t first_position) {
  using C = Compute<S>;
  const Conv1dGeometry& g = p.geometry;
  C* tile = reinterpret_cast<C*>(shared_memory());
  const int lane = threadIdx.x % kTile;
  for (int row = threadIdx.x / kTile; row < kTile; row += kThreads / kTile) {
    const int64_t channel = first_channel + lane, position = first_position + row;
    if (channel < g.out_channels && position < g.out_length)
      tile[row * kPitch + lane] = sum_of_rows<S>(p, sample, channel, position);
  }
  __syncthreads();
  for (int row = threadIdx.x / kTile; row < kTile; row += kThreads / kTile) {
    const int64_t channel = first_channel + row, position = first_position + lane;
    if (channel >= g.out_channels || position >= g.out_length) continue;
    const S* bias = static_cast<const S*>(p.bias.data);
    const C sum = tile[lane * kPitch + row] +
                  (bias == nullptr ? C(0) : to_compute(bias[channel * p.bias.stride[0]]));
    S* y = static_cast<S*>(p.y) + (sample * g.out_channels + channel) * g.out_length + position;
    *y = from_compute<S>(activate(p.activation, sum));
  }
  __syncthreads();
}

template <class S>
__global__ void __launch_bounds__(kThreads, 3)
    lookup_kernel(const __grid_constant__ LookupProblem p, int64_t blocks) {
  const int64_t channel_tiles = divide_up(p.geometry.out_channels, kTile);
  const int64_t position_tiles = divide_up(p.geometry.out_length, kTile);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t tile = block % (channel_tiles * position_tiles);
    make_tile<S>(p, block / (channel_tiles * position_tiles), tile / position_tiles * kTile,
                 tile % position_tiles * kTile);
  }
}

}  // namespace

cudaError_t look_up(const LookupProblem& p, cudaStream_t stream) {
  const Conv1dGeometry& g = p.geometry;
  const int64_t blocks =
      g.batch * divide_up(g.out_channels, kTile) * divide_up(g.out_length, kTile);
  return for_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    const int shared_bytes = kTile * kPitch * static_cast<int>(sizeof(Compute<S>));
    return launch(&lookup_kernel<S>, blocks, kThreads, shared_bytes, stream, p, blocks);
  });
}

}  // namespace convlm::cuda
