// A layer of a fused stack for one sample, forward and backward. Barriers between the steps of a
// layer are here; `multiply` begins with one.
#pragma once
#include "cuda/stack_product.h"

namespace convlm::cuda {

// The block's shared memory.
template <class C>
struct StackBuffers {
  C *x, *y;     // a layer's input and result; they change places
  C* products;  // what its convolution gives, or the gradient of that
  C* weights;

  __device__ void swap() {
    C* before = x;
    x = y;
    y = before;
  }
};

template <class S>
__device__ StackBuffers<Compute<S>> buffers_of(const FusedStack<S>& s) {
  Compute<S>* begin = reinterpret_cast<Compute<S>*>(shared_memory());
  return {begin, begin + s.activations, begin + 2 * s.activations,
          begin + 2 * s.activations + s.products};
}

template <class C>
__device__ __forceinline__ C slope_of(Activation activation, C z, C y) {
  constexpr double kRootHalf = 0.70710678118654752440, kRootOfTwoPi = 2.50662827463100050242;
  switch (activation) {
    case Activation::silu: {
      const C sigmoid = C(1) / (C(1) + std::exp(-z));
      return sigmoid * (C(1) + z * (C(1) - sigmoid));
    }
    case Activation::gelu:
      return C(0.5) * (C(1) + std::erf(z * C(kRootHalf))) +
             z * std::exp(C(-0.5) * z * z) * C(1 / kRootOfTwoPi);
    default:
      return times_derivative(activation, C(1), y);
  }
}

// tanh(z) * sigmoid(other), and the slopes in both.
template <class C>
__device__ __forceinline__ C gate(C z, C other, C& slope, C& other_slope) {
  const C tanh = activate(Activation::tanh, z), sigmoid = activate(Activation::sigmoid, other);
  slope = times_derivative(Activation::tanh, sigmoid, tanh);
  other_slope = times_derivative(Activation::sigmoid, tanh, sigmoid);
  return tanh * sigmoid;
}

// From what the convolution gives to the layer's result, and what the gradients need of it.
template <class S>
__device__ void activate_layer(const FusedLayer<S>& l, int64_t sample, S* output,
                               const StackBuffers<Compute<S>>& b) {
  using C = Compute<S>;
  const int count = l.out_channels * l.out_length, first = l.in_length - l.out_length;
  for (int i = threadIdx.x; i < count; i += kStackBlock) {
    const C z = b.products[i];
    C y, slope, other_slope = C(0);
    if (l.gated) {
      y = gate(z, b.products[i + count], slope, other_slope);
    } else {
      y = activate(l.activation, z);
      slope = slope_of(l.activation, z, y);
    }
    if (l.slope != nullptr) {
      S* slopes = l.slope + sample * l.columns * l.out_length;
      slopes[i] = from_compute<S>(slope);
      if (l.gated) slopes[i + count] = from_compute<S>(other_slope);
    }
    if (l.residual) y += b.x[i / l.out_length * l.in_length + first + i % l.out_length];
    b.y[i] = y;
    if (l.result != nullptr) l.result[sample * count + i] = from_compute<S>(y);
    if (output != nullptr) output[sample * count + i] = from_compute<S>(y);
  }
}

// From b.x to b.y; `output` is null but for the last layer.
template <class S>
__device__ void layer_forward(const FusedLayer<S>& l, int64_t sample, S* output,
                              const StackBuffers<Compute<S>>& b) {
  using C = Compute<S>;
  const Product<S> product{l.weight,  l.weight_column, l.weight_channel, l.weight_tap,
                           l.columns, l.in_channels,   l.taps,           l.chunk,
                           b.x,       l.in_length,     l.out_length,     -l.pad,
                           l.dilation};
  multiply(product, b.weights, [&](int row, int position, C sum) {
    const C bias = l.bias == nullptr ? C(0) : to_compute(l.bias[row * l.bias_step]);
    b.products[row * l.out_length + position] = sum + bias;
  });
  __syncthreads();
  activate_layer(l, sample, output, b);
}

// The gradient of what the convolution gives, from that of the result, in b.y.
template <class S>
__device__ void gradient_of_products(const FusedLayer<S>& l, int64_t sample,
                                     const StackBuffers<Compute<S>>& b) {
  using C = Compute<S>;
  const int count = l.columns * l.out_length, results = l.out_channels * l.out_length;
  for (int i = threadIdx.x; i < count; i += kStackBlock) {
    C gradient = b.y[i < results ? i : i - results];
    if (l.has_slope()) {
      const C slope = to_compute(l.slope[sample * count + i]);
      // No gradient passes a closed unit, not even an infinite one.
      gradient = !l.gated && l.activation == Activation::relu
                     ? times_derivative(Activation::relu, gradient, slope)
                     : gradient * slope;
    }
    b.products[i] = gradient;
    l.gradient[sample * count + i] = from_compute<S>(gradient);
  }
}

// From the gradient of the result in b.y to that of the input in b.x.
template <class S>
__device__ void layer_backward(const FusedLayer<S>& l, bool with_input, int64_t sample,
                               const StackBuffers<Compute<S>>& b) {
  using C = Compute<S>;
  gradient_of_products(l, sample, b);
  if (!with_input) return;
  const Product<S> product{l.weight,      l.weight_channel, l.weight_column, l.weight_tap,
                           l.in_channels, l.columns,        l.taps,          l.chunk_back,
                           b.products,    l.out_length,     l.in_length,     l.pad,
                           -l.dilation};
  const int first = l.in_length - l.out_length;
  multiply(product, b.weights, [&](int row, int position, C sum) {
    if (l.residual && position >= first) sum += b.y[row * l.out_length + position - first];
    b.x[row * l.in_length + position] = sum;
  });
}

}  // namespace convlm::cuda
