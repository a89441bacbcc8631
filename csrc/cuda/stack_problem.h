// Fused stacks, as the operators call them. Nothing is allocated and nothing waits.
#pragma once
#include <vector>

#include "cuda/indices.h"
#include "cuda/runtime.h"
#include "stack.h"

namespace convlm::cuda {

// Forward to an `output`, `losses` or a `loss`; backward from a loss or a `grad_output`; or both. A
// token or a target that is out of range gives NaN.
struct StackProblem {
  bool forward = false, backward = false;
  StackArguments arguments{};  // what it writes is contiguous but for weights; links are not used
  std::vector<StackLayer> layers;
  std::vector<LayerTaps> taps;
  Indices tokens{}, target{};  // data is null without; the device checks their values
  int64_t vocab = 0;           // 0 without tokens
  void* loss = nullptr;        // the mean
  // Gradients are not written: lr times them is taken from the parameters, which stand in their
  // place, unless the loss is not finite.
  bool as_step = false;
  double lr = 0;
  // Each distinct context of a layer is computed once, so many to a block; 0: each position is.
  int64_t tile = 0;
  int64_t* row_counts = nullptr;  // of each layer: all that is wanted, if it is
};

// reason_stack_does_not_fit() must have none.
int64_t stack_workspace_bytes(const StackProblem& problem);
// `workspace` is aligned to 256 bytes.
cudaError_t run_stack(const StackProblem& problem, void* workspace, cudaStream_t stream);

}  // namespace convlm::cuda
