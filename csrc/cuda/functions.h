// The three functions on device memory, as the operators call them. All pointers are the device's;
// nothing is allocated and nothing waits.
#pragma once
#include "arguments.h"
#include "cuda/runtime.h"

namespace convlm::cuda {

cudaError_t forward(const ForwardArguments& arguments, cudaStream_t stream);
cudaError_t grad_input(const GradInputArguments& arguments, cudaStream_t stream);
cudaError_t grad_weight(const GradWeightArguments& arguments, cudaStream_t stream);

}  // namespace convlm::cuda
