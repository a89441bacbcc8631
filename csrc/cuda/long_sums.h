// Sums over a whole batch, however long. A register that adds up one number after another rounds
// each time, and numbers alike are all rounded the same way; so it takes a chain of a few, and
// chains are added up in float64.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace convlm::cuda {

constexpr int kChain = 128;

// Calls add(begin, stop) for i = first, first + step, ... below `end`, a chain of them at a time.
template <class Add>
__device__ __forceinline__ void for_each_chain(int64_t first, int64_t end, int64_t step,
                                               const Add& add) {
  for (; first < end; first += kChain * step) {
    const int64_t stop = first + kChain * step;
    add(first, stop < end ? stop : end);
  }
}

// The sum of term(i) for these.
template <class C, class Term>
__device__ __forceinline__ C sum_in_chains(int64_t first, int64_t end, int64_t step,
                                           const Term& term) {
  double sum = 0;
  for_each_chain(first, end, step, [&](int64_t begin, int64_t stop) {
    C chain = C(0);
#pragma unroll 4
    for (int64_t i = begin; i < stop; i += step) chain += term(i);
    sum += chain;
  });
  return static_cast<C>(sum);
}

}  // namespace convlm::cuda
