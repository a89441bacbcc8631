#include <cstdint>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/runtime.h"

#define CONVLM_ISA generic
#define CONVLM_VECTOR_BYTES 16
#include "cpu/kernels.inl"
