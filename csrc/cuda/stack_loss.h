// The softmax cross-entropy of some logits, and its gradient, where they lie.
#pragma once
#include <cmath>

#include "cuda/stack_layers.h"

namespace convlm::cuda {

constexpr int kLossLanes = 16;  // share the classes of a position

// Of the values that the lanes of a position have, all in `shared`.
template <class C>
__device__ C largest_of_lanes(const C* shared) {
  C largest = shared[0];
  for (int lane = 1; lane < kLossLanes; ++lane)
    if (shared[lane] > largest) largest = shared[lane];
  return largest;
}
template <class C>
__device__ C sum_of_lanes(const C* shared) {
  C sum = shared[0];
  for (int lane = 1; lane < kLossLanes; ++lane) sum += shared[lane];
  return sum;
}

// logits[class][position], classes `pitch` apart, become the gradients of the mean loss where
// `scale`, 1 over the number of all positions, is not 0. target(position) that is no class gives
// NaN. `shared` has a number for each thread.
template <class C, class Target>
__device__ void cross_entropy(C* logits, int classes, int pitch, int positions,
                              const Target& target, C scale, C* losses, C* shared) {
  const int lane = threadIdx.x % kLossLanes;
  C* lanes = shared + threadIdx.x - lane;
  for (int begin = 0; begin < positions; begin += kStackBlock / kLossLanes) {
    const int position = begin + threadIdx.x / kLossLanes;
    const bool mine = position < positions;
    C* logit = logits + position;
    C largest = C(-INFINITY), sum = C(0);
    for (int c = lane; mine && c < classes; c += kLossLanes)
      if (logit[c * pitch] > largest) largest = logit[c * pitch];
    lanes[lane] = largest;
    __syncthreads();
    largest = largest_of_lanes(lanes);
    __syncthreads();
    for (int c = lane; mine && c < classes; c += kLossLanes)
      sum += std::exp(logit[c * pitch] - largest);
    lanes[lane] = sum;
    __syncthreads();
    sum = sum_of_lanes(lanes);

    const int64_t wanted = mine ? target(position) : 0;
    const bool known = 0 <= wanted && wanted < classes;
    if (mine && lane == 0)
      losses[position] = known ? std::log(sum) - (logit[wanted * pitch] - largest) : C(NAN);
    __syncthreads();  // the loss reads a logit that another lane changes
    for (int c = lane; mine && scale != C(0) && c < classes; c += kLossLanes) {
      const C probability = std::exp(logit[c * pitch] - largest) / sum;
      logit[c * pitch] = known ? (probability - C(c == wanted)) * scale : C(NAN);
    }
  }
}

}  // namespace convlm::cuda
