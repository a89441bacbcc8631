// From tensors to a validated geometry. With the files that build on it for look-ups, stacks and
// steps, *_checks.h, this is where the native code raises.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "arguments.h"
#include "geometry.h"

namespace convlm {

using torch::stable::Tensor;

inline std::string shape_of(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

inline std::string shape_of(const Tensor& t) { return shape_of(t.sizes()); }

// What a call gave that allocates. Torch's own words for its failure do not pass through the
// stable ABI of torch 2.10; who looks for "out of memory" in them finds it here, too.
inline void check_allocated(AOTITorchError code, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  STD_TORCH_CHECK(code == AOTI_TORCH_SUCCESS,
                  "convlm: out of memory: cannot allocate a tensor of shape ", shape_of(sizes));
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

// Compared as torch numbers them: the types of torch::stable take several calls to make.
inline bool same_dtype(const Tensor& a, const Tensor& b) {
  int32_t of_a = 0, of_b = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(a.get(), &of_a));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(b.get(), &of_b));
  return of_a == of_b;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  int32_t of_a = 0, of_b = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(a.get(), &of_a));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(b.get(), &of_b));
  return of_a == of_b && a.get_device_index() == b.get_device_index();
}

// The activation of a gradient's y, and the word that named it.
struct NamedActivation {
  Activation activation;
  const std::string& name;
};

// `x` and `grad_output` are checked against the numbers that the caller gives, never trusted.
class GeometryChecks {
 public:
  GeometryChecks(const char* function, int64_t stride, int64_t pad_left, int64_t pad_right,
                 int64_t dilation, int64_t groups)
      : function_(function) {
    at_least("stride", stride, 1);
    at_least("pad_left", pad_left, 0);
    at_least("pad_right", pad_right, 0);
    at_least("dilation", dilation, 1);
    at_least("groups", groups, 1);
    geometry_.stride = stride;
    geometry_.pad_left = pad_left;
    geometry_.pad_right = pad_right;
    geometry_.dilation = dilation;
    geometry_.groups = groups;
  }

  void at_least(const char* argument, int64_t value, int64_t least) const {
    STD_TORCH_CHECK(value >= least, function_, ": ", argument, " must be at least ", least,
                    ", got ", value);
    // Sums and products of a few such numbers stay far from overflow.
    STD_TORCH_CHECK(value <= kLargest, function_, ": ", argument, " must be at most ", kLargest,
                    ", got ", value);
  }

  void three_dimensional(const char* argument, const Tensor& t, const char* dimensions) const {
    STD_TORCH_CHECK(t.dim() == 3, function_, ": ", argument, " must have the three dimensions ",
                    dimensions, ", got shape ", shape_of(t));
  }

  void same_kind(const char* argument, const Tensor& t, const char* other_argument,
                 const Tensor& other) const {
    STD_TORCH_CHECK(same_dtype(t, other), function_, ": ", argument, " and ", other_argument,
                    " must have one dtype, got ", torch::headeronly::toString(t.scalar_type()),
                    " and ", torch::headeronly::toString(other.scalar_type()));
    STD_TORCH_CHECK(same_device(t, other), function_, ": ", argument, " and ", other_argument,
                    " must be on one device");
  }

  void input(const Tensor& x) {
    three_dimensional("x", x, "(batch, in_channels, length)");
    geometry_.batch = x.size(0);
    geometry_.in_channels = x.size(1);
    geometry_.length = x.size(2);
  }

  void channels(int64_t in_channels, int64_t out_channels, int64_t kernel_size) {
    at_least("in_channels", in_channels, 1);
    at_least("out_channels", out_channels, 1);
    at_least("kernel_size", kernel_size, 1);
    STD_TORCH_CHECK(in_channels % geometry_.groups == 0, function_, ": in_channels (", in_channels,
                    ") must be divisible by groups (", geometry_.groups, ")");
    STD_TORCH_CHECK(out_channels % geometry_.groups == 0, function_, ": out_channels (",
                    out_channels, ") must be divisible by groups (", geometry_.groups, ")");
    geometry_.in_channels = in_channels;
    geometry_.out_channels = out_channels;
    geometry_.kernel_size = kernel_size;
  }

  void weight(const Tensor& weight) {
    three_dimensional("weight", weight, "(out_channels, in_channels / groups, kernel_size)");
    channels(weight.size(1) * geometry_.groups, weight.size(0), weight.size(2));
  }

  // `length` and the rest must be known; finds out_length.
  void outputs() {
    at_least("length", geometry_.length, 0);
    int64_t span = 0;
    STD_TORCH_CHECK(
        !__builtin_mul_overflow(geometry_.dilation, geometry_.kernel_size - 1, &span) &&
            span <= kLargest,
        function_, ": the kernel's span, dilation * (kernel_size - 1), must be at most ", kLargest,
        ", got dilation ", geometry_.dilation, " and kernel_size ", geometry_.kernel_size);
    geometry_.out_length =
        output_length(geometry_.length, geometry_.kernel_size, geometry_.stride, geometry_.dilation,
                      geometry_.pad_left, geometry_.pad_right);
    STD_TORCH_CHECK(geometry_.out_length >= 1, function_, ": the kernel spans ",
                    geometry_.dilation * (geometry_.kernel_size - 1) + 1,
                    " positions, which is greater than the padded input's ",
                    geometry_.length + geometry_.pad_left + geometry_.pad_right);
  }

  void grad_output(const Tensor& grad_output) const {
    three_dimensional("grad_output", grad_output, "(batch, out_channels, out_length)");
    STD_TORCH_CHECK(
        grad_output.size(0) == geometry_.batch && grad_output.size(1) == geometry_.out_channels &&
            grad_output.size(2) == geometry_.out_length,
        function_, ": grad_output must have the shape (", geometry_.batch, ", ",
        geometry_.out_channels, ", ", geometry_.out_length, "), got ", shape_of(grad_output));
  }

  // y and its activation come together, and only some derivatives can be told from y.
  void activated(const Tensor* y, const NamedActivation& named, const Tensor& grad_output) const {
    const auto& [activation, name] = named;
    STD_TORCH_CHECK(activation == Activation::none || derivative_needs_only_y(activation),
                    function_, ": activation must be none, tanh, relu or sigmoid, got '", name,
                    "'");
    STD_TORCH_CHECK((y != nullptr) == (activation != Activation::none), function_,
                    ": y must be given with an activation, and only then, got activation '", name,
                    y != nullptr ? "' with y" : "' without y");
    if (y == nullptr) return;
    same_kind("y", *y, "grad_output", grad_output);
    STD_TORCH_CHECK(y->dim() == 3 && y->size(0) == grad_output.size(0) &&
                        y->size(1) == grad_output.size(1) && y->size(2) == grad_output.size(2),
                    function_, ": y must have the shape of grad_output, ", shape_of(grad_output),
                    ", got ", shape_of(*y));
  }

  void bias(const Tensor& bias) const {
    STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == geometry_.out_channels, function_,
                    ": bias must have the shape (", geometry_.out_channels, "), got ",
                    shape_of(bias));
  }

  void in_channels_are(int64_t in_channels) const {
    STD_TORCH_CHECK(in_channels == geometry_.in_channels, function_, ": x has ", in_channels,
                    " channels, but weight with groups = ", geometry_.groups, " takes ",
                    geometry_.in_channels);
  }

  Conv1dGeometry geometry_{};

 protected:
  const char* function_;

 private:
  static constexpr int64_t kLargest = int64_t{1} << 40;
};

inline Conv1dGeometry check_forward(const Tensor& x, const Tensor& weight, const Tensor* bias,
                                    int64_t stride, int64_t pad_left, int64_t pad_right,
                                    int64_t dilation, int64_t groups) {
  GeometryChecks checks("forward", stride, pad_left, pad_right, dilation, groups);
  checks.same_kind("weight", weight, "x", x);
  checks.input(x);
  checks.weight(weight);
  checks.in_channels_are(x.size(1));
  if (bias != nullptr) {
    checks.same_kind("bias", *bias, "x", x);
    checks.bias(*bias);
  }
  checks.outputs();
  return checks.geometry_;
}

inline Conv1dGeometry check_grad_input(const Tensor& grad_output, const Tensor& weight,
                                       int64_t length, int64_t stride, int64_t pad_left,
                                       int64_t pad_right, int64_t dilation, int64_t groups,
                                       const Tensor* y, const NamedActivation& activation) {
  GeometryChecks checks("grad_input", stride, pad_left, pad_right, dilation, groups);
  checks.same_kind("weight", weight, "grad_output", grad_output);
  checks.weight(weight);
  checks.three_dimensional("grad_output", grad_output, "(batch, out_channels, out_length)");
  checks.geometry_.batch = grad_output.size(0);
  checks.geometry_.length = length;
  checks.outputs();
  checks.grad_output(grad_output);
  checks.activated(y, activation, grad_output);
  return checks.geometry_;
}

inline Conv1dGeometry check_grad_weight(const Tensor& grad_output, const Tensor& x,
                                        int64_t kernel_size, int64_t stride, int64_t pad_left,
                                        int64_t pad_right, int64_t dilation, int64_t groups,
                                        const Tensor* y, const NamedActivation& activation) {
  GeometryChecks checks("grad_weight", stride, pad_left, pad_right, dilation, groups);
  checks.same_kind("x", x, "grad_output", grad_output);
  checks.input(x);
  checks.three_dimensional("grad_output", grad_output, "(batch, out_channels, out_length)");
  checks.channels(x.size(1), grad_output.size(1), kernel_size);
  checks.outputs();
  checks.grad_output(grad_output);
  checks.activated(y, activation, grad_output);
  return checks.geometry_;
}

// Tokens and what is predicted of them; whether they are in the vocabulary is found where they are
// read.
inline void check_indices(const char* function, const char* argument, const Tensor& t,
                          const char* dimensions, const char* other_argument, const Tensor& other) {
  using Dtype = torch::headeronly::ScalarType;
  STD_TORCH_CHECK(t.dim() == 2, function, ": ", argument, " must have the two dimensions ",
                  dimensions, ", got shape ", shape_of(t));
  STD_TORCH_CHECK(t.scalar_type() == Dtype::Long || t.scalar_type() == Dtype::Int, function, ": ",
                  argument, " must be int64 or int32, got ",
                  torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(same_device(t, other), function, ": ", argument, " and ", other_argument,
                  " must be on one device");
}

// `rows` names rows of `tokens`, with `of_steps` perhaps those of several steps; whether they exist
// is found where they are read.
inline void check_rows(const char* function, const Tensor& rows, const Tensor& tokens,
                       bool of_steps) {
  using Dtype = torch::headeronly::ScalarType;
  STD_TORCH_CHECK(
      (rows.dim() == 1 || (of_steps && rows.dim() == 2)) && rows.scalar_type() == Dtype::Long,
      function, ": rows must have one dimension", of_steps ? ", or (steps, batch)," : "",
      " and be int64, got shape ", shape_of(rows), " and ",
      torch::headeronly::toString(rows.scalar_type()));
  STD_TORCH_CHECK(same_device(rows, tokens), function, ": rows and tokens must be on one device");
}

// Of what is changed in place.
template <class... Words>
void check_not_expanded(const char* function, const Tensor& t, const Words&... name) {
  for (int64_t d = 0; d < t.dim(); ++d)
    STD_TORCH_CHECK(t.stride(d) != 0 || t.size(d) <= 1, function, ": ", name...,
                    " must not be expanded: several of its elements are one in memory");
}

inline void check_sgd(const std::vector<Tensor>& parameters, const std::vector<Tensor>& gradients) {
  STD_TORCH_CHECK(parameters.size() == gradients.size(),
                  "sgd_: there must be a gradient for each parameter, got ", gradients.size(),
                  " for ", parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor &p = parameters[i], &g = gradients[i];
    STD_TORCH_CHECK(same_shape(p, g), "sgd_: gradient ", i, " must have the shape ", shape_of(p),
                    " of its parameter, got ", shape_of(g));
    STD_TORCH_CHECK(same_dtype(p, g), "sgd_: gradient ", i,
                    " and its parameter must have one dtype, got ",
                    torch::headeronly::toString(g.scalar_type()), " and ",
                    torch::headeronly::toString(p.scalar_type()));
    STD_TORCH_CHECK(same_device(p, g), "sgd_: gradient ", i,
                    " and its parameter must be on one device");
    check_not_expanded("sgd_", p, "parameter ", i);
  }
}

}  // namespace convlm
