// Every operator's schema, and nothing else. The kernels register themselves beside their host
// functions.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(convlm, m) {
  m.def(
      "forward(Tensor x, Tensor weight, Tensor? bias, SymInt stride, SymInt pad_left, "
      "SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, str activation) "
      "-> Tensor");
  m.def(
      "grad_input(Tensor grad_output, Tensor weight, SymInt length, SymInt stride, "
      "SymInt pad_left, SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, "
      "Tensor? y=None, str activation=\"none\") -> Tensor");
  m.def(
      "grad_weight(Tensor grad_output, Tensor x, SymInt kernel_size, SymInt stride, "
      "SymInt pad_left, SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, "
      "bool with_bias, Tensor? y=None, str activation=\"none\") -> (Tensor, Tensor)");
  m.def(
      "step(Tensor x, Tensor? embedding, Tensor(a!) rings, Tensor(b!) position, Tensor weights, "
      "Tensor biases, Tensor plan, SymInt out_channels) -> Tensor");
  m.def(
      "generate(Tensor tokens, Tensor embedding, Tensor(a!) rings, Tensor(b!) position, "
      "Tensor weights, Tensor biases, Tensor plan, Tensor? logit_bias, Tensor uniform, "
      "float temperature, SymInt top_k, float top_p, SymInt stop) -> Tensor");
}
