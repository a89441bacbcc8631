// The operators of fused stacks on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/links.h"
#include "cpu/mean.h"
#include "cpu/sgd.h"
#include "cpu/tokens.h"
#include "stack_checks.h"

namespace convlm::cpu {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

// Samples that go through the layers together: their rows, and the gradients of these, stay in an
// L2 cache.
constexpr int64_t kGroupBytes = 256 * 1024;
constexpr int64_t kLine = 64;  // bytes; rows begin at cache lines

int64_t row_bytes(int64_t channels, const Tensor& t) {
  const int64_t bytes = channels * std::max<int64_t>(4, t.element_size());  // of the compute type
  return (bytes + kLine - 1) / kLine * kLine;
}

// A call of a stack operator: its checked arguments, linked.
class StackCall {
 public:
  // `rows` names the rows of tokens and target that are the batch, as a list; without it, all are.
  StackCall(const char* function, const Tensor& x, const OptionalTensor& tokens,
            const Tensors& weights, const Tensors& biases, const StackSettings& settings,
            bool share, bool in_groups, const OptionalTensor& rows = std::nullopt)
      : checks_(function, weights, biases, settings) {
    arguments_.dtype = dtype_of(x);
    arguments_.input = operand(x);
    arguments_.input_is_rows = tokens.has_value();
    if (tokens)
      check_tokens(function, x, *tokens, rows);
    else
      check_x(function, x);
    arguments_.layers = checks_.layers_.data();
    arguments_.depth = static_cast<int64_t>(checks_.layers_.size());
    arguments_.out_length = checks_.taps_.back().out_length;
    arguments_.group = in_groups ? samples_of_group(x) : arguments_.batch;
    take_links(function, tokens ? arguments_.batch : arguments_.group);
    if (tokens)
      arguments_.group = link_tokens(tokens_, arguments_.batch, arguments_.group, x.size(0),
                                     checks_.taps_, share, arguments_.layers);
    else
      for (int64_t i = 0; i < arguments_.depth; ++i)
        link_positions(checks_.taps_[i], arguments_.batch, arguments_.group, arguments_.layers[i]);
  }

  StackArguments& arguments() { return arguments_; }
  const StackLayer& last() const { return arguments_.layers[arguments_.depth - 1]; }
  std::vector<StackLayer>& layers() { return checks_.layers_; }

  // For x (empty where it is not wanted), the weights, and the biases.
  Tensors allocate_gradients(const Tensor& x, const Tensors& weights, const Tensors& biases,
                             bool with_x) {
    Tensors results;
    const std::vector<int64_t> x_sizes(x.sizes().begin(), x.sizes().end());
    results.push_back(torch::stable::new_empty(x, with_x ? x_sizes : std::vector<int64_t>{0}));
    if (with_x) arguments_.grad_input.data = results[0].mutable_data_ptr();
    for (size_t i = 0; i < weights.size(); ++i) {
      results.push_back(torch::stable::empty_like(weights[i]));
      layers()[i].grad_weight = writable(results.back());
    }
    for (size_t i = 0; i < biases.size(); ++i) {
      results.push_back(torch::stable::new_empty(biases[i], {biases[i].numel()}));
      if (biases[i].numel() > 0) layers()[i].grad_bias = writable(results.back());
    }
    return results;
  }

  void take_target(const char* function, const Tensor& tokens, const Tensor& target) {
    check_indices(function, "target", target, "(batch, out_length)");
    STD_TORCH_CHECK(target.size(0) == tokens.size(0) && target.size(1) == arguments_.out_length,
                    function, ": target must have the shape (", tokens.size(0), ", ",
                    arguments_.out_length, "), got ", shape_of(target));
    arguments_.target = read_tokens(function, "target", target, "out_channels",
                                    last().out_channels(), Slot::target, selected());
  }

  // In bytes, and the same whether rows are shared or not: what is shared needs less.
  int64_t saved_size(const Tensor& x) const {
    int64_t size = 0;
    for (int64_t i = 0; i < arguments_.depth; ++i) {
      const StackLayer& layer = arguments_.layers[i];
      const int64_t rows = arguments_.batch * checks_.taps_[i].out_length;
      size += rows * (row_bytes(layer.out_channels(), x) + row_bytes(layer.columns, x)) + 1024;
    }
    return size;
  }

 private:
  static MutableTensor writable(Tensor& t) {
    MutableTensor result{t.mutable_data_ptr(), {0, 0, 0}};
    for (int64_t i = 0; i < t.dim(); ++i) result.stride[i] = t.stride(i);
    return result;
  }

  static void check_indices(const char* function, const char* argument, const Tensor& t,
                            const char* dimensions) {
    using Dtype = torch::headeronly::ScalarType;
    STD_TORCH_CHECK(t.dim() == 2, function, ": ", argument, " must have the two dimensions ",
                    dimensions, ", got shape ", shape_of(t));
    STD_TORCH_CHECK(t.scalar_type() == Dtype::Long || t.scalar_type() == Dtype::Int, function, ": ",
                    argument, " must be int64 or int32, got ",
                    torch::headeronly::toString(t.scalar_type()));
  }

  void check_x(const char* function, const Tensor& x) {
    GeometryChecks(function, 1, 0, 0, 1, 1)
        .three_dimensional("x", x, "(batch, in_channels, length)");
    arguments_.batch = x.size(0);
    arguments_.length = x.size(2);
    checks_.layers("x", x, x.size(1), x.size(2));
  }

  void check_tokens(const char* function, const Tensor& embedding, const Tensor& tokens,
                    const OptionalTensor& rows) {
    STD_TORCH_CHECK(embedding.dim() == 2, function,
                    ": x, the embedding of the tokens, must have the two dimensions (vocab, "
                    "channels), got shape ",
                    shape_of(embedding));
    check_indices(function, "tokens", tokens, "(batch, length)");
    if (rows) {
      check_rows(function, *rows, tokens);
      selection_ = select_rows(function, tokens, *rows);
    }
    arguments_.batch = selection_ ? selection_->count : tokens.size(0);
    arguments_.length = tokens.size(1);
    checks_.layers("x", embedding, embedding.size(1), tokens.size(1));
    tokens_ = read_tokens(function, "tokens", tokens, "vocab", embedding.size(0), Slot::tokens,
                          selected());
  }

  const Selection* selected() const { return selection_ ? &*selection_ : nullptr; }

  int64_t samples_of_group(const Tensor& x) const {
    int64_t bytes = 0;
    for (size_t i = 0; i < checks_.layers_.size(); ++i)
      bytes += checks_.taps_[i].out_length * row_bytes(checks_.layers_[i].columns, x);
    return std::max<int64_t>(1, std::min(arguments_.batch, kGroupBytes / bytes));
  }

  void take_links(const char* function, int64_t samples) {
    int64_t size = 0;
    for (const Taps& taps : checks_.taps_) {
      const int64_t positions = samples * std::max(taps.in_length, taps.out_length);
      STD_TORCH_CHECK(positions <= INT32_MAX, function, ": rows are counted in 32 bits, got ",
                      positions, " positions");
      size += samples * taps.kernel_size * (taps.in_length + taps.out_length);
    }
    int32_t* at = static_cast<int32_t*>(scratch(Slot::links, sizeof(int32_t) * size));
    for (size_t i = 0; i < checks_.taps_.size(); ++i) {
      const Taps& taps = checks_.taps_[i];
      checks_.layers_[i].links = at;
      at += samples * taps.kernel_size * taps.out_length;
      checks_.layers_[i].readers = at;
      at += samples * taps.kernel_size * taps.in_length;
    }
  }

  StackChecks checks_;
  std::optional<Selection> selection_;
  const int64_t* tokens_ = nullptr;
  StackArguments arguments_{};
};

StackSettings settings_of(std::vector<int64_t> dilations, std::vector<int64_t> pads,
                          std::vector<std::string> activations, std::vector<int64_t> residuals) {
  return {std::move(dilations), std::move(pads), std::move(activations), std::move(residuals)};
}

Tensor bytes_like(const Tensor& t, int64_t size) {
  return torch::stable::new_empty(t, {size}, torch::headeronly::ScalarType::Byte);
}

void clear(Tensor& t) { std::memset(t.mutable_data_ptr(), 0, t.numel() * t.element_size()); }

std::tuple<Tensor, Tensor> stack_forward(const Tensor& x, const OptionalTensor& tokens,
                                         Tensors weights, Tensors biases,
                                         std::vector<int64_t> dilations, std::vector<int64_t> pads,
                                         std::vector<std::string> activations,
                                         std::vector<int64_t> residuals, bool share, bool save) {
  const StackSettings settings = settings_of(dilations, pads, activations, residuals);
  StackCall call("stack_forward", x, tokens, weights, biases, settings, share, true);
  StackArguments& a = call.arguments();
  Tensor y = torch::stable::new_empty(x, {a.batch, call.last().out_channels(), a.out_length});
  Tensor saved = bytes_like(x, save ? call.saved_size(x) : 0);
  a.output = y.mutable_data_ptr();
  a.saved = save ? saved.mutable_data_ptr() : nullptr;
  if (a.batch > 0) kernels().stack_forward(a);
  return {y, saved};
}

// The gradients of x (empty where it is not wanted), of the weights, and of the biases.
Tensors stack_backward(const Tensor& grad_output, const Tensor& saved, const Tensor& x,
                       const OptionalTensor& tokens, Tensors weights, Tensors biases,
                       std::vector<int64_t> dilations, std::vector<int64_t> pads,
                       std::vector<std::string> activations, std::vector<int64_t> residuals,
                       bool share, bool with_x) {
  const StackSettings settings = settings_of(dilations, pads, activations, residuals);
  const bool in_groups = !tokens.has_value();  // an embedding's gradient is that of the whole batch
  StackCall call("stack_backward", x, tokens, weights, biases, settings, share, in_groups);
  StackArguments& a = call.arguments();
  STD_TORCH_CHECK(grad_output.dim() == 3 && grad_output.size(0) == a.batch &&
                      grad_output.size(1) == call.last().out_channels() &&
                      grad_output.size(2) == a.out_length,
                  "stack_backward: grad_output must have the shape (", a.batch, ", ",
                  call.last().out_channels(), ", ", a.out_length, "), got ", shape_of(grad_output));
  STD_TORCH_CHECK(saved.numel() == call.saved_size(x), "stack_backward: saved must have ",
                  call.saved_size(x), " elements, got ", saved.numel());
  a.grad_output = operand(grad_output);
  a.saved = const_cast<void*>(saved.const_data_ptr());
  Tensors results = call.allocate_gradients(x, weights, biases, with_x);
  if (a.batch > 0)
    kernels().stack_backward(a);
  else
    for (Tensor& result : results) clear(result);
  return results;
}

// A call whose result is compared with a target.
StackCall loss_call(const char* function, const Tensor& x, const Tensor& tokens,
                    const Tensor& target, const OptionalTensor& rows, const Tensors& weights,
                    const Tensors& biases, const StackSettings& settings, bool share,
                    bool in_groups) {
  StackCall call(function, x, tokens, weights, biases, settings, share, in_groups, rows);
  STD_TORCH_CHECK(dtype_of(x) == ScalarType::float32 || dtype_of(x) == ScalarType::float64,
                  function, ": x must be float32 or float64, got ",
                  torch::headeronly::toString(x.scalar_type()));
  call.take_target(function, tokens, target);
  return call;
}

std::tuple<Tensor, Tensors> loss_with_gradients(const char* function, const Tensor& x,
                                                const Tensor& tokens, const Tensor& target,
                                                const OptionalTensor& rows, const Tensors& weights,
                                                const Tensors& biases,
                                                const StackSettings& settings, bool share) {
  StackCall call =
      loss_call(function, x, tokens, target, rows, weights, biases, settings, share, false);
  StackArguments& a = call.arguments();
  const int64_t positions = a.batch * a.out_length;
  Tensor loss = torch::stable::new_empty(x, {});
  Tensors results = call.allocate_gradients(x, weights, biases, true);
  a.losses = scratch(Slot::losses, positions * x.element_size());
  if (a.batch > 0)
    kernels().stack_loss(a);
  else
    for (Tensor& result : results) clear(result);
  put_mean(a.dtype, a.losses, positions, loss);
  return {loss, results};
}

std::tuple<Tensor, Tensors> stack_cross_entropy(const Tensor& x, const Tensor& tokens,
                                                const Tensor& target, Tensors weights,
                                                Tensors biases, std::vector<int64_t> dilations,
                                                std::vector<int64_t> pads,
                                                std::vector<std::string> activations,
                                                std::vector<int64_t> residuals, bool share) {
  const StackSettings settings = settings_of(dilations, pads, activations, residuals);
  return loss_with_gradients("stack_cross_entropy", x, tokens, target, std::nullopt, weights,
                             biases, settings, share);
}

Tensor stack_sgd(const Tensor& x, const Tensor& tokens, const Tensor& target,
                 const OptionalTensor& rows, Tensors weights, Tensors biases,
                 std::vector<int64_t> dilations, std::vector<int64_t> pads,
                 std::vector<std::string> activations, std::vector<int64_t> residuals, bool share,
                 double lr) {
  const StackSettings settings = settings_of(dilations, pads, activations, residuals);
  const auto [loss, gradients] =
      loss_with_gradients("stack_sgd_", x, tokens, target, rows, weights, biases, settings, share);
  if (!is_finite(loss)) return loss;
  Tensors parameters{x};
  parameters.insert(parameters.end(), weights.begin(), weights.end());
  parameters.insert(parameters.end(), biases.begin(), biases.end());
  step_parameters(parameters, gradients, lr);
  return loss;
}

Tensor stack_losses(const Tensor& x, const Tensor& tokens, const Tensor& target, Tensors weights,
                    Tensors biases, std::vector<int64_t> dilations, std::vector<int64_t> pads,
                    std::vector<std::string> activations, std::vector<int64_t> residuals,
                    bool share) {
  const StackSettings settings = settings_of(dilations, pads, activations, residuals);
  StackCall call = loss_call("stack_losses", x, tokens, target, std::nullopt, weights, biases,
                             settings, share, true);
  StackArguments& a = call.arguments();
  Tensor losses = torch::stable::new_empty(x, {a.batch, a.out_length});
  a.losses = losses.mutable_data_ptr();
  if (a.batch > 0) kernels().stack_loss(a);
  return losses;
}

// How many rows each layer of a stack over tokens has, as forward and backward number them.
Tensor stack_rows(const Tensor& x, const Tensor& tokens, Tensors weights, Tensors biases,
                  std::vector<int64_t> dilations, std::vector<int64_t> pads,
                  std::vector<std::string> activations, std::vector<int64_t> residuals,
                  bool share) {
  const StackSettings settings = settings_of(dilations, pads, activations, residuals);
  StackCall call("stack_rows", x, tokens, weights, biases, settings, share, false);
  Tensor rows = torch::stable::new_empty(tokens, {call.arguments().depth});
  int64_t* out = static_cast<int64_t*>(rows.mutable_data_ptr());
  for (const StackLayer& layer : call.layers()) *out++ = layer.out_rows;
  return rows;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("stack_forward", TORCH_BOX(&stack_forward));
  m.impl("stack_backward", TORCH_BOX(&stack_backward));
  m.impl("stack_cross_entropy", TORCH_BOX(&stack_cross_entropy));
  m.impl("stack_sgd_", TORCH_BOX(&stack_sgd));
  m.impl("stack_losses", TORCH_BOX(&stack_losses));
  m.impl("stack_rows", TORCH_BOX(&stack_rows));
}

}  // namespace convlm::cpu
