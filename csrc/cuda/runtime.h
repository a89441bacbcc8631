// CUDA's own types: from its headers, or from the emulator where those are not used.
#pragma once
#if defined(CONVLM_CUDA_EMULATOR)
#include "emulator.h"
#else
#include <cuda_runtime_api.h>
#endif
