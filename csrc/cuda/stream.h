// What the operators on CUDA tensors share: torch's current stream, and errors of CUDA.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

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

}  // namespace convlm::cuda
