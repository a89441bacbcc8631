// Look-ups: sums of rows of a table, one row for each tap, and the gradient of the table. All
// pointers are the device's; nothing is allocated and nothing waits.
#pragma once
#include "arguments.h"
#include "cuda/indices.h"
#include "cuda/runtime.h"

namespace convlm::cuda {

// A token that is no word gives NaN.
struct LookupProblem {
  Conv1dGeometry geometry;  // its in_channels are the vocabulary
  ScalarType dtype;
  Indices tokens;
  ConstTensor table, bias;  // bias.data is null without one
  Activation activation;
  void* y;  // contiguous
};

// A token that is no word has no part in the gradient.
struct GradTableProblem {
  Conv1dGeometry geometry;
  ScalarType dtype;
  Indices tokens;
  ConstTensor grad_output;
  void* grad_table;  // contiguous
  void* grad_bias;   // contiguous, or null
};

cudaError_t look_up(const LookupProblem& problem, cudaStream_t stream);
cudaError_t add_up_table(const GradTableProblem& problem, cudaStream_t stream);

}  // namespace convlm::cuda
