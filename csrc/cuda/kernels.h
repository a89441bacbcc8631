// Every kernel's launcher. Each gives the error of its launch, and allocates nothing.
#pragma once
#include "cuda/problem.h"

namespace convlm::cuda {

template <class S>
cudaError_t correlate_direct(const Correlation<S>& p, cudaStream_t stream);
template <class S>
cudaError_t weight_gradient_direct(const WeightGradient<S>& p, cudaStream_t stream);

}  // namespace convlm::cuda
