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
      "lookup(Tensor tokens, Tensor table, Tensor? bias, SymInt stride, SymInt pad_left, "
      "SymInt pad_right, SymInt dilation, str activation) -> Tensor");
  m.def(
      "lookup_grad_table(Tensor grad_output, Tensor tokens, SymInt kernel_size, SymInt vocab, "
      "SymInt stride, SymInt pad_left, SymInt pad_right, SymInt dilation, bool with_bias) "
      "-> (Tensor, Tensor)");
  m.def(
      "lookup_cross_entropy(Tensor tokens, Tensor target, Tensor? rows, Tensor embedding, "
      "Tensor weight, Tensor? bias, SymInt stride, SymInt pad_left, SymInt pad_right, "
      "SymInt dilation) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lookup_losses(Tensor tokens, Tensor target, Tensor embedding, Tensor weight, Tensor? bias, "
      "SymInt stride, SymInt pad_left, SymInt pad_right, SymInt dilation) -> Tensor");
  m.def("sgd_(Tensor(a!)[] parameters, Tensor[] gradients, float lr) -> ()");
}
