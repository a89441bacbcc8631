// From the layers of a stack to what its kernels see of them.
#pragma once
#include "cuda/fused_stack.h"
#include "cuda/stack_problem.h"

namespace convlm::cuda {

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

template <class S>
Input<S> contiguous(const S* data, int64_t channels, int64_t length) {
  return input<S>({data, {channels * length, length, 1}});
}

// `x` is the layer's input.
template <class S>
SmallGradient<S> weight_of_layer(const FusedLayer<S>& l, const StackLayer& layer, int64_t batch,
                                 const Input<S>& x, const Use<S>& use) {
  WeightGradient<S> p{};
  p.batch = batch;
  p.groups = p.stride = 1;
  p.rows = l.columns;
  p.channels = l.in_channels;
  p.length = l.in_length;
  p.outputs = l.out_length;
  p.kernel_size = l.taps;
  p.dilation = l.dilation;
  p.pad_left = l.pad;
  p.grad_output = contiguous(l.gradient, l.columns, l.out_length);
  p.x = x;
  p.grad_weight = static_cast<S*>(layer.grad_weight.data);
  p.grad_bias = static_cast<S*>(layer.grad_bias.data);
  SmallGradient<S> d = small_gradient::plan(p);
  for (int axis = 0; axis < 3; ++axis) d.stride[axis] = layer.grad_weight.stride[axis];
  d.bias_stride = layer.grad_bias.stride[0];
  d.use = use;
  return d;
}

// What does not depend on where activations lie.
template <class S>
SharedGradients<S> shared_gradients(const StackProblem& p) {
  SharedGradients<S> g{};
  g.depth = static_cast<int>(p.layers.size());
  g.use = {p.as_step, static_cast<Compute<S>>(p.lr)};
  g.channels = p.layers[0].in_channels;
  g.vocab = p.vocab;
  g.grad_embedding = static_cast<S*>(p.arguments.grad_input.data);
  g.word_stride = p.arguments.grad_input.stride[0];
  g.channel_stride = p.arguments.grad_input.stride[1];
  g.loss_count = p.arguments.batch * p.arguments.out_length;
  g.loss = static_cast<S*>(p.loss);
  return g;
}

}  // namespace convlm::cuda
