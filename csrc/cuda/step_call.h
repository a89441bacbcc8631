// What a step's operators do on a GPU before their kernel. Values are not looked at; shapes, and
// the plan, are.
#pragma once
#include "cuda/step_functions.h"
#include "step_checks.h"

namespace convlm::cuda {

inline void check_limits(const char* function, const StepArguments& a) {
  STD_TORCH_CHECK(a.layer_count <= kMostStepLayers, function, ": plan must have at most ",
                  kMostStepLayers, " layers on a GPU, got ", a.layer_count);
  STD_TORCH_CHECK(step_numbers(a) < kMostStepNumbers, function,
                  ": on a GPU the layers of plan must read and write fewer than ", kMostStepNumbers,
                  " numbers in a step, got ", step_numbers(a), " or more");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(a.weights) % kStepAlignment == 0, function,
                  ": weights must begin at a multiple of ", kStepAlignment, " bytes on a GPU");
}

struct StepCall {
  GenerateArguments arguments;
  Tensor y;
};

inline StepCall step_call_on_gpu(const Tensor& x, const std::optional<Tensor>& embedding,
                                 const Tensor& rings, const Tensor& position, const Tensor& weights,
                                 const Tensor& biases, const Tensor& plan, int64_t out_channels) {
  GenerateArguments a{};
  a.step = step_call(x, embedding, rings, position, weights, biases, plan, out_channels, false);
  check_limits("step", a.step);
  a.steps = 1;
  if (embedding) a.vocab = embedding->size(0);
  Tensor y = empty(rings, {a.step.batch, out_channels});
  a.step.y = y.mutable_data_ptr();
  return {a, std::move(y)};
}

struct GenerateCall {
  GenerateArguments arguments;
  Tensor generated;
};

inline GenerateCall generate_call_on_gpu(const Tensor& tokens, const Tensor& embedding,
                                         const Tensor& rings, const Tensor& position,
                                         const Tensor& weights, const Tensor& biases,
                                         const Tensor& plan,
                                         const std::optional<Tensor>& logit_bias,
                                         const Tensor& uniform, const Sampling& sampling) {
  GenerateArguments a = generate_call(tokens, embedding, rings, position, weights, biases, plan,
                                      logit_bias, uniform, sampling, false);
  check_limits("generate", a.step);
  Tensor generated = empty(tokens, {a.step.batch, a.steps});
  a.generated = static_cast<int64_t*>(generated.mutable_data_ptr());
  return {a, std::move(generated)};
}

}  // namespace convlm::cuda
