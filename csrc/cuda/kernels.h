// Every kernel's launcher. Each gives the error of its launch, and allocates nothing: what a
// workspace must hold, in bytes, is asked first.
#pragma once
#include "cuda/problem.h"

namespace convlm::cuda {

template <class S>
cudaError_t correlate_direct(const Correlation<S>& p, cudaStream_t stream);
template <class S>
cudaError_t weight_gradient_direct(const WeightGradient<S>& p, cudaStream_t stream);

// On tensor cores; the factors are rounded to TF32 where they are float32. Not of float64.
template <class S>
int64_t implicit_gemm_workspace(const Correlation<S>& p);
template <class S>
cudaError_t correlate_implicit_gemm(const Correlation<S>& p, void* workspace, cudaStream_t stream);
template <class S>
int64_t implicit_gemm_workspace(const WeightGradient<S>& p);
template <class S>
cudaError_t weight_gradient_implicit_gemm(const WeightGradient<S>& p, void* workspace,
                                          cudaStream_t stream);

// Of float32 and float64, exactly.
template <class S>
int64_t register_tile_workspace(const Correlation<S>& p);
template <class S>
cudaError_t correlate_register_tile(const Correlation<S>& p, void* workspace, cudaStream_t stream);
template <class S>
int64_t register_tile_workspace(const WeightGradient<S>& p);
template <class S>
cudaError_t weight_gradient_register_tile(const WeightGradient<S>& p, void* workspace,
                                          cudaStream_t stream);

}  // namespace convlm::cuda
