// The step of stochastic gradient descent on CPU tensors: a list of parameters in one call.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "operators.h"

namespace convlm::cpu {
namespace {

// Whether both lie in memory in the same order and without gaps, so that their elements pair up.
bool flat_alike(const Tensor& a, const Tensor& b) {
  std::vector<std::pair<int64_t, int64_t>> by_stride;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) == 1) continue;
    if (a.stride(i) != b.stride(i)) return false;
    by_stride.emplace_back(a.stride(i), a.size(i));
  }
  std::sort(by_stride.begin(), by_stride.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : by_stride) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Dimension by dimension down to the last one, whose elements are one call of the kernel.
void step_along(const Tensor& parameter, const Tensor& gradient, int64_t dimension, SgdArguments a,
                size_t element) {
  if (dimension == parameter.dim()) return kernels().sgd(a);
  a.count = parameter.size(dimension);
  a.parameter_stride = parameter.stride(dimension);
  a.gradient_stride = gradient.stride(dimension);
  if (dimension + 1 == parameter.dim()) return kernels().sgd(a);
  char* p = static_cast<char*>(a.parameter);
  const char* g = static_cast<const char*>(a.gradient);
  for (int64_t i = 0, size = a.count; i < size; ++i) {
    a.parameter = p + i * parameter.stride(dimension) * element;
    a.gradient = g + i * gradient.stride(dimension) * element;
    step_along(parameter, gradient, dimension + 1, a, element);
  }
}

void sgd(std::vector<Tensor> parameters, std::vector<Tensor> gradients, double lr) {
  check_sgd(parameters, gradients);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor &parameter = parameters[i], &gradient = gradients[i];
    SgdArguments a{dtype_of(parameter),          parameter.numel(),         1, 1,
                   parameter.mutable_data_ptr(), gradient.const_data_ptr(), lr};
    if (flat_alike(parameter, gradient))
      kernels().sgd(a);
    else
      step_along(parameter, gradient, 0, a, parameter.element_size());
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) { m.impl("sgd_", TORCH_BOX(&sgd)); }

}  // namespace convlm::cpu
