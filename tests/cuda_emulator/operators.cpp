// The CUDA operators on CPU tensors, run by the emulator. Their schemas are defined by whoever
// loads this: they are those of csrc/library.cpp.
#include "operators.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/functions.h"

namespace convlm::cuda {
namespace {

Tensor emulated_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                        int64_t groups, const std::string& fp32_precision,
                        const std::string& activation) {
  auto [arguments, y] = forward_call(x, weight, bias, stride, pad_left, pad_right, dilation, groups,
                                     fp32_precision, activation);
  forward(arguments, nullptr);
  return y;
}

Tensor emulated_grad_input(const Tensor& grad_output, const Tensor& weight, int64_t length,
                           int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                           int64_t groups, const std::string& fp32_precision) {
  auto [arguments, result] = grad_input_call(grad_output, weight, length, stride, pad_left,
                                             pad_right, dilation, groups, fp32_precision);
  grad_input(arguments, nullptr);
  return result;
}

std::tuple<Tensor, Tensor> emulated_grad_weight(const Tensor& grad_output, const Tensor& x,
                                                int64_t kernel_size, int64_t stride,
                                                int64_t pad_left, int64_t pad_right,
                                                int64_t dilation, int64_t groups,
                                                const std::string& fp32_precision, bool with_bias) {
  auto [arguments, weight, bias] =
      grad_weight_call(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation, groups,
                       fp32_precision, with_bias);
  grad_weight(arguments, nullptr);
  return {weight, bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm_emulated, CPU, m) {
  m.impl("forward", TORCH_BOX(&emulated_forward));
  m.impl("grad_input", TORCH_BOX(&emulated_grad_input));
  m.impl("grad_weight", TORCH_BOX(&emulated_grad_weight));
}

}  // namespace convlm::cuda
