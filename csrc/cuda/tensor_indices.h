// Tensors of tokens, or of classes, as kernels read them.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cuda/indices.h"

namespace convlm::cuda {

inline Indices indices(const torch::stable::Tensor& t,
                       const std::optional<torch::stable::Tensor>& rows = std::nullopt) {
  const bool is_int64 = t.scalar_type() == torch::headeronly::ScalarType::Long;
  Indices result{t.const_data_ptr(), is_int64, t.stride(0), t.stride(1), t.size(0), nullptr, 0};
  if (rows) {
    result.rows = static_cast<const int64_t*>(rows->const_data_ptr());
    result.rows_step = rows->stride(0);
  }
  return result;
}

}  // namespace convlm::cuda
