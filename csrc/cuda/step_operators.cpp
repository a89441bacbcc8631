// The operators of streaming on CUDA tensors. The plan alone lies on the CPU: it is checked there,
// and travels with the launch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/current.h"
#include "cuda/step_call.h"

namespace convlm::cuda {
namespace {

int64_t most_shared_bytes(const char* function, int32_t device) {
  int bytes = 0;
  check(function, cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// The workspace is torch's, as in operators.cpp; only networks that are too large for shared memory
// need one.
void run(const char* name, const GenerateArguments& arguments, const Tensor& like) {
  const int64_t most = most_shared_bytes(name, like.get_device_index());
  const int64_t bytes = step_workspace_bytes(arguments, most);
  Tensor workspace;
  if (bytes > 0) workspace = empty(like, {bytes}, aoti_torch_dtype_uint8());
  void* data = bytes > 0 ? workspace.mutable_data_ptr() : nullptr;
  check(name, run_steps(arguments, {current_stream(like), most, data}));
}

Tensor cuda_step(const Tensor& x, const std::optional<Tensor>& embedding, const Tensor& rings,
                 const Tensor& position, const Tensor& weights, const Tensor& biases,
                 const Tensor& plan, int64_t out_channels) {
  const torch::stable::accelerator::DeviceGuard guard(rings.get_device_index());
  auto [arguments, y] =
      step_call_on_gpu(x, embedding, rings, position, weights, biases, plan, out_channels);
  run("step", arguments, rings);
  return y;
}

Tensor cuda_generate(const Tensor& tokens, const Tensor& embedding, const Tensor& rings,
                     const Tensor& position, const Tensor& weights, const Tensor& biases,
                     const Tensor& plan, const std::optional<Tensor>& logit_bias,
                     const Tensor& uniform, double temperature, int64_t top_k, double top_p,
                     int64_t stop) {
  const torch::stable::accelerator::DeviceGuard guard(rings.get_device_index());
  auto [arguments, generated] =
      generate_call_on_gpu(tokens, embedding, rings, position, weights, biases, plan, logit_bias,
                           uniform, {temperature, top_k, top_p, stop});
  run("generate", arguments, rings);
  return generated;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CUDA, m) {
  m.impl("step", TORCH_BOX(&cuda_step));
  m.impl("generate", TORCH_BOX(&cuda_generate));
}

}  // namespace convlm::cuda
