// Sixteen bytes at once: the widest access that a thread has.
#pragma once
#include "cuda/launch.h"
#include "cuda/numbers.h"

namespace convlm::cuda {

constexpr int kVectorBytes = 16;
template <class S>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(S));

template <class S>
struct alignas(kVectorBytes) Vector {
  S lanes[kVector<S>];
};

// How many elements past a multiple of 16 bytes base + offset is, which may be no address at all.
template <class S>
__device__ __forceinline__ int misalignment(const S* base, int64_t offset) {
  const uint64_t element = reinterpret_cast<uintptr_t>(base) / sizeof(S) + offset;
  return static_cast<int>(element % kVector<S>);
}

template <class S>
__device__ __forceinline__ Vector<S> load_vector(const S* address) {
#if !defined(__CUDACC__)
  emulator::check_access("load_vector", address, kVectorBytes, kVectorBytes, false);
#endif
  return *reinterpret_cast<const Vector<S>*>(address);
}

template <class S>
__device__ __forceinline__ void store_vector(S* address, const Vector<S>& vector) {
#if !defined(__CUDACC__)
  emulator::check_access("store_vector", address, kVectorBytes, kVectorBytes, false);
#endif
  *reinterpret_cast<Vector<S>*>(address) = vector;
}

// Four numbers of shared memory that lie together, such as the rows of one thread.
template <class C>
struct alignas(kVectorBytes) Four {
  C lanes[4];
};

template <class C>
__device__ __forceinline__ Four<C> load_four(const C* address) {
#if !defined(__CUDACC__)
  emulator::check_access("load_four", address, sizeof(Four<C>), kVectorBytes, true);
#endif
  return *reinterpret_cast<const Four<C>*>(address);
}

}  // namespace convlm::cuda
