// A stack that computes each distinct context of a layer once, or only counts them.
#pragma once
#include "cuda/stack_problem.h"

namespace convlm::cuda {

int64_t shared_stack_workspace_bytes(const StackProblem& problem);
cudaError_t run_shared_stack(const StackProblem& problem, void* workspace, cudaStream_t stream);

}  // namespace convlm::cuda
