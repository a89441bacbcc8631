// The step of stochastic gradient descent for all parameters of a model.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace convlm::cpu {

// parameter -= lr * gradient for each pair, of one shape and dtype.
void step_parameters(const std::vector<torch::stable::Tensor>& parameters,
                     const std::vector<torch::stable::Tensor>& gradients, double lr);

}  // namespace convlm::cpu
