// The weight's gradient of a small layer in one launch.
#include "cuda/kernels.h"
#include "cuda/small_gradient.h"

namespace convlm::cuda {
namespace {

using namespace small_gradient;

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>) small_gradient_kernel(SmallGradient<S> d) {
  const int64_t blocks = d.row_blocks * d.column_blocks;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x)
    make_piece(d, piece_of(d, block), d.p.batch);
}

}  // namespace

template <class S>
cudaError_t weight_gradient_small(const WeightGradient<S>& p, cudaStream_t stream) {
  const SmallGradient<S> d = plan(p);
  return launch(&small_gradient_kernel<S>, d.row_blocks * d.column_blocks, kThreads, d.shared_bytes,
                stream, d);
}

#define CONVLM_INSTANTIATE(S) \
  template cudaError_t weight_gradient_small<S>(const WeightGradient<S>&, cudaStream_t);
CONVLM_INSTANTIATE(float)
CONVLM_INSTANTIATE(double)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
