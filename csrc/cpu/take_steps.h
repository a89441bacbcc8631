// Steps of gradient descent, one or several in a call.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "operators.h"

namespace convlm::cpu {

// Whether a scalar in float32 or float64 is.
inline bool is_finite(const torch::stable::Tensor& loss) {
  return loss.element_size() == sizeof(double)
             ? std::isfinite(*static_cast<const double*>(loss.const_data_ptr()))
             : std::isfinite(*static_cast<const float*>(loss.const_data_ptr()));
}

// step(rows, null) for one list of rows or none; for several, (steps, batch), one after the other,
// and their losses (steps). The first one is given all of them, to refuse any before it changes
// something. After a loss that is not finite no further step is taken: NaN.
template <class Step>
torch::stable::Tensor take_steps(const torch::stable::Tensor& like,
                                 const std::optional<torch::stable::Tensor>& rows,
                                 const Step& step) {
  if (!rows || rows->dim() != 2) return step(rows, nullptr);
  torch::stable::Tensor losses = torch::stable::full(
      {rows->size(0)}, std::numeric_limits<double>::quiet_NaN(), like.scalar_type());
  char* out = static_cast<char*>(losses.mutable_data_ptr());
  for (int64_t i = 0; i < rows->size(0); ++i, out += losses.element_size()) {
    const torch::stable::Tensor loss =
        step(torch::stable::select(*rows, 0, i), i == 0 ? &*rows : nullptr);
    std::memcpy(out, loss.const_data_ptr(), losses.element_size());
    if (!is_finite(loss)) break;
  }
  return losses;
}

}  // namespace convlm::cpu
