// What the emulated operators share.
#pragma once
#include "cuda/select.h"

namespace convlm::cuda {

// Of the GPU that is emulated.
Capability emulated_capability();

inline int bytes_of(ScalarType dtype) {
  return dtype == ScalarType::float64 ? 8 : dtype == ScalarType::float32 ? 4 : 2;
}

}  // namespace convlm::cuda
