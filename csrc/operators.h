// What the operators of every device do before and after their kernel: check, allocate the result,
// and describe the problem to the kernel.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>

#include "arguments.h"
#include "checks.h"
#include "names.h"

namespace convlm {

inline ScalarType dtype_of(const Tensor& t) {
  using Dtype = torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case Dtype::Float:
      return ScalarType::float32;
    case Dtype::Double:
      return ScalarType::float64;
    case Dtype::BFloat16:
      return ScalarType::bfloat16;
    case Dtype::Half:
      return ScalarType::float16;
    default:
      STD_TORCH_CHECK(false, "convlm: dtype must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
}

inline Precision precision_of(const char* function, const std::string& name) {
  const std::optional<Precision> precision = precision_named(name);
  STD_TORCH_CHECK(precision.has_value(), function, ": fp32_precision must be ieee or tf32, got '",
                  name, "'");
  return *precision;
}

inline Activation activation_of(const char* function, const std::string& name) {
  const std::optional<Activation> activation = activation_named(name);
  STD_TORCH_CHECK(activation.has_value(), function,
                  ": activation must be none, tanh, relu, silu, gelu or sigmoid, got '", name, "'");
  return *activation;
}

inline ConstTensor operand(const Tensor& t) {
  ConstTensor result{t.const_data_ptr(), {0, 0, 0}};
  const auto strides = t.strides();
  std::copy_n(strides.begin(), std::min<size_t>(strides.size(), 3), result.stride);
  return result;
}

inline MutableTensor writable(const Tensor& t) {
  MutableTensor result{t.mutable_data_ptr(), {0, 0, 0}};
  const auto strides = t.strides();
  std::copy_n(strides.begin(), std::min<size_t>(strides.size(), 3), result.stride);
  return result;
}

// Memory for a result, of the device of `like`, and of its dtype unless another is given. The
// new_empty of torch::stable finds its operator by name in every call, which takes longer than all
// the checks of one.
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    std::optional<int32_t> dtype = std::nullopt) {
  AtenTensorHandle handle = nullptr;
  check_allocated(
      aoti_torch_aten_new_empty(like.get(), sizes.data(), static_cast<int64_t>(sizes.size()),
                                dtype ? &*dtype : nullptr, nullptr, nullptr, 0, nullptr, &handle),
      sizes);
  return Tensor(handle);
}

inline Activated activated(const std::optional<Tensor>& y, Activation activation) {
  return {y ? operand(*y) : ConstTensor{}, activation};
}

// The arguments of a kernel, and the tensor that it writes.
template <class Arguments>
struct Call {
  Arguments arguments;
  Tensor result;
};

inline Call<ForwardArguments> forward_call(const Tensor& x, const Tensor& weight,
                                           const std::optional<Tensor>& bias, int64_t stride,
                                           int64_t pad_left, int64_t pad_right, int64_t dilation,
                                           int64_t groups, const std::string& fp32_precision,
                                           const std::string& activation) {
  const Tensor* b = bias ? &*bias : nullptr;
  ForwardArguments a{};
  a.geometry = check_forward(x, weight, b, stride, pad_left, pad_right, dilation, groups);
  a.dtype = dtype_of(x);
  a.precision = precision_of("forward", fp32_precision);
  a.activation = activation_of("forward", activation);
  Tensor y = empty(x, {a.geometry.batch, a.geometry.out_channels, a.geometry.out_length});
  a.x = operand(x);
  a.weight = operand(weight);
  if (b != nullptr) a.bias = operand(*b);
  a.y = y.mutable_data_ptr();
  return {a, std::move(y)};
}

inline Call<GradInputArguments> grad_input_call(const Tensor& grad_output, const Tensor& weight,
                                                int64_t length, int64_t stride, int64_t pad_left,
                                                int64_t pad_right, int64_t dilation, int64_t groups,
                                                const std::string& fp32_precision,
                                                const std::optional<Tensor>& y,
                                                const std::string& activation) {
  const NamedActivation named{activation_of("grad_input", activation), activation};
  GradInputArguments a{};
  a.geometry = check_grad_input(grad_output, weight, length, stride, pad_left, pad_right, dilation,
                                groups, y ? &*y : nullptr, named);
  a.dtype = dtype_of(grad_output);
  a.precision = precision_of("grad_input", fp32_precision);
  Tensor result = empty(grad_output, {a.geometry.batch, a.geometry.in_channels, length});
  a.grad_output = operand(grad_output);
  a.activated = activated(y, named.activation);
  a.weight = operand(weight);
  a.grad_input = result.mutable_data_ptr();
  return {a, std::move(result)};
}

struct GradWeightCall {
  GradWeightArguments arguments;
  Tensor weight, bias;
};

inline GradWeightCall grad_weight_call(const Tensor& grad_output, const Tensor& x,
                                       int64_t kernel_size, int64_t stride, int64_t pad_left,
                                       int64_t pad_right, int64_t dilation, int64_t groups,
                                       const std::string& fp32_precision, bool with_bias,
                                       const std::optional<Tensor>& y,
                                       const std::string& activation) {
  const NamedActivation named{activation_of("grad_weight", activation), activation};
  GradWeightArguments a{};
  a.geometry = check_grad_weight(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation,
                                 groups, y ? &*y : nullptr, named);
  a.dtype = dtype_of(x);
  a.precision = precision_of("grad_weight", fp32_precision);
  Tensor weight =
      empty(x, {a.geometry.out_channels, a.geometry.in_channels_per_group(), kernel_size});
  Tensor bias = empty(x, {with_bias ? a.geometry.out_channels : 0});
  a.grad_output = operand(grad_output);
  a.activated = activated(y, named.activation);
  a.x = operand(x);
  a.grad_weight = weight.mutable_data_ptr();
  if (with_bias) a.grad_bias = bias.mutable_data_ptr();
  return {a, std::move(weight), std::move(bias)};
}

}  // namespace convlm
