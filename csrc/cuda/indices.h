// Tokens and classes.
#pragma once
#include <cstdint>

#include "geometry.h"

namespace convlm::cuda {

// (batch, length), int64 or int32.
struct Indices {
  const void* data;
  bool is_int64;
  int64_t row, column;  // strides

  CONVLM_HOST_DEVICE int64_t at(int64_t i, int64_t j) const {
    const int64_t offset = i * row + j * column;
    return is_int64 ? static_cast<const int64_t*>(data)[offset]
                    : static_cast<const int32_t*>(data)[offset];
  }
};

}  // namespace convlm::cuda
