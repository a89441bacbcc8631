#include "cuda/dtypes.h"
#include "cuda/fused_stack.h"
#include "cuda/stack_problem.h"

namespace convlm::cuda {
namespace {

// Pieces of a workspace, in the order in which they are asked for, and none of them without an
// address, however small. Without a workspace it only counts.
class Pieces {
 public:
  explicit Pieces(void* workspace) : begin_(static_cast<unsigned char*>(workspace)) {}

  template <class T>
  T* take(int64_t count) {
    unsigned char* piece = begin_ == nullptr ? nullptr : begin_ + used;
    used += (count * static_cast<int64_t>(sizeof(T)) / kAlignment + 1) * kAlignment;
    return reinterpret_cast<T*>(piece);
  }

  int64_t used = 0;

 private:
  static constexpr int64_t kAlignment = 256;
  unsigned char* begin_;
};

template <class S>
FusedLayer<S> fused_layer(const StackLayer& layer, const LayerTaps& taps) {
  constexpr int64_t kBytes = sizeof(Compute<S>);
  FusedLayer<S> l{};
  l.in_channels = static_cast<int>(layer.in_channels);
  l.columns = static_cast<int>(layer.columns);
  l.out_channels = static_cast<int>(layer.out_channels());
  l.taps = static_cast<int>(layer.kernel_size);
  l.dilation = static_cast<int>(taps.dilation);
  l.pad = static_cast<int>(taps.pad_left);
  l.in_length = static_cast<int>(taps.in_length);
  l.out_length = static_cast<int>(taps.out_length);
  l.gated = layer.gated;
  l.residual = layer.residual;
  l.activation = layer.activation;
  l.weight = static_cast<const S*>(layer.weight.data);
  l.weight_column = layer.weight.stride[0];
  l.weight_channel = layer.weight.stride[1];
  l.weight_tap = layer.weight.stride[2];
  l.chunk = static_cast<int>(chunk_of(l.columns, l.in_channels, l.taps, kBytes));
  l.chunk_back = static_cast<int>(chunk_of(l.in_channels, l.columns, l.taps, kBytes));
  l.bias = static_cast<const S*>(layer.bias.data);
  l.bias_step = layer.bias.stride[0];
  return l;
}

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
Input<S> contiguous(const S* data, int64_t channels, int64_t length) {
  return input<S>({data, {channels * length, length, 1}});
}

template <class S>
SmallGradient<S> weight_of_layer(const FusedStack<S>& s, const StackLayer& layer, int i) {
  const FusedLayer<S>& l = s.layers[i];
  WeightGradient<S> p{};
  p.batch = s.batch;
  p.groups = p.stride = 1;
  p.rows = l.columns;
  p.channels = l.in_channels;
  p.length = l.in_length;
  p.outputs = l.out_length;
  p.kernel_size = l.taps;
  p.dilation = l.dilation;
  p.pad_left = l.pad;
  p.grad_output = contiguous(l.gradient, l.columns, l.out_length);
  p.x = s.x;
  if (i > 0 || s.input != nullptr)
    p.x = contiguous(i > 0 ? s.layers[i - 1].result : s.input, l.in_channels, l.in_length);
  p.grad_weight = static_cast<S*>(layer.grad_weight.data);
  p.grad_bias = static_cast<S*>(layer.grad_bias.data);
  SmallGradient<S> d = small_gradient::plan(p);
  for (int axis = 0; axis < 3; ++axis) d.stride[axis] = layer.grad_weight.stride[axis];
  d.bias_stride = layer.grad_bias.stride[0];
  return d;
}

template <class S>
SharedGradients<S> shared_gradients(const FusedStack<S>& s, const StackProblem& p) {
  SharedGradients<S> g{};
  g.depth = s.depth;
  g.use = {p.as_step, static_cast<Compute<S>>(p.lr)};
  for (int i = 0; i < s.depth; ++i) {
    g.layers[i] = weight_of_layer(s, p.layers[i], i);
    g.layers[i].use = g.use;
  }
  g.tokens = s.tokens;
  g.batch = s.batch;
  g.length = s.layers[0].in_length;
  g.channels = s.layers[0].in_channels;
  g.vocab = s.vocab;
  g.grad_words = s.grad_words;
  g.grad_embedding = static_cast<S*>(p.arguments.grad_input.data);
  g.word_stride = p.arguments.grad_input.stride[0];
  g.channel_stride = p.arguments.grad_input.stride[1];
  g.losses = p.loss == nullptr ? nullptr : s.losses;
  g.loss_count = s.batch * s.layers[s.depth - 1].out_length;
  g.loss = static_cast<S*>(p.loss);
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
  return add_up_samples(shared_gradients(s, p), stream);
}

}  // namespace

int64_t stack_workspace_bytes(const StackProblem& p) {
  return for_dtype(p.arguments.dtype, [&](auto s) {
    Pieces pieces(nullptr);
    fused_stack<decltype(s)>(p, pieces);
    return pieces.used;
  });
}

cudaError_t run_stack(const StackProblem& p, void* workspace, cudaStream_t stream) {
  return for_dtype(p.arguments.dtype,
                   [&](auto s) { return run<decltype(s)>(p, workspace, stream); });
}

}  // namespace convlm::cuda
