#include "cuda/step_kernel.h"

namespace convlm::cuda {

#define CONVLM_INSTANTIATE(S, WEIGHT) CONVLM_INSTANTIATE_STEP(S, WEIGHT)
CONVLM_INSTANTIATE(float, float)
CONVLM_INSTANTIATE(float, bfloat16)
CONVLM_INSTANTIATE(double, double)

}  // namespace convlm::cuda
