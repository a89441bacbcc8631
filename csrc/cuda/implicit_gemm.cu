// A convolution as a product of matrices on tensor cores, without ever writing the matrix of
// windows.
#include "cuda/correlation_tiles.h"
#include "cuda/kernels.h"
#include "cuda/tensor_sums.h"
#include "cuda/weight_gradient_tiles.h"

namespace convlm::cuda {

template <class S>
int64_t implicit_gemm_workspace(const Correlation<S>& p) {
  return prefers_small_tiles(p.rows) ? correlation_workspace<TensorSums<S, 64>>(p)
                                     : correlation_workspace<TensorSums<S, 128>>(p);
}

template <class S>
cudaError_t correlate_implicit_gemm(const Correlation<S>& p, void* workspace, cudaStream_t stream) {
  return prefers_small_tiles(p.rows) ? correlate<TensorSums<S, 64>>(p, workspace, stream)
                                     : correlate<TensorSums<S, 128>>(p, workspace, stream);
}

template <class S>
int64_t implicit_gemm_workspace(const WeightGradient<S>& p) {
  return prefers_small_tiles(p.rows) ? weight_gradient_workspace<TensorSums<S, 64>>(p)
                                     : weight_gradient_workspace<TensorSums<S, 128>>(p);
}

template <class S>
cudaError_t weight_gradient_implicit_gemm(const WeightGradient<S>& p, void* workspace,
                                          cudaStream_t stream) {
  return prefers_small_tiles(p.rows) ? weight_gradient<TensorSums<S, 64>>(p, workspace, stream)
                                     : weight_gradient<TensorSums<S, 128>>(p, workspace, stream);
}

#define CONVLM_INSTANTIATE(S)                                                                  \
  template int64_t implicit_gemm_workspace<S>(const Correlation<S>&);                          \
  template cudaError_t correlate_implicit_gemm<S>(const Correlation<S>&, void*, cudaStream_t); \
  template int64_t implicit_gemm_workspace<S>(const WeightGradient<S>&);                       \
  template cudaError_t weight_gradient_implicit_gemm<S>(const WeightGradient<S>&, void*,       \
                                                        cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
