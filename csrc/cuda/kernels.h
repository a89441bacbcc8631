// Every kernel's launcher. Each gives the error of its launch, and allocates nothing.
#pragma once
#include "cuda/problem.h"

namespace convlm::cuda {

template <class S>
cudaError_t correlate_direct(const Correlation<S>& p, cudaStream_t stream);
template <class S>
cudaError_t weight_gradient_direct(const WeightGradient<S>& p, cudaStream_t stream);

// For what fits_depthwise() says.
template <class S>
cudaError_t correlate_depthwise(const Correlation<S>& p, cudaStream_t stream);
template <class S>
int64_t weight_gradient_depthwise_workspace(const WeightGradient<S>& p);
template <class S>
cudaError_t weight_gradient_depthwise(const WeightGradient<S>& p, void* workspace,
                                      cudaStream_t stream);

// For what fits_small() says.
template <class S>
cudaError_t correlate_small(const Correlation<S>& p, cudaStream_t stream);
template <class S>
cudaError_t weight_gradient_small(const WeightGradient<S>& p, cudaStream_t stream);

}  // namespace convlm::cuda
