// Tokens as the kernels read them: int64, contiguous, and known to be in range.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/runtime.h"

namespace convlm::cpu {

using torch::stable::Tensor;

// A value below 0 or from `limit` on shows in the sign of one of these, and so in that of their
// disjunction: a pass without a branch.
inline uint64_t out_of_range(int64_t value, int64_t limit) {
  return static_cast<uint64_t>(value) |
         (static_cast<uint64_t>(limit - 1) - static_cast<uint64_t>(value));
}

template <class Integer>
void refuse_out_of_range(const char* function, const char* argument, const Tensor& t,
                         const char* limit_name, int64_t limit) {
  const Integer* in = static_cast<const Integer*>(t.const_data_ptr());
  for (int64_t n = 0; n < t.size(0); ++n)
    for (int64_t i = 0; i < t.size(1); ++i) {
      const int64_t value = in[n * t.stride(0) + i * t.stride(1)];
      STD_TORCH_CHECK(0 <= value && value < limit, function, ": ", argument, " must lie in [0, ",
                      limit_name, " = ", limit, "), got ", value, " at (", n, ", ", i, ")");
    }
}

template <class Integer>
const int64_t* read_tokens_as(const char* function, const char* argument, const Tensor& t,
                              const char* limit_name, int64_t limit, Slot slot) {
  const Integer* in = static_cast<const Integer*>(t.const_data_ptr());
  const int64_t rows = t.size(0), columns = t.size(1);
  uint64_t seen = 0;
  if constexpr (sizeof(Integer) == sizeof(int64_t)) {
    if (t.is_contiguous()) {
      for (int64_t i = 0; i < rows * columns; ++i) seen |= out_of_range(in[i], limit);
      if (seen >> 63) refuse_out_of_range<Integer>(function, argument, t, limit_name, limit);
      return in;
    }
  }
  int64_t* out = static_cast<int64_t*>(scratch(slot, sizeof(int64_t) * rows * columns));
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t value = in[n * t.stride(0) + i * t.stride(1)];
      seen |= out_of_range(value, limit);
      out[n * columns + i] = value;
    }
  if (seen >> 63) refuse_out_of_range<Integer>(function, argument, t, limit_name, limit);
  return out;
}

// `t` is (rows, columns), int64 or int32; every value must lie in [0, limit).
inline const int64_t* read_tokens(const char* function, const char* argument, const Tensor& t,
                                  const char* limit_name, int64_t limit, Slot slot) {
  return t.scalar_type() == torch::headeronly::ScalarType::Long
             ? read_tokens_as<int64_t>(function, argument, t, limit_name, limit, slot)
             : read_tokens_as<int32_t>(function, argument, t, limit_name, limit, slot);
}

}  // namespace convlm::cpu
