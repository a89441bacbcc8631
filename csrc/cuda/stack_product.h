// The products of a layer within one block: input and result lie in shared memory, and weights pass
// through it in chunks of channels.
#pragma once
#include "cuda/fused_stack.h"
#include "cuda/vector.h"

namespace convlm::cuda {

constexpr int kStackBlock = static_cast<int>(kStackThreads);
constexpr int kProductRows = 4;  // of a thread; it has two positions

// sum over channels, taps of weight[row, channel, tap] * in[channel, position + offset + tap *
// step]
template <class S>
struct Product {
  const S* weight;
  int64_t weight_row, weight_channel, weight_tap;
  int rows, channels, taps, chunk;
  const Compute<S>* in;  // [channels][in_length]; outside it is zero
  int in_length, outputs, offset, step;
};

// To staged[tap][channel][row], so that a thread's rows are a vector. Neighbouring lanes load
// neighbours: taps, and then whichever of rows and channels lie closer together.
template <class S>
__device__ void stage_weights(const Product<S>& p, int first, int count, Compute<S>* staged) {
  const int pitch = static_cast<int>(weight_pitch(p.rows));
  const bool rows_inside = p.weight_row < p.weight_channel;
  const int inner = rows_inside ? pitch : count, outer = rows_inside ? count : pitch;
  const int fast = p.taps * inner, lanes = fast < kStackBlock ? fast : kStackBlock;
  const int groups = kStackBlock / lanes, group = threadIdx.x / lanes;
  if (group >= groups) return;
  for (int i = threadIdx.x % lanes; i < fast; i += lanes) {
    const int tap = i % p.taps, in = i / p.taps;
#pragma unroll 4
    for (int out = group; out < outer; out += groups) {
      const int row = rows_inside ? in : out, channel = rows_inside ? out : in;
      const S* weight =
          p.weight + row * p.weight_row + (first + channel) * p.weight_channel + tap * p.weight_tap;
      staged[(tap * count + channel) * pitch + row] =
          row < p.rows ? to_compute(*weight) : Compute<S>(0);
    }
  }
}

// Adds the products of a chunk: of four rows, at a position and one `second` further on.
template <class S>
__device__ void add_products(const Product<S>& p, const Compute<S>* staged, int first, int count,
                             int row, int position, int second,
                             Compute<S> (&sums)[2][kProductRows]) {
  using C = Compute<S>;
  const int pitch = static_cast<int>(weight_pitch(p.rows));
  for (int tap = 0; tap < p.taps; ++tap) {
    const int at = position + p.offset + tap * p.step, other = at + second;
    const bool inside = 0 <= at && at < p.in_length;
    const bool other_inside = 0 <= other && other < p.in_length && position + second < p.outputs;
    const C* in = p.in + first * p.in_length + at;
    const C* w = staged + tap * count * pitch + row;
#pragma unroll 4
    for (int channel = 0; channel < count; ++channel) {
      const Four<C> rows = load_four(w + channel * pitch);
      // A padded zero is multiplied too: with an infinite weight it gives NaN.
      const C value = inside ? in[0] : C(0), other_value = other_inside ? in[second] : C(0);
#pragma unroll
      for (int r = 0; r < kProductRows; ++r) {
        sums[0][r] += rows.lanes[r] * value;
        sums[1][r] += rows.lanes[r] * other_value;
      }
      in += p.in_length;
    }
  }
}

// Calls store(row, position, sum) for every output. To be called by the whole block, when others
// may still write the input; nobody needs to have read the result before it returns.
template <class S, class Store>
__device__ void multiply(const Product<S>& p, Compute<S>* staged, const Store& store) {
  const int second = (p.outputs + 1) / 2;
  const int tiles = (p.rows + kProductRows - 1) / kProductRows * second;
  for (int begin = 0; begin < tiles; begin += kStackBlock) {
    const int tile = begin + threadIdx.x;
    const int row = tile / second * kProductRows, position = tile % second;
    Compute<S> sums[2][kProductRows] = {};
    for (int channel = 0; channel < p.channels; channel += p.chunk) {
      const int left = p.channels - channel, count = left < p.chunk ? left : p.chunk;
      __syncthreads();
      stage_weights(p, channel, count, staged);
      __syncthreads();
      if (tile < tiles) add_products(p, staged, channel, count, row, position, second, sums);
    }
#pragma unroll
    for (int r = 0; r < kProductRows; ++r) {
      if (tile >= tiles || row + r >= p.rows) break;
      store(row + r, position, sums[0][r]);
      if (position + second < p.outputs) store(row + r, position + second, sums[1][r]);
    }
  }
}

}  // namespace convlm::cuda
