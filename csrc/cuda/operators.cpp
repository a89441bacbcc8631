// The operators on CUDA tensors.
#include "operators.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/current.h"
#include "cuda/functions.h"

namespace convlm::cuda {
namespace {

// The workspace is torch's: its allocator knows of streams and of graphs that are being captured.
template <class Arguments>
void run(const char* name, cudaError_t (*function)(const Arguments&, const Launch&),
         const Arguments& arguments, const Tensor& like) {
  const Kernel kernel = kernel_for(arguments.geometry, arguments.dtype, arguments.precision);
  const int64_t bytes = workspace_bytes(arguments, kernel);
  const Tensor workspace = empty(like, {bytes}, aoti_torch_dtype_uint8());
  check(name, function(arguments, {kernel, current_stream(like), workspace.mutable_data_ptr()}));
}

Tensor cuda_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                    int64_t groups, const std::string& fp32_precision,
                    const std::string& activation) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  auto [arguments, y] = forward_call(x, weight, bias, stride, pad_left, pad_right, dilation, groups,
                                     fp32_precision, activation);
  run("forward", &forward, arguments, x);
  return y;
}

Tensor cuda_grad_input(const Tensor& grad_output, const Tensor& weight, int64_t length,
                       int64_t stride, int64_t pad_left, int64_t pad_right, int64_t dilation,
                       int64_t groups, const std::string& fp32_precision,
                       const std::optional<Tensor>& y, const std::string& activation) {
  const torch::stable::accelerator::DeviceGuard guard(grad_output.get_device_index());
  auto [arguments, result] =
      grad_input_call(grad_output, weight, length, stride, pad_left, pad_right, dilation, groups,
                      fp32_precision, y, activation);
  run("grad_input", &grad_input, arguments, grad_output);
  return result;
}

std::tuple<Tensor, Tensor> cuda_grad_weight(const Tensor& grad_output, const Tensor& x,
                                            int64_t kernel_size, int64_t stride, int64_t pad_left,
                                            int64_t pad_right, int64_t dilation, int64_t groups,
                                            const std::string& fp32_precision, bool with_bias,
                                            const std::optional<Tensor>& y,
                                            const std::string& activation) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  auto [arguments, weight, bias] =
      grad_weight_call(grad_output, x, kernel_size, stride, pad_left, pad_right, dilation, groups,
                       fp32_precision, with_bias, y, activation);
  run("grad_weight", &grad_weight, arguments, x);
  return {weight, bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CUDA, m) {
  m.impl("forward", TORCH_BOX(&cuda_forward));
  m.impl("grad_input", TORCH_BOX(&cuda_grad_input));
  m.impl("grad_weight", TORCH_BOX(&cuda_grad_weight));
}

}  // namespace convlm::cuda
