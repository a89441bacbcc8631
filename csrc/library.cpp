// Every operator's schema, and nothing else. The kernels register themselves beside their host
// functions.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(convlm, m) {
  m.def(
      "forward(Tensor x, Tensor weight, Tensor? bias, SymInt stride, SymInt pad_left, "
      "SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, str activation) "
      "-> Tensor");
  m.def(
      "forward_with_state(Tensor x, Tensor weight, Tensor? bias, Tensor state, SymInt dilation, "
      "SymInt groups, str fp32_precision, str activation) -> (Tensor y, Tensor new_state)");
  m.def(
      "grad_input(Tensor grad_output, Tensor weight, SymInt length, SymInt stride, "
      "SymInt pad_left, SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, "
      "Tensor? y=None, str activation=\"none\") -> Tensor");
  m.def(
      "grad_weight(Tensor grad_output, Tensor x, SymInt kernel_size, SymInt stride, "
      "SymInt pad_left, SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, "
      "bool with_bias, Tensor? y=None, str activation=\"none\") -> (Tensor, Tensor)");
}
