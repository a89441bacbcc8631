// The three functions on device memory, as the operators call them. All pointers are the device's;
// nothing is allocated and nothing waits.
#pragma once
#include "arguments.h"
#include "cuda/runtime.h"
#include "cuda/select.h"

namespace convlm::cuda {

// Where a call runs. `workspace` has the bytes that workspace_bytes() asks for, aligned to 256.
struct Launch {
  Kernel kernel;  // one that can run the problem; kernel_for() chooses
  cudaStream_t stream;
  void* workspace;
};

int64_t workspace_bytes(const ForwardArguments& arguments, Kernel kernel);
int64_t workspace_bytes(const GradInputArguments& arguments, Kernel kernel);
int64_t workspace_bytes(const GradWeightArguments& arguments, Kernel kernel);

cudaError_t forward(const ForwardArguments& arguments, const Launch& launch);
cudaError_t grad_input(const GradInputArguments& arguments, const Launch& launch);
cudaError_t grad_weight(const GradWeightArguments& arguments, const Launch& launch);

}  // namespace convlm::cuda
