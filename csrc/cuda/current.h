// Where an operator runs: torch's current stream, on the device of its tensors.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/runtime.h"

// It is in the part of torch that a CPU build lacks: a weak reference lets this library load there.
#pragma weak aoti_torch_get_current_cuda_stream

namespace convlm::cuda {

inline cudaStream_t current_stream(const torch::stable::Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "convlm: this torch is a build without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check(const char* function, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, function, ": CUDA error: ", cudaGetErrorString(error));
}

// 10 * major + minor.
inline int capability_of(const char* function, int32_t device) {
  int major = 0, minor = 0;
  check(function, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(function, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

}  // namespace convlm::cuda
