// Tokens and classes.
#pragma once
#include <cstdint>

#include "geometry.h"

namespace convlm::cuda {

// (row_count, length), int64 or int32. The batch is those that a list of rows names, or all.
struct Indices {
  const void* data;
  bool is_int64;
  int64_t row, column;  // strides
  int64_t row_count;
  const int64_t* rows;  // or null
  int64_t rows_step;

  // -1, which is no token, where the list names a row that does not exist.
  CONVLM_HOST_DEVICE int64_t at(int64_t i, int64_t j) const {
    if (rows != nullptr) i = rows[i * rows_step];
    if (i < 0 || i >= row_count) return -1;
    const int64_t offset = i * row + j * column;
    return is_int64 ? static_cast<const int64_t*>(data)[offset]
                    : static_cast<const int32_t*>(data)[offset];
  }
};

}  // namespace convlm::cuda
