// What the emulated operators share.
#pragma once
#include "cuda/indices.h"
#include "guarded.h"

namespace convlm::cuda {

inline int bytes_of(ScalarType dtype) {
  return dtype == ScalarType::float64 ? 8 : dtype == ScalarType::float32 ? 4 : 2;
}

inline int bytes_of(const Indices& indices) { return indices.is_int64 ? 8 : 4; }

inline void guard_indices(emulator::GuardedCall& call, const char* name, Indices& indices,
                          int64_t length) {
  ConstTensor tensor{indices.data, {indices.row, indices.column, 0}};
  call.input(name, tensor, indices.row_count, length);
  indices.data = tensor.data;
}

}  // namespace convlm::cuda
