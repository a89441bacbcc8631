// Numbers as they are stored and as they are computed with.
#pragma once
#include <cstdint>
#include <cstring>

#include "arguments.h"
#include "cuda/launch.h"

namespace convlm::cuda {

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

__device__ __forceinline__ uint32_t bits_of(float value) {
#if defined(__CUDACC__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

__device__ __forceinline__ float float_of(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

__device__ __forceinline__ uint64_t bits_of(double value) {
#if defined(__CUDACC__)
  return static_cast<uint64_t>(__double_as_longlong(value));
#else
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

__device__ __forceinline__ double double_of(uint64_t bits) {
#if defined(__CUDACC__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

__device__ __forceinline__ float to_compute(float value) { return value; }
__device__ __forceinline__ double to_compute(double value) { return value; }
__device__ __forceinline__ float to_compute(bfloat16 value) {
  return float_of(uint32_t{value.bits} << 16);
}
__device__ __forceinline__ float to_compute(float16 value) {
#if defined(__CUDACC__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  return emulator::from_float16(value.bits);
#endif
}

// To the nearest, ties to even.
template <class S>
__device__ __forceinline__ S from_compute(Compute<S> value) {
  return value;
}
template <>
__device__ __forceinline__ bfloat16 from_compute<bfloat16>(float value) {
  bfloat16 result;
#if defined(__CUDACC__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  result.bits = emulator::to_bfloat16(value);
#endif
  return result;
}
template <>
__device__ __forceinline__ float16 from_compute<float16>(float value) {
  float16 result;
#if defined(__CUDACC__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  result.bits = emulator::to_float16(value);
#endif
  return result;
}

}  // namespace convlm::cuda
