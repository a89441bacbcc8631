// The operators on CPU tensors.
#include "operators.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"

namespace convlm::cpu {
namespace {

Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
               int64_t groups, const std::string& fp32_precision, const std::string& activation) {
  auto [arguments, y] = forward_call(x, weight, bias, stride, pad_left, pad_right, dilation, groups,
                                     fp32_precision, activation);
  kernels().forward(arguments);
  return y;
}

Tensor grad_input(const Tensor& grad_output, const Tensor& weight, int64_t length, int64_t stride,
                  int64_t pad_left, int64_t pad_right, int64_t dilation, int64_t groups,
                  const std::string& fp32_precision) {
  auto [arguments, result] = grad_input_call(grad_output, weight, length, stride, pad_left,
                                             pad_right, dilation, groups, fp32_precision);
  kernels().grad_input(arguments);
  return result;
}

std::tuple<Tensor, Tensor> grad_weight(const Tensor& grad_output, const Tensor& x,
                                       int64_t kernel_size, int64_t stride, int64_t pad_left,
                                       int64_t pad_right, int64_t dilation, int64_t groups,
                                       const std::string& fp32_precision, bool with_bias) {
  auto [arguments, weight, bias] =
      grad_weight_call(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation, groups,
                       fp32_precision, with_bias);
  kernels().grad_weight(arguments);
  return {weight, bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("grad_input", TORCH_BOX(&grad_input));
  m.impl("grad_weight", TORCH_BOX(&grad_weight));
}

}  // namespace convlm::cpu
