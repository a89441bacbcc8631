#include "cuda/step_kernel.h"

namespace convlm::cuda {

CONVLM_INSTANTIATE_STEP(float, float)
CONVLM_INSTANTIATE_STEP(float, bfloat16)
CONVLM_INSTANTIATE_STEP(double, double)

}  // namespace convlm::cuda
