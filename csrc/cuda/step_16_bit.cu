#include "cuda/step_kernel.h"

namespace convlm::cuda {

CONVLM_INSTANTIATE_STEP(bfloat16, bfloat16)
CONVLM_INSTANTIATE_STEP(float16, float16)

}  // namespace convlm::cuda
