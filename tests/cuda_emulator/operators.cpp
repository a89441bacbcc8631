// The CUDA operators on CPU tensors, run by the emulator. Their schemas are defined by whoever
// loads this: they are those of csrc/library.cpp.
#include "operators.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "cuda/functions.h"
#include "emulated.h"
#include "guarded.h"

namespace convlm::cuda {
namespace {

std::optional<Kernel> forced;

void guard(emulator::GuardedCall& call, ForwardArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  call.input("x", a.x, g.batch, g.in_channels, g.length);
  call.input("weight", a.weight, g.out_channels, g.in_channels_per_group(), g.kernel_size);
  call.input("bias", a.bias, g.out_channels);
  call.output("y", a.y, g.batch * g.out_channels * g.out_length);
}

void guard(emulator::GuardedCall& call, GradInputArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  call.input("grad_output", a.grad_output, g.batch, g.out_channels, g.out_length);
  call.input("y", a.activated.y, g.batch, g.out_channels, g.out_length);
  call.input("weight", a.weight, g.out_channels, g.in_channels_per_group(), g.kernel_size);
  call.output("grad_input", a.grad_input, g.batch * g.in_channels * g.length);
}

void guard(emulator::GuardedCall& call, GradWeightArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  call.input("grad_output", a.grad_output, g.batch, g.out_channels, g.out_length);
  call.input("y", a.activated.y, g.batch, g.out_channels, g.out_length);
  call.input("x", a.x, g.batch, g.in_channels, g.length);
  call.output("grad_weight", a.grad_weight,
              g.out_channels * g.in_channels_per_group() * g.kernel_size);
  call.output("grad_bias", a.grad_bias, g.out_channels);
}

template <class Arguments>
void run(cudaError_t (*function)(const Arguments&, const Launch&), Arguments arguments) {
  const Kernel kernel =
      forced.value_or(kernel_for(arguments.geometry, arguments.dtype, arguments.precision));
  emulator::GuardedCall call(bytes_of(arguments.dtype));
  guard(call, arguments);
  const emulator::Guarded workspace(workspace_bytes(arguments, kernel));
  if (function(arguments, {kernel, nullptr, workspace.data()}) != cudaSuccess)
    throw std::invalid_argument("this kernel does not take these arguments");
  call.finish();
  workspace.check("the workspace");
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

// The kernel of all further calls, for tests of one where another would be chosen; null: as chosen.
// False where no kernel has that name.
extern "C" __attribute__((visibility("default"))) bool force_kernel(const char* name) {
  forced.reset();
  if (name == nullptr) return true;
  for (const Kernel kernel : {Kernel::direct, Kernel::depthwise, Kernel::small,
                              Kernel::implicit_gemm, Kernel::register_tile})
    if (std::strcmp(name, name_of(kernel)) == 0) forced = kernel;
  return forced.has_value();
}

STABLE_TORCH_LIBRARY_IMPL(convlm_emulated, CPU, m) {
  m.impl("forward", TORCH_BOX(&emulated_forward));
  m.impl("grad_input", TORCH_BOX(&emulated_grad_input));
  m.impl("grad_weight", TORCH_BOX(&emulated_grad_weight));
}

}  // namespace convlm::cuda
