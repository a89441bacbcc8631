// The CUDA operators on CPU tensors, run by the emulator. Their schemas are defined by whoever
// loads this: they are those of csrc/library.cpp.
#include "operators.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "cuda/functions.h"

namespace convlm::cuda {
namespace {

Capability capability = 90;
std::optional<Kernel> forced;

// The workspace starts as NaN, and is a buffer of its own, so that the sanitizer guards it.
template <class Arguments>
void run(cudaError_t (*function)(const Arguments&, const Launch&), const Arguments& arguments) {
  const Kernel kernel = forced.value_or(kernel_of(arguments, capability));
  const int64_t bytes = workspace_bytes(arguments, kernel);
  void* workspace = nullptr;
  if (posix_memalign(&workspace, 256, bytes > 0 ? bytes : 1) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, void (*)(void*)> owner(workspace, &std::free);
  std::memset(workspace, 0xff, bytes);
  if (function(arguments, {kernel, nullptr, workspace}) != cudaSuccess)
    throw std::invalid_argument("this kernel does not take these arguments");
}

Tensor emulated_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                        int64_t groups, const std::string& fp32_precision,
                        const std::string& activation) {
  auto [arguments, y] = forward_call(x, weight, bias, stride, pad_left, pad_right, dilation, groups,
                                     fp32_precision, activation);
  run(&forward, arguments);
  return y;
}

std::tuple<Tensor, Tensor> emulated_forward_with_state(const Tensor& x, const Tensor& weight,
                                                       const std::optional<Tensor>& bias,
                                                       const Tensor& state, int64_t dilation,
                                                       int64_t groups,
                                                       const std::string& fp32_precision,
                                                       const std::string& activation) {
  auto [arguments, y, new_state] =
      forward_with_state_call(x, weight, bias, state, dilation, groups, fp32_precision, activation);
  if (fits_depthwise(arguments.forward.geometry, arguments.forward.dtype)) {
    forward_with_state(arguments, nullptr);
    return {y, new_state};
  }
  const Tensor joined = join_state(state, x, new_state);
  read_joined(arguments.forward, joined);
  run(&forward, arguments.forward);
  return {y, new_state};
}

Tensor emulated_grad_input(const Tensor& grad_output, const Tensor& weight, int64_t length,
                           int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                           int64_t groups, const std::string& fp32_precision,
                           const std::optional<Tensor>& y, const std::string& activation) {
  auto [arguments, result] =
      grad_input_call(grad_output, weight, length, stride, pad_left, pad_right, dilation, groups,
                      fp32_precision, y, activation);
  run(&grad_input, arguments);
  return result;
}

std::tuple<Tensor, Tensor> emulated_grad_weight(const Tensor& grad_output, const Tensor& x,
                                                int64_t kernel_size, int64_t stride,
                                                int64_t pad_left, int64_t pad_right,
                                                int64_t dilation, int64_t groups,
                                                const std::string& fp32_precision, bool with_bias,
                                                const std::optional<Tensor>& y,
                                                const std::string& activation) {
  auto [arguments, weight, bias] =
      grad_weight_call(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation, groups,
                       fp32_precision, with_bias, y, activation);
  run(&grad_weight, arguments);
  return {weight, bias};
}

}  // namespace

// Of the GPU that is emulated, for tests that want another.
extern "C" __attribute__((visibility("default"))) void set_capability(int value) {
  capability = value;
}

// The kernel of all further calls, for tests of one where another would be chosen; null: as chosen.
// False where no kernel has that name.
extern "C" __attribute__((visibility("default"))) bool force_kernel(const char* name) {
  forced.reset();
  if (name == nullptr) return true;
  for (const Kernel kernel : kKernels)
    if (std::strcmp(name, name_of(kernel)) == 0) forced = kernel;
  return forced.has_value();
}

STABLE_TORCH_LIBRARY_IMPL(convlm_emulated, CPU, m) {
  m.impl("forward", TORCH_BOX(&emulated_forward));
  m.impl("forward_with_state", TORCH_BOX(&emulated_forward_with_state));
  m.impl("grad_input", TORCH_BOX(&emulated_grad_input));
  m.impl("grad_weight", TORCH_BOX(&emulated_grad_weight));
}

}  // namespace convlm::cuda
