// Steps and generation on device memory, as the operators call them. All pointers are the device's,
// but that to the layers; nothing is allocated and nothing waits.
#pragma once
#include "cuda/runtime.h"
#include "step.h"

namespace convlm::cuda {

constexpr int64_t kMostStepLayers = 56;  // they are among the parameters of the kernel
// What a block keeps of a sample is counted in 32 bits: windows, sums and biases.
constexpr int64_t kMostStepNumbers = int64_t{1} << 28;
int64_t step_numbers(const StepArguments& arguments);  // no more than kMostStepLayers layers

constexpr int64_t kStepAlignment = 16;  // bytes, of the packed weights

struct StepLaunch {
  cudaStream_t stream;
  int64_t most_shared_bytes;  // of a block
  void* workspace;            // the bytes that step_workspace_bytes() asks for, aligned to 256
};

// A plain step is the generation of one position without `uniform`, by which none is drawn; `vocab`
// is the number of the embedding's rows.
int64_t step_workspace_bytes(const GenerateArguments& arguments, int64_t most_shared_bytes);
cudaError_t run_steps(const GenerateArguments& arguments, const StepLaunch& launch);

}  // namespace convlm::cuda
