// The mean of losses.
#pragma once
#include <cstdint>

namespace convlm::cpu {

// In float64, in order: the same bits for any number of threads.
template <class T>
void mean(const void* values, int64_t count, void* result) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<const T*>(values)[i];
  *static_cast<T*>(result) = static_cast<T>(sum / count);
}

}  // namespace convlm::cpu
