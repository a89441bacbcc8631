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
  // grad_input and both results of grad_weight; on the CPU.
  m.def(
      "gradients(Tensor grad_output, Tensor x, Tensor weight, SymInt stride, SymInt pad_left, "
      "SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, bool with_bias) "
      "-> (Tensor, Tensor, Tensor)");
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
  // The cross-entropies with gradients below and above, and then parameter -= lr * gradient. Where
  // the loss is not finite the parameters stay as they are. On the CPU rows may be those of several
  // steps, (steps, batch), and what is returned their losses (steps); NaN after one that is not
  // finite, which ends them. A row that cannot be read is an error before the first of them.
  m.def(
      "lookup_sgd_(Tensor tokens, Tensor target, Tensor? rows, Tensor(a!) embedding, "
      "Tensor(b!) weight, Tensor(c!)? bias, SymInt stride, SymInt pad_left, SymInt pad_right, "
      "SymInt dilation, float lr) -> Tensor");
  m.def(
      "stack_sgd_(Tensor(a!) x, Tensor tokens, Tensor target, Tensor? rows, Tensor(b!)[] weights, "
      "Tensor(c!)[] biases, int[] settings, bool share, float lr) -> Tensor");
  // A chain of convolutions of stride 1. x is (batch, channels, length), or with tokens (batch,
  // length) an embedding (vocab, channels) of them; an empty bias is none. Settings are four
  // numbers a layer, those of StackSettings.
  m.def(
      "stack_forward(Tensor x, Tensor? tokens, Tensor[] weights, Tensor[] biases, "
      "int[] settings, bool share, bool save) -> (Tensor, Tensor)");
  m.def(
      "stack_backward(Tensor grad_output, Tensor saved, Tensor x, Tensor? tokens, "
      "Tensor[] weights, Tensor[] biases, int[] settings, bool share, bool with_x) -> Tensor[]");
  m.def(
      "stack_rows(Tensor x, Tensor tokens, Tensor[] weights, Tensor[] biases, int[] settings, "
      "bool share) -> Tensor");
  // Over tokens, with target (batch, out_length): the mean cross-entropy and its gradients of x,
  // the weights and the biases; and the losses of all positions.
  m.def(
      "stack_cross_entropy(Tensor x, Tensor tokens, Tensor target, Tensor[] weights, "
      "Tensor[] biases, int[] settings, bool share) -> (Tensor, Tensor[])");
  m.def(
      "stack_losses(Tensor x, Tensor tokens, Tensor target, Tensor[] weights, Tensor[] biases, "
      "int[] settings, bool share) -> Tensor");
  m.def(
      "step(Tensor x, Tensor? embedding, Tensor(a!) rings, Tensor(b!) position, Tensor weights, "
      "Tensor biases, Tensor plan, SymInt out_channels) -> Tensor");
  m.def(
      "generate(Tensor tokens, Tensor embedding, Tensor(a!) rings, Tensor(b!) position, "
      "Tensor weights, Tensor biases, Tensor plan, Tensor? logit_bias, Tensor uniform, "
      "float temperature, SymInt top_k, float top_p, SymInt stop) -> Tensor");
}
