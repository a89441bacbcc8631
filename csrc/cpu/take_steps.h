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

// step(first, count), which returns a loss, of the examples that were read: of all of them, or for
// rows (steps, batch) of one batch after the other, and their losses (steps). After a loss that is
// not finite no further step is taken: NaN.
template <class Step>
torch::stable::Tensor take_steps(const torch::stable::Tensor& like,
                                 const std::optional<torch::stable::Tensor>& rows, int64_t examples,
                                 const Step& step) {
  if (!rows || rows->dim() != 2) return step(0, examples);
  const int64_t steps = rows->size(0), batch = rows->size(1);
  torch::stable::Tensor losses =
      torch::stable::full({steps}, std::numeric_limits<double>::quiet_NaN(), like.scalar_type());
  char* out = static_cast<char*>(losses.mutable_data_ptr());
  for (int64_t i = 0; i < steps; ++i, out += losses.element_size()) {
    const torch::stable::Tensor loss = step(i * batch, batch);
    std::memcpy(out, loss.const_data_ptr(), losses.element_size());
    if (!is_finite(loss)) break;
  }
  return losses;
}

}  // namespace convlm::cpu
