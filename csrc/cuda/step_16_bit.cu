#include "cuda/step_kernel.h"

namespace convlm::cuda {

#define CONVLM_INSTANTIATE(S) CONVLM_INSTANTIATE_STEP(S, S)
CONVLM_INSTANTIATE(bfloat16)
CONVLM_INSTANTIATE(float16)

}  // namespace convlm::cuda
