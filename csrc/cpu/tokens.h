// Tokens as the kernels read them: int64, contiguous, and known to be in range.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <type_traits>

#include "cpu/runtime.h"

namespace convlm::cpu {

using torch::stable::Tensor;

// A value below 0 or from `limit` on shows in the sign of one of these, and so in that of their
// disjunction: a pass without a branch.
inline uint64_t out_of_range(int64_t value, int64_t limit) {
  return static_cast<uint64_t>(value) |
         (static_cast<uint64_t>(limit - 1) - static_cast<uint64_t>(value));
}

// The rows of a (rows, columns) tensor that are read: all, or those that a list names.
struct Selection {
  int64_t count;
  const int64_t* row;  // null for all

  int64_t operator[](int64_t n) const { return row == nullptr ? n : row[n]; }
};

// Brings selected rows, which lie far apart in memory, into the cache. Loads wait for each other
// where they must, many at a time; of as many prefetches a processor drops those that it has no
// room for.
template <class Integer>
void touch(const Integer* in, const Selection& rows, int64_t columns, int64_t row_stride,
           int64_t column_stride) {
  constexpr int64_t kLine = 64 / sizeof(Integer);
  Integer touched = 0;
  for (int64_t n = 0; n < rows.count; ++n) {
    const Integer* row = in + rows[n] * row_stride;
    for (int64_t i = 0; i < columns; i += kLine) touched |= row[i * column_stride];
    if (columns > 0) touched |= row[(columns - 1) * column_stride];
  }
  __asm__ volatile("" : : "r"(touched));
}

template <class Integer>
void refuse_out_of_range(const char* function, const char* argument, const Tensor& t,
                         const Selection& rows, const char* limit_name, int64_t limit) {
  const Integer* in = static_cast<const Integer*>(t.const_data_ptr());
  for (int64_t n = 0; n < rows.count; ++n)
    for (int64_t i = 0; i < t.size(1); ++i) {
      const int64_t value = in[rows[n] * t.stride(0) + i * t.stride(1)];
      STD_TORCH_CHECK(0 <= value && value < limit, function, ": ", argument, " must lie in [0, ",
                      limit_name, " = ", limit, "), got ", value, " at (", rows[n], ", ", i, ")");
    }
}

template <class Integer>
const int64_t* read_tokens_as(const char* function, const char* argument, const Tensor& t,
                              const Selection& rows, const char* limit_name, int64_t limit,
                              Slot slot) {
  const Integer* in = static_cast<const Integer*>(t.const_data_ptr());
  const int64_t columns = t.size(1), row_stride = t.stride(0), column_stride = t.stride(1);
  const int64_t* result;
  uint64_t seen = 0;
  if (std::is_same_v<Integer, int64_t> && rows.row == nullptr && t.is_contiguous()) {
    result = reinterpret_cast<const int64_t*>(in);
    for (int64_t i = 0; i < rows.count * columns; ++i) seen |= out_of_range(in[i], limit);
  } else {
    int64_t* out = static_cast<int64_t*>(scratch(slot, sizeof(int64_t) * rows.count * columns));
    result = out;
    if (rows.row != nullptr) touch(in, rows, columns, row_stride, column_stride);
    for (int64_t n = 0; n < rows.count; ++n)
      for (int64_t i = 0; i < columns; ++i, ++out) {
        *out = in[rows[n] * row_stride + i * column_stride];
        seen |= out_of_range(*out, limit);
      }
  }
  if (seen >> 63) refuse_out_of_range<Integer>(function, argument, t, rows, limit_name, limit);
  return result;
}

// All or the selected rows of `t`, int64 or int32, whose values must lie in [0, limit).
inline const int64_t* read_tokens(const char* function, const char* argument, const Tensor& t,
                                  const char* limit_name, int64_t limit, Slot slot,
                                  const Selection* selection = nullptr) {
  const Selection rows = selection == nullptr ? Selection{t.size(0), nullptr} : *selection;
  return t.scalar_type() == torch::headeronly::ScalarType::Long
             ? read_tokens_as<int64_t>(function, argument, t, rows, limit_name, limit, slot)
             : read_tokens_as<int32_t>(function, argument, t, rows, limit_name, limit, slot);
}

// `rows` names rows of `t`, int64.
inline Selection select_rows(const char* function, const Tensor& t, const Tensor& rows) {
  const Tensor list = rows.dim() == 1 ? rows : torch::stable::flatten(rows);
  const int64_t count = list.size(0), stride = list.stride(0), limit = t.size(0);
  const int64_t* in = static_cast<const int64_t*>(list.const_data_ptr());
  int64_t* out = static_cast<int64_t*>(scratch(Slot::rows, sizeof(int64_t) * count));
  for (int64_t n = 0; n < count; ++n) {
    out[n] = in[n * stride];
    STD_TORCH_CHECK(0 <= out[n] && out[n] < limit, function, ": rows must lie in [0, ", limit,
                    "), got ", out[n], " at ", n);
  }
  return {count, out};
}

}  // namespace convlm::cpu
