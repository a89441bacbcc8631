// The operators of streaming on CPU tensors.
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "step_checks.h"

namespace convlm::cpu {
namespace {

Tensor step(const Tensor& x, const std::optional<Tensor>& embedding, const Tensor& rings,
            const Tensor& position, const Tensor& weights, const Tensor& biases, const Tensor& plan,
            int64_t out_channels) {
  StepArguments arguments =
      step_call(x, embedding, rings, position, weights, biases, plan, out_channels);
  Tensor y = torch::stable::new_empty(rings, {arguments.batch, out_channels});
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
  Tensor generated = torch::stable::new_empty(tokens, {arguments.step.batch, arguments.steps});
  arguments.generated = static_cast<int64_t*>(generated.mutable_data_ptr());
  bool failed = false;
  arguments.failed = &failed;
  kernels().generate(arguments);
  STD_TORCH_CHECK(!failed,
                  "generate: there is no token to draw: the logits of a sample hold a NaN "
                  "or an infinity, or rule out every token");
  return generated;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("step", TORCH_BOX(&step));
  m.impl("generate", TORCH_BOX(&generate));
}

}  // namespace convlm::cpu
