// The operators on CPU tensors: check, allocate the result, call the kernel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"

namespace convlm::cpu {
namespace {

cpu::ScalarType dtype_of(const Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return cpu::ScalarType::float32;
    case ScalarType::Double:
      return cpu::ScalarType::float64;
    case ScalarType::BFloat16:
      return cpu::ScalarType::bfloat16;
    case ScalarType::Half:
      return cpu::ScalarType::float16;
    default:
      STD_TORCH_CHECK(false, "convlm: dtype must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "tanh") return Activation::tanh;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "sigmoid") return Activation::sigmoid;
  STD_TORCH_CHECK(false,
                  "forward: activation must be none, tanh, relu, silu, gelu or sigmoid, got '",
                  name, "'");
}

ConstTensor operand(const Tensor& t) {
  ConstTensor result{t.const_data_ptr(), {0, 0, 0}};
  for (int64_t i = 0; i < t.dim(); ++i) result.stride[i] = t.stride(i);
  return result;
}

Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
               int64_t groups, const std::string& activation) {
  const Tensor* b = bias ? &*bias : nullptr;
  ForwardArguments a{};
  a.geometry = check_forward(x, weight, b, stride, pad_left, pad_right, dilation, groups);
  a.dtype = dtype_of(x);
  a.activation = activation_of(activation);
  const Kernels& kernel = kernels();
  Tensor y = torch::stable::new_empty(
      x, {a.geometry.batch, a.geometry.out_channels, a.geometry.out_length});
  a.x = operand(x);
  a.weight = operand(weight);
  if (b != nullptr) a.bias = operand(*b);
  a.y = y.mutable_data_ptr();
  kernel.forward(a);
  return y;
}

Tensor grad_input(const Tensor& grad_output, const Tensor& weight, int64_t length, int64_t stride,
                  int64_t pad_left, int64_t pad_right, int64_t dilation, int64_t groups) {
  GradInputArguments a{};
  a.geometry =
      check_grad_input(grad_output, weight, length, stride, pad_left, pad_right, dilation, groups);
  a.dtype = dtype_of(grad_output);
  const Kernels& kernel = kernels();
  Tensor result =
      torch::stable::new_empty(grad_output, {a.geometry.batch, a.geometry.in_channels, length});
  a.grad_output = operand(grad_output);
  a.weight = operand(weight);
  a.grad_input = result.mutable_data_ptr();
  kernel.grad_input(a);
  return result;
}

std::tuple<Tensor, Tensor> grad_weight(const Tensor& grad_output, const Tensor& x,
                                       int64_t kernel_size, int64_t stride, int64_t pad_left,
                                       int64_t pad_right, int64_t dilation, int64_t groups,
                                       bool with_bias) {
  GradWeightArguments a{};
  a.geometry =
      check_grad_weight(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation, groups);
  a.dtype = dtype_of(x);
  const Kernels& kernel = kernels();
  Tensor weight = torch::stable::new_empty(
      x, {a.geometry.out_channels, a.geometry.in_channels_per_group(), kernel_size});
  Tensor bias = torch::stable::new_empty(x, {with_bias ? a.geometry.out_channels : 0});
  a.grad_output = operand(grad_output);
  a.x = operand(x);
  a.grad_weight = weight.mutable_data_ptr();
  if (with_bias) a.grad_bias = bias.mutable_data_ptr();
  kernel.grad_weight(a);
  return {weight, bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("grad_input", TORCH_BOX(&grad_input));
  m.impl("grad_weight", TORCH_BOX(&grad_weight));
}

}  // namespace convlm::cpu
