// The operators of look-ups on a `Machine`, a GPU or the emulator, which has
//   static void run(LookupProblem, const Tensor& like);
//   static void run(GradTableProblem, const Tensor& like);
#pragma once
#include <tuple>

#include "cuda/lookup.h"
#include "cuda/tensor_indices.h"
#include "lookup_checks.h"
#include "operators.h"

namespace convlm::cuda {

template <class Machine>
Tensor lookup(const Tensor& tokens, const Tensor& table, const std::optional<Tensor>& bias,
              int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
              const std::string& activation) {
  LookupProblem p{};
  p.geometry =
      check_lookup(tokens, table, bias ? &*bias : nullptr, stride, pad_left, pad_right, dilation);
  p.dtype = dtype_of(table);
  p.activation = activation_of("lookup", activation);
  p.tokens = indices(tokens);
  p.table = operand(table);
  if (bias) p.bias = operand(*bias);
  const Conv1dGeometry& g = p.geometry;
  Tensor y = empty(table, {g.batch, g.out_channels, g.out_length});
  p.y = y.mutable_data_ptr();
  Machine::run(p, table);
  return y;
}

template <class Machine>
std::tuple<Tensor, Tensor> lookup_grad_table(const Tensor& grad_output, const Tensor& tokens,
                                             int64_t kernel_size, int64_t vocab, int64_t stride,
                                             int64_t pad_left, int64_t pad_right, int64_t dilation,
                                             bool with_bias) {
  GradTableProblem p{};
  p.geometry = check_lookup_grad_table(grad_output, tokens, kernel_size, vocab, stride, pad_left,
                                       pad_right, dilation);
  p.dtype = dtype_of(grad_output);
  p.tokens = indices(tokens);
  p.grad_output = operand(grad_output);
  const int64_t channels = p.geometry.out_channels;
  Tensor table = empty(grad_output, {kernel_size, vocab, channels});
  Tensor bias = empty(grad_output, {with_bias ? channels : 0});
  p.grad_table = table.mutable_data_ptr();
  if (with_bias) p.grad_bias = bias.mutable_data_ptr();
  Machine::run(p, grad_output);
  return {table, bias};
}

}  // namespace convlm::cuda
