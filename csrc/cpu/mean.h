// The mean of losses.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>

#include "operators.h"

namespace convlm::cpu {

// In float64, in order: the same bits for any number of threads.
template <class T>
void mean(const void* values, int64_t count, void* result) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<const T*>(values)[i];
  *static_cast<T*>(result) = static_cast<T>(sum / count);
}

inline void put_mean(ScalarType dtype, const void* losses, int64_t count, Tensor& result) {
  (dtype == ScalarType::float64 ? mean<double> : mean<float>)(losses, count,
                                                              result.mutable_data_ptr());
}

// Of a scalar in float32 or float64.
inline bool is_finite(const Tensor& loss) {
  return loss.element_size() == sizeof(double)
             ? std::isfinite(*static_cast<const double*>(loss.const_data_ptr()))
             : std::isfinite(*static_cast<const float*>(loss.const_data_ptr()));
}

}  // namespace convlm::cpu
