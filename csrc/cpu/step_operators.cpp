// The operators of streaming on CPU tensors.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "step_checks.h"

namespace convlm::cpu {
namespace {

// Without the dispatcher, which takes as long to find new_empty as a small step takes in all.
Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle handle = nullptr;
  check_allocated(
      aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle),
      {sizes, 2});
  return Tensor(handle);
}

Tensor step(const Tensor& x, const std::optional<Tensor>& embedding, const Tensor& rings,
            const Tensor& position, const Tensor& weights, const Tensor& biases, const Tensor& plan,
            int64_t out_channels) {
  StepArguments arguments =
      step_call(x, embedding, rings, position, weights, biases, plan, out_channels);
  Tensor y = empty_matrix(rings, arguments.batch, out_channels);
  arguments.y = y.mutable_data_ptr();
  kernels().step(arguments);
  return y;
}

Tensor generate(const Tensor& tokens, const Tensor& embedding, const Tensor& rings,
                const Tensor& position, const Tensor& weights, const Tensor& biases,
                const Tensor& plan, const std::optional<Tensor>& logit_bias, const Tensor& uniform,
                double temperature, int64_t top_k, double top_p, int64_t stop) {
  GenerateArguments arguments =
      generate_call(tokens, embedding, rings, position, weights, biases, plan, logit_bias, uniform,
                    {temperature, top_k, top_p, stop});
  Tensor generated = empty_matrix(tokens, arguments.step.batch, arguments.steps);
  arguments.generated = static_cast<int64_t*>(generated.mutable_data_ptr());
  kernels().generate(arguments);
  return generated;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("step", TORCH_BOX(&step));
  m.impl("generate", TORCH_BOX(&generate));
}

}  // namespace convlm::cpu
