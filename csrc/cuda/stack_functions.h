// The stack operators on a `Machine`, a GPU or the emulator, which has
//   static int32_t capability(const Tensor& like);
//   static int64_t least_products_to_share();
//   static void run(const char* function, const StackProblem& problem, const Tensor& like);
#pragma once
#include <tuple>

#include "cuda/shared_fits.h"
#include "cuda/stack_problem.h"
#include "cuda/tensor_indices.h"
#include "stack_call.h"

namespace convlm::cuda {

// `share` allows it; sizes decide.
template <class Machine>
void run_on(const char* function, StackCall& call, StackProblem& problem, const Tensor& x,
            const OptionalTensor& tokens, bool share, const OptionalTensor& rows = std::nullopt) {
  problem.arguments = call.arguments();
  problem.layers = call.layers();
  problem.taps = call.taps();
  if (tokens) {
    problem.tokens = indices(*tokens, rows);
    problem.vocab = x.size(0);
  }
  const auto& [layers, taps, vocab, a] =
      std::tie(problem.layers, problem.taps, problem.vocab, problem.arguments);
  const int capability = Machine::capability(x);
  const std::string reason = reason_stack_does_not_fit(layers, taps, vocab, a.dtype, capability);
  STD_TORCH_CHECK(reason.empty(), function, ": this stack cannot be fused: ", reason);
  if (share && reason_contexts_not_shared(layers, taps, vocab, a.batch, a.dtype, capability,
                                          Machine::least_products_to_share())
                   .empty())
    problem.tile = tile_of_rows(layers, taps, vocab, a.dtype, capability);
  Machine::run(function, problem, x);
}

template <class Machine>
std::tuple<Tensor, Tensor> stack_forward(const Tensor& x, const OptionalTensor& tokens,
                                         Tensors weights, Tensors biases,
                                         std::vector<int64_t> settings, bool share, bool save) {
  StackCall call("stack_forward", x, tokens, weights, biases, settings);
  StackArguments& a = call.arguments();
  Tensor y = empty(x, {a.batch, call.last().out_channels(), a.out_length});
  Tensor saved = bytes_like(x, save ? call.saved_size(x) : 0);
  a.output = y.mutable_data_ptr();
  a.saved = save ? saved.mutable_data_ptr() : nullptr;
  StackProblem problem;
  problem.forward = true;
  run_on<Machine>("stack_forward", call, problem, x, tokens, share);
  return {y, saved};
}

template <class Machine>
Tensors stack_backward(const Tensor& grad_output, const Tensor& saved, const Tensor& x,
                       const OptionalTensor& tokens, Tensors weights, Tensors biases,
                       std::vector<int64_t> settings, bool share, bool with_x) {
  StackCall call("stack_backward", x, tokens, weights, biases, settings);
  call.check_gradient(grad_output, saved, x);
  StackArguments& a = call.arguments();
  a.grad_output = operand(grad_output);
  a.saved = const_cast<void*>(saved.const_data_ptr());
  Tensors results = call.allocate_gradients(x, weights, biases, with_x);
  StackProblem problem;
  problem.backward = true;
  run_on<Machine>("stack_backward", call, problem, x, tokens, share);
  return results;
}

template <class Machine>
std::tuple<Tensor, Tensors> stack_cross_entropy(const Tensor& x, const Tensor& tokens,
                                                const Tensor& target, Tensors weights,
                                                Tensors biases, std::vector<int64_t> settings,
                                                bool share) {
  StackCall call("stack_cross_entropy", x, tokens, weights, biases, settings);
  call.check_target("stack_cross_entropy", x, tokens, target);
  Tensor loss = empty(x, {});
  Tensors results = call.allocate_gradients(x, weights, biases, true);
  StackProblem problem;
  problem.forward = problem.backward = true;
  problem.target = indices(target);
  problem.loss = loss.mutable_data_ptr();
  run_on<Machine>("stack_cross_entropy", call, problem, x, tokens, share);
  return {loss, results};
}

template <class Machine>
Tensor stack_sgd(const Tensor& x, const Tensor& tokens, const Tensor& target,
                 const OptionalTensor& rows, Tensors weights, Tensors biases,
                 std::vector<int64_t> settings, bool share, double lr) {
  StackCall call("stack_sgd_", x, tokens, weights, biases, settings, rows);
  call.check_target("stack_sgd_", x, tokens, target);
  call.take_parameters("stack_sgd_", x, weights, biases);
  Tensor loss = empty(x, {});
  StackProblem problem;
  problem.forward = problem.backward = true;
  problem.target = indices(target, rows);
  problem.loss = loss.mutable_data_ptr();
  problem.as_step = true;
  problem.lr = lr;
  run_on<Machine>("stack_sgd_", call, problem, x, tokens, share, rows);
  return loss;
}

template <class Machine>
Tensor stack_losses(const Tensor& x, const Tensor& tokens, const Tensor& target, Tensors weights,
                    Tensors biases, std::vector<int64_t> settings, bool share) {
  StackCall call("stack_losses", x, tokens, weights, biases, settings);
  call.check_target("stack_losses", x, tokens, target);
  StackArguments& a = call.arguments();
  Tensor losses = empty(x, {a.batch, a.out_length});
  a.losses = losses.mutable_data_ptr();
  StackProblem problem;
  problem.forward = true;
  problem.target = indices(target);
  run_on<Machine>("stack_losses", call, problem, x, tokens, share);
  return losses;
}

// How many rows each layer has, as forward and backward number them.
template <class Machine>
Tensor stack_rows(const Tensor& x, const Tensor& tokens, Tensors weights, Tensors biases,
                  std::vector<int64_t> settings, bool share) {
  StackCall call("stack_rows", x, tokens, weights, biases, settings);
  Tensor rows = empty(tokens, {call.arguments().depth}, aoti_torch_dtype_int64());
  StackProblem problem;
  problem.row_counts = static_cast<int64_t*>(rows.mutable_data_ptr());
  run_on<Machine>("stack_rows", call, problem, x, tokens, share);
  return rows;
}

}  // namespace convlm::cuda
