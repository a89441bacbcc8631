// What the stack operators of every device do before and after their kernels: check, allocate the
// results, and describe the call.
#pragma once
#include <algorithm>
#include <vector>

#include "stack_checks.h"

namespace convlm {

using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

constexpr int64_t kTileOfSavedRows = 32;  // at most

inline Tensor bytes_like(const Tensor& t, int64_t size) {
  return empty(t, {size}, aoti_torch_dtype_uint8());
}

// Of a row in the type that is computed with; rows begin at cache lines.
inline int64_t row_bytes(int64_t channels, const Tensor& t) {
  constexpr int64_t kLine = 64;
  const int64_t bytes = channels * std::max<int64_t>(4, t.element_size());
  return (bytes + kLine - 1) / kLine * kLine;
}

class StackCall {
 public:
  // `rows` names the rows of tokens and target that are the batch, or with `of_steps` those of
  // several steps, (steps, batch), together; without it, all are.
  StackCall(const char* function, const Tensor& x, const OptionalTensor& tokens,
            const Tensors& weights, const Tensors& biases, const std::vector<int64_t>& settings,
            const OptionalTensor& rows = std::nullopt, bool of_steps = false)
      : checks_(function, weights, biases, settings) {
    arguments_.dtype = dtype_of(x);
    arguments_.input = operand(x);
    arguments_.input_is_rows = tokens.has_value();
    if (tokens)
      check_tokens(function, x, *tokens, rows, of_steps);
    else
      check_x(function, x);
    arguments_.layers = checks_.layers_.data();
    arguments_.depth = static_cast<int64_t>(checks_.layers_.size());
    arguments_.out_length = taps().back().out_length;
  }

  StackArguments& arguments() { return arguments_; }
  std::vector<StackLayer>& layers() { return checks_.layers_; }
  const std::vector<LayerTaps>& taps() const { return checks_.taps_; }
  const StackLayer& last() const { return checks_.layers_.back(); }

  // For x (empty where it is not wanted), the weights, and the biases.
  Tensors allocate_gradients(const Tensor& x, const Tensors& weights, const Tensors& biases,
                             bool with_x) {
    Tensors results;
    results.push_back(with_x ? empty(x, x.sizes()) : empty(x, {0}));
    if (with_x) arguments_.grad_input = writable(results[0]);
    for (size_t i = 0; i < weights.size(); ++i) {
      results.push_back(torch::stable::empty_like(weights[i]));
      layers()[i].grad_weight = writable(results.back());
    }
    for (size_t i = 0; i < biases.size(); ++i) {
      results.push_back(empty(biases[i], {biases[i].numel()}));
      if (biases[i].numel() > 0) layers()[i].grad_bias = writable(results.back());
    }
    return results;
  }

  // In place of gradients: the parameters themselves are what is written.
  void take_parameters(const char* function, const Tensor& x, const Tensors& weights,
                       const Tensors& biases) {
    check_not_expanded(function, x, "x");
    arguments_.grad_input = writable(x);
    for (size_t i = 0; i < weights.size(); ++i) {
      check_not_expanded(function, weights[i], "weights[", i, "]");
      check_not_expanded(function, biases[i], "biases[", i, "]");
      layers()[i].grad_weight = writable(weights[i]);
      if (biases[i].numel() > 0) layers()[i].grad_bias = writable(biases[i]);
    }
  }

  void check_target(const char* function, const Tensor& x, const Tensor& tokens,
                    const Tensor& target) const {
    STD_TORCH_CHECK(
        arguments_.dtype == ScalarType::float32 || arguments_.dtype == ScalarType::float64,
        function, ": x must be float32 or float64, got ",
        torch::headeronly::toString(x.scalar_type()));
    check_indices(function, "target", target, "(batch, out_length)", "x", x);
    STD_TORCH_CHECK(target.size(0) == tokens.size(0) && target.size(1) == arguments_.out_length,
                    function, ": target must have the shape (", tokens.size(0), ", ",
                    arguments_.out_length, "), got ", shape_of(target));
  }

  void check_gradient(const Tensor& grad_output, const Tensor& saved, const Tensor& x) const {
    GeometryChecks("stack_backward", 1, 0, 0, 1, 1).same_kind("grad_output", grad_output, "x", x);
    STD_TORCH_CHECK(grad_output.dim() == 3 && grad_output.size(0) == arguments_.batch &&
                        grad_output.size(1) == last().out_channels() &&
                        grad_output.size(2) == arguments_.out_length,
                    "stack_backward: grad_output must have the shape (", arguments_.batch, ", ",
                    last().out_channels(), ", ", arguments_.out_length, "), got ",
                    shape_of(grad_output));
    STD_TORCH_CHECK(saved.scalar_type() == torch::headeronly::ScalarType::Byte &&
                        saved.is_contiguous() && saved.device() == x.device(),
                    "stack_backward: saved must be contiguous, of bytes, and on the device of x");
    STD_TORCH_CHECK(saved.numel() == saved_size(x), "stack_backward: saved must have ",
                    saved_size(x), " elements, got ", saved.numel());
  }

  // In bytes, and the same whether rows are shared or not: what is shared needs less, but may be in
  // whole tiles.
  int64_t saved_size(const Tensor& x) const {
    int64_t size = 0;
    for (size_t i = 0; i < taps().size(); ++i) {
      const StackLayer& layer = checks_.layers_[i];
      const int64_t rows = arguments_.batch * taps()[i].out_length + kTileOfSavedRows;
      size += rows * (row_bytes(layer.out_channels(), x) + row_bytes(layer.columns, x)) + 1024;
    }
    return size;
  }

 protected:
  StackArguments arguments_{};

 private:
  void check_x(const char* function, const Tensor& x) {
    GeometryChecks(function, 1, 0, 0, 1, 1)
        .three_dimensional("x", x, "(batch, in_channels, length)");
    arguments_.batch = x.size(0);
    arguments_.length = x.size(2);
    checks_.layers("x", x, x.size(1), x.size(2));
  }

  void check_tokens(const char* function, const Tensor& embedding, const Tensor& tokens,
                    const OptionalTensor& rows, bool of_steps) {
    STD_TORCH_CHECK(embedding.dim() == 2, function,
                    ": x, the embedding of the tokens, must have the two dimensions (vocab, "
                    "channels), got shape ",
                    shape_of(embedding));
    check_indices(function, "tokens", tokens, "(batch, length)", "x", embedding);
    if (rows) check_rows(function, *rows, tokens, of_steps);
    arguments_.batch = rows ? rows->numel() : tokens.size(0);
    arguments_.length = tokens.size(1);
    checks_.layers("x", embedding, embedding.size(1), tokens.size(1));
  }

  StackChecks checks_;
};

}  // namespace convlm
