// Tiles of an input on their way to shared memory, through registers.
//
// A tile is stored as [position][channel], the transpose of how tensors mostly lie in memory. So a
// tap, which reads further positions, starts at another row of the tile: rows are multiples of 16
// bytes wherever they start, while in [channel][position] most taps would be misaligned for
// ldmatrix and for loads of 16 bytes. Each thread transposes for itself: it reads the channels of
// one vector of 16 bytes, at one position, and its neighbours read the neighbouring positions,
// which is one line of memory. On their way through registers, numbers may come from any alignment
// and strides, padding becomes zeros, and a derivative is multiplied by (of 16-bit types the
// product is rounded once more than in the direct kernel).
#pragma once
#include "cuda/instructions.h"
#include "cuda/problem.h"
#include "cuda/vector.h"

namespace convlm::cuda {

// `channels` from `channel` on, at most a vector of them; zeros for those that are left.
template <class S>
__device__ __forceinline__ Vector<S> read_channels(const Input<S>& in, int64_t sample,
                                                   int64_t channel, int64_t channels,
                                                   int64_t position) {
  Vector<S> vector{};
  const S* from = in.data + sample * in.batch + channel * in.channel + position * in.position;
  if (channels >= kVector<S>) {
#pragma unroll
    for (int i = 0; i < kVector<S>; ++i) vector.lanes[i] = from[i * in.channel];
  } else {
#pragma unroll
    for (int i = 0; i < kVector<S>; ++i)
      if (i < channels) vector.lanes[i] = from[i * in.channel];
  }
  if (in.y != nullptr) {
    const S* y = in.y + sample * in.y_batch + channel * in.y_channel + position * in.y_position;
#pragma unroll
    for (int i = 0; i < kVector<S>; ++i)
      if (i < channels)
        vector.lanes[i] = from_compute<S>(times_derivative(
            in.activation, to_compute(vector.lanes[i]), to_compute(y[i * in.y_channel])));
  }
  return vector;
}

__device__ __forceinline__ uint32_t pair(uint16_t low, uint16_t high) {
  return low | uint32_t{high} << 16;
}

// Numbers as `Products` multiplies them.
template <class Products, class S>
__device__ __forceinline__ void store_prepared(void* shared, const Vector<S>& vector) {
  if constexpr (sizeof(S) == 2) {
    Vector<uint32_t> words;
#pragma unroll
    for (int i = 0; i < kVector<uint32_t>; ++i)
      words.lanes[i] = pair(vector.lanes[2 * i].bits, vector.lanes[2 * i + 1].bits);
    *static_cast<Vector<uint32_t>*>(shared) = words;
  } else {
    Vector<S> prepared;
#pragma unroll
    for (int i = 0; i < kVector<S>; ++i) prepared.lanes[i] = Products::prepared(vector.lanes[i]);
    *static_cast<Vector<S>*>(shared) = prepared;
  }
}

// Divides numbers below 2048 by one of at most 512, without a division.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int divisor) : divisor_(divisor), factor_((1u << 21) / divisor + 1) {}
  __device__ __forceinline__ int divide(int number) const {
    return static_cast<int>(static_cast<uint32_t>(number) * factor_ >> 21);
  }
  __device__ __forceinline__ int value() const { return divisor_; }

 private:
  int divisor_ = 1;
  uint32_t factor_ = (1u << 21) + 1;
};

}  // namespace convlm::cuda
