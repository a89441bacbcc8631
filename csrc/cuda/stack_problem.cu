#include "cuda/dtypes.h"
#include "cuda/shared_stack.h"
#include "cuda/stack_layout.h"
#include "cuda/stack_problem.h"

namespace convlm::cuda {
namespace {

// Where each layer keeps what backward asks of forward: in `saved` if the two are two calls.
template <class S>
void keep_for_backward(FusedStack<S>& s, Pieces& kept) {
  for (int i = 0; i < s.depth; ++i) {
    FusedLayer<S>& l = s.layers[i];
    if (i + 1 < s.depth) l.result = kept.take<S>(s.batch * l.out_channels * l.out_length);
    if (l.gated || l.activation != Activation::none)
      l.slope = kept.take<S>(s.batch * l.columns * l.out_length);
  }
}

template <class S>
void take_gradients(FusedStack<S>& s, const StackProblem& p, Pieces& workspace) {
  for (int i = 0; i < s.depth; ++i)
    s.layers[i].gradient =
        workspace.take<S>(s.batch * s.layers[i].columns * s.layers[i].out_length);
  const int64_t inputs = s.batch * s.layers[0].in_channels * s.layers[0].in_length;
  void* grad_input = p.arguments.grad_input.data;
  if (!p.arguments.input_is_rows) {
    s.grad_input = static_cast<S*>(grad_input);
    return;
  }
  s.input = workspace.take<S>(inputs);
  if (grad_input != nullptr) s.grad_words = workspace.take<Compute<S>>(inputs);
}

template <class S>
FusedStack<S> fused_stack(const StackProblem& p, Pieces& workspace) {
  const StackArguments& a = p.arguments;
  FusedStack<S> s{};
  s.depth = static_cast<int>(p.layers.size());
  for (int i = 0; i < s.depth; ++i) s.layers[i] = fused_layer<S>(p.layers[i], p.taps[i]);
  s.batch = a.batch;
  s.x = input<S>(a.input);
  s.tokens = p.tokens;
  s.target = p.target;
  s.vocab = p.vocab;
  s.forward = p.forward;
  s.backward = p.backward;
  s.output = static_cast<S*>(a.output);
  s.losses = static_cast<Compute<S>*>(a.losses);
  s.grad_output = input<S>(a.grad_output);
  const StackRoom room = stack_room(p.layers, p.taps, sizeof(Compute<S>));
  s.activations = static_cast<int>(room.activations);
  s.products = static_cast<int>(room.products);
  Pieces saved(a.saved);
  if (a.saved != nullptr || p.loss != nullptr)
    keep_for_backward(s, a.saved != nullptr ? saved : workspace);
  if (s.backward) take_gradients(s, p, workspace);
  if (p.loss != nullptr)
    s.losses = workspace.take<Compute<S>>(s.batch * s.layers[s.depth - 1].out_length);
  return s;
}

template <class S>
SharedGradients<S> gradients_of_samples(const FusedStack<S>& s, const StackProblem& p) {
  SharedGradients<S> g = shared_gradients<S>(p);
  for (int i = 0; i < s.depth; ++i) {
    Input<S> x = s.x;
    if (i > 0 || s.input != nullptr)
      x = contiguous(i > 0 ? s.layers[i - 1].result : s.input, s.layers[i].in_channels,
                     s.layers[i].in_length);
    g.layers[i] = weight_of_layer(s.layers[i], p.layers[i], s.batch, x, g.use);
  }
  g.tokens = s.tokens;
  g.batch = s.batch;
  g.length = s.layers[0].in_length;
  g.grad_words = s.grad_words;
  g.losses = p.loss == nullptr ? nullptr : s.losses;
  return g;
}

template <class S>
cudaError_t run(const StackProblem& p, void* workspace, cudaStream_t stream) {
  Pieces pieces(workspace);
  const FusedStack<S> s = fused_stack<S>(p, pieces);
  const int64_t elements = stack_room(p.layers, p.taps, sizeof(Compute<S>)).elements();
  const int shared_bytes = static_cast<int>(elements * sizeof(Compute<S>));
  const cudaError_t error = run_samples(s, shared_bytes, stream);
  if (error != cudaSuccess || !s.backward) return error;
  return add_up_samples(gradients_of_samples(s, p), stream);
}

}  // namespace

int64_t stack_workspace_bytes(const StackProblem& p) {
  if (p.tile > 0 || p.row_counts != nullptr) return shared_stack_workspace_bytes(p);
  return for_dtype(p.arguments.dtype, [&](auto s) {
    Pieces pieces(nullptr);
    fused_stack<decltype(s)>(p, pieces);
    return pieces.used;
  });
}

cudaError_t run_stack(const StackProblem& p, void* workspace, cudaStream_t stream) {
  if (p.tile > 0 || p.row_counts != nullptr) return run_shared_stack(p, workspace, stream);
  return for_dtype(p.arguments.dtype,
                   [&](auto s) { return run<decltype(s)>(p, workspace, stream); });
}

}  // namespace convlm::cuda
