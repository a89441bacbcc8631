// The operators of embeddings by look-up, on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/take_steps.h"
#include "cpu/tokens.h"
#include "lookup_checks.h"
#include "operators.h"

namespace convlm::cpu {
namespace {

Tensor lookup(const Tensor& tokens, const Tensor& table, const std::optional<Tensor>& bias,
              int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
              const std::string& activation) {
  LookupArguments a{};
  a.geometry =
      check_lookup(tokens, table, bias ? &*bias : nullptr, stride, pad_left, pad_right, dilation);
  a.dtype = dtype_of(table);
  a.activation = activation_of("lookup", activation);
  a.tokens = read_tokens("lookup", "tokens", tokens, "vocab", table.size(1), Slot::tokens);
  const Tensor rows = torch::stable::contiguous(table);
  a.table = rows.const_data_ptr();
  if (bias) a.bias = operand(*bias);
  Tensor y = empty(table, {a.geometry.batch, a.geometry.out_channels, a.geometry.out_length});
  a.y = y.mutable_data_ptr();
  kernels().lookup(a);
  return y;
}

std::tuple<Tensor, Tensor> lookup_grad_table(const Tensor& grad_output, const Tensor& tokens,
                                             int64_t kernel_size, int64_t vocab, int64_t stride,
                                             int64_t pad_left, int64_t pad_right, int64_t dilation,
                                             bool with_bias) {
  GradTableArguments a{};
  a.geometry = check_lookup_grad_table(grad_output, tokens, kernel_size, vocab, stride, pad_left,
                                       pad_right, dilation);
  a.dtype = dtype_of(grad_output);
  a.tokens = read_tokens("lookup_grad_table", "tokens", tokens, "vocab", vocab, Slot::tokens);
  a.grad_output = operand(grad_output);
  Tensor table = empty(grad_output, {kernel_size, vocab, a.geometry.out_channels});
  Tensor bias = empty(grad_output, {with_bias ? a.geometry.out_channels : 0});
  a.grad_table = table.mutable_data_ptr();
  if (with_bias) a.grad_bias = bias.mutable_data_ptr();
  kernels().grad_table(a);
  return {table, bias};
}

// The strides of (out_channels, embedding_dim, kernel_size), also where that is laid out as
// (out_channels, 1, kernel_size * embedding_dim).
template <class Operand>
Operand by_tap(Operand operand, const Tensor& weight, int64_t embedding_dim) {
  if (weight.size(1) == embedding_dim) return operand;
  operand.stride[1] = operand.stride[2];
  operand.stride[2] *= embedding_dim;
  return operand;
}

CrossEntropyArguments cross_entropy_arguments(const char* function, const Tensor& tokens,
                                              const Tensor& target,
                                              const std::optional<Tensor>& rows,
                                              const Tensor& embedding, const Tensor& weight,
                                              const std::optional<Tensor>& bias, int64_t stride,
                                              int64_t pad_left, int64_t pad_right, int64_t dilation,
                                              bool of_steps = false) {
  CrossEntropyArguments a{};
  a.geometry =
      check_cross_entropy(function, tokens, target, rows ? &*rows : nullptr, embedding, weight,
                          bias ? &*bias : nullptr, stride, pad_left, pad_right, dilation, of_steps);
  a.dtype = dtype_of(weight);
  a.embedding_dim = embedding.size(1);
  Selection selection;
  if (rows) selection = select_rows(function, tokens, *rows);
  const Selection* selected = rows ? &selection : nullptr;
  a.tokens =
      read_tokens(function, "tokens", tokens, "vocab", embedding.size(0), Slot::tokens, selected);
  a.target = read_tokens(function, "target", target, "out_channels", weight.size(0), Slot::target,
                         selected);
  a.embedding = operand(embedding);
  a.weight = by_tap(operand(weight), weight, a.embedding_dim);
  if (bias) a.bias = operand(*bias);
  return a;
}

void put_gradients_into(CrossEntropyArguments& a, const Tensor& embedding, const Tensor& weight,
                        const Tensor* bias) {
  a.grad_embedding = writable(embedding);
  a.grad_weight = by_tap(writable(weight), weight, a.embedding_dim);
  if (bias != nullptr) a.grad_bias = writable(*bias);
}

// Of the dtype of `like`.
Tensor mean_loss(CrossEntropyArguments& a, const Tensor& like) {
  Tensor loss = empty(like, {});
  a.losses = scratch(Slot::losses, a.geometry.batch * a.geometry.out_length * like.element_size());
  a.gradient.mean = loss.mutable_data_ptr();
  kernels().cross_entropy(a);
  return loss;
}

Tensor lookup_losses(const Tensor& tokens, const Tensor& target, const Tensor& embedding,
                     const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride,
                     int64_t pad_left, int64_t pad_right, int64_t dilation) {
  CrossEntropyArguments a =
      cross_entropy_arguments("lookup_losses", tokens, target, std::nullopt, embedding, weight,
                              bias, stride, pad_left, pad_right, dilation);
  Tensor losses = empty(weight, {a.geometry.batch, a.geometry.out_length});
  a.losses = losses.mutable_data_ptr();
  kernels().cross_entropy(a);
  return losses;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lookup_cross_entropy(
    const Tensor& tokens, const Tensor& target, const std::optional<Tensor>& rows,
    const Tensor& embedding, const Tensor& weight, const std::optional<Tensor>& bias,
    int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation) {
  CrossEntropyArguments a =
      cross_entropy_arguments("lookup_cross_entropy", tokens, target, rows, embedding, weight, bias,
                              stride, pad_left, pad_right, dilation);
  Tensor grad_embedding = empty(weight, {embedding.size(0), embedding.size(1)});
  Tensor grad_weight = empty(weight, {weight.size(0), weight.size(1), weight.size(2)});
  Tensor grad_bias = empty(weight, {bias ? weight.size(0) : 0});
  put_gradients_into(a, grad_embedding, grad_weight, bias ? &grad_bias : nullptr);
  return {mean_loss(a, weight), grad_embedding, grad_weight, grad_bias};
}

Tensor lookup_sgd(const Tensor& tokens, const Tensor& target, const std::optional<Tensor>& rows,
                  const Tensor& embedding, const Tensor& weight, const std::optional<Tensor>& bias,
                  int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                  double lr) {
  constexpr const char* kName = "lookup_sgd_";
  CrossEntropyArguments all =
      cross_entropy_arguments(kName, tokens, target, rows, embedding, weight, bias, stride,
                              pad_left, pad_right, dilation, true);
  check_not_expanded(kName, embedding, "embedding");
  check_not_expanded(kName, weight, "weight");
  if (bias) check_not_expanded(kName, *bias, "bias");
  put_gradients_into(all, embedding, weight, bias ? &*bias : nullptr);
  all.gradient = {nullptr, true, lr};
  return take_steps(weight, rows, all.geometry.batch, [&](int64_t first, int64_t count) {
    CrossEntropyArguments a = all;
    a.geometry.batch = count;
    a.tokens += first * a.geometry.length;
    a.target += first * a.geometry.out_length;
    return mean_loss(a, weight);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("lookup", TORCH_BOX(&lookup));
  m.impl("lookup_grad_table", TORCH_BOX(&lookup_grad_table));
  m.impl("lookup_losses", TORCH_BOX(&lookup_losses));
  m.impl("lookup_cross_entropy", TORCH_BOX(&lookup_cross_entropy));
  m.impl("lookup_sgd_", TORCH_BOX(&lookup_sgd));
}

}  // namespace convlm::cpu
