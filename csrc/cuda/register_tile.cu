// The same tiles as those of implicit_gemm.cu, multiplied in float32 or float64 itself.
#include "cuda/correlation_tiles.h"
#include "cuda/kernels.h"
#include "cuda/register_sums.h"
#include "cuda/weight_gradient_tiles.h"

namespace convlm::cuda {

template <class S>
int64_t register_tile_workspace(const Correlation<S>& p) {
  return correlation_workspace<RegisterSums<S>>(p);
}

template <class S>
cudaError_t correlate_register_tile(const Correlation<S>& p, void* workspace, cudaStream_t stream) {
  return correlate<RegisterSums<S>>(p, workspace, stream);
}

template <class S>
int64_t register_tile_workspace(const WeightGradient<S>& p) {
  return weight_gradient_workspace<RegisterSums<S>>(p);
}

template <class S>
cudaError_t weight_gradient_register_tile(const WeightGradient<S>& p, void* workspace,
                                          cudaStream_t stream) {
  return weight_gradient<RegisterSums<S>>(p, workspace, stream);
}

#define CONVLM_INSTANTIATE(S)                                                                  \
  template int64_t register_tile_workspace<S>(const Correlation<S>&);                          \
  template cudaError_t correlate_register_tile<S>(const Correlation<S>&, void*, cudaStream_t); \
  template int64_t register_tile_workspace<S>(const WeightGradient<S>&);                       \
  template cudaError_t weight_gradient_register_tile<S>(const WeightGradient<S>&, void*,       \
                                                        cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)

}  // namespace convlm::cuda
