// Where kernels meet their machine: a GPU under nvcc, the emulator of tests/cuda_emulator
// elsewhere.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

namespace convlm::cuda {

// The block's dynamic shared memory: the only kind that kernels use, so that the emulator can guard
// it.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

constexpr int64_t kMostBlocks = 2147483647;
constexpr int kSharedBytesToAsk = 48 * 1024;
constexpr size_t kMostParameterBytes = 32764;  // from CUDA 12.1 on

// Lets `kernel` have all the shared memory of a block of this device, however little a launch then
// asks for: the limit is one for all threads of the host, and must not be lowered between another's
// setting and launch.
inline cudaError_t allow_all_shared_memory(const void* kernel) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  return error;
}

// Starts `kernel` on min(blocks, kMostBlocks) blocks: where there may be more tiles than that, a
// kernel walks them in steps of gridDim.x.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kMostParameterBytes, "what a kernel may be told");
  if (blocks == 0) return cudaSuccess;
  if (shared_bytes > kSharedBytesToAsk) {
    const cudaError_t error = allow_all_shared_memory(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  const unsigned grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace convlm::cuda

#else

#include "cuda/runtime.h"

namespace convlm::cuda {

inline unsigned char* shared_memory() { return emulator::shared_memory(); }

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
                   cudaStream_t, const Arguments&... arguments) {
  emulator::run(reinterpret_cast<const void*>(kernel), blocks, threads, shared_bytes,
                [&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace convlm::cuda

#endif
