// The operators on CPU tensors.
#include "operators.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"

namespace convlm::cpu {
namespace {

// The kernels take grad_output as it is: where an activation's derivative belongs to it, they get
// their product, which lives as long as the tensor returned.
template <class Arguments>
std::optional<Tensor> apply_derivative(const Tensor& grad_output, Arguments& a) {
  if (a.activated.activation == Activation::none) return std::nullopt;
  const Conv1dGeometry& g = a.geometry;
  Tensor product = empty(grad_output, {g.batch, g.out_channels, g.out_length});
  kernels().activation_gradient({a.dtype, g.batch, g.out_channels, g.out_length, a.grad_output,
                                 a.activated, product.mutable_data_ptr()});
  a.grad_output = operand(product);
  return product;
}

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
                  const std::string& fp32_precision, const std::optional<Tensor>& y,
                  const std::string& activation) {
  auto [arguments, result] =
      grad_input_call(grad_output, weight, length, stride, pad_left, pad_right, dilation, groups,
                      fp32_precision, y, activation);
  const std::optional<Tensor> product = apply_derivative(grad_output, arguments);
  kernels().grad_input(arguments);
  return result;
}

std::tuple<Tensor, Tensor> grad_weight(const Tensor& grad_output, const Tensor& x,
                                       int64_t kernel_size, int64_t stride, int64_t pad_left,
                                       int64_t pad_right, int64_t dilation, int64_t groups,
                                       const std::string& fp32_precision, bool with_bias,
                                       const std::optional<Tensor>& y,
                                       const std::string& activation) {
  auto [arguments, weight, bias] =
      grad_weight_call(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation, groups,
                       fp32_precision, with_bias, y, activation);
  const std::optional<Tensor> product = apply_derivative(grad_output, arguments);
  kernels().grad_weight(arguments);
  return {weight, bias};
}

std::tuple<Tensor, Tensor, Tensor> gradients(const Tensor& grad_output, const Tensor& x,
                                             const Tensor& weight, int64_t stride, int64_t pad_left,
                                             int64_t pad_right, int64_t dilation, int64_t groups,
                                             const std::string& fp32_precision, bool with_bias) {
  STD_TORCH_CHECK(
      x.dim() == 3 && weight.dim() == 3 && x.size(1) == weight.size(1) * groups,
      "gradients: x and weight must have three dimensions and the same channels, got shapes ",
      shape_of(x), " and ", shape_of(weight));
  auto [input, grad_x] = grad_input_call(grad_output, weight, x.size(2), stride, pad_left,
                                         pad_right, dilation, groups, fp32_precision, {}, "none");
  auto [parameters, grad_w, grad_b] =
      grad_weight_call(grad_output, x, weight.size(2), stride, pad_left, pad_right, dilation,
                       groups, fp32_precision, with_bias, {}, "none");
  kernels().gradients({input.dtype, input, parameters});
  return {grad_x, grad_w, grad_b};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("grad_input", TORCH_BOX(&grad_input));
  m.impl("grad_weight", TORCH_BOX(&grad_weight));
  m.impl("gradients", TORCH_BOX(&gradients));
}

}  // namespace convlm::cpu
