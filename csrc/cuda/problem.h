// The three functions as the products that kernels compute. forward and grad_input are both
// correlations:
//
//   out[row, position] = sum over taps, channels of weight[row, channel, tap] * in[channel, read]
//
// Of grad_input with a stride, positions that are a stride apart form a class: they have the same
// taps, and neighbours among them read neighbouring positions. So each class is a correlation
// without stride, and no product with a zero between the outputs is ever computed.
#pragma once
#include <cstdint>

#include "arguments.h"
#include "cuda/activation.h"
#include "cuda/launch.h"
#include "cuda/numbers.h"

namespace convlm::cuda {

// A strided input of rank 3. Where y is given, it is a gradient to be multiplied by the derivative
// of the activation whose output y is.
template <class S>
struct Input {
  const S* data;
  int64_t batch, channel, position;  // strides
  const S* y;
  int64_t y_batch, y_channel, y_position;
  Activation activation;
};

template <class S>
Input<S> input(const ConstTensor& t) {
  return {static_cast<const S*>(t.data),
          t.stride[0],
          t.stride[1],
          t.stride[2],
          nullptr,
          0,
          0,
          0,
          Activation::none};
}
template <class S>
Input<S> input(const ConstTensor& t, const Activated& activated) {
  Input<S> result = input<S>(t);
  result.y = static_cast<const S*>(activated.y.data);
  result.y_batch = activated.y.stride[0];
  result.y_channel = activated.y.stride[1];
  result.y_position = activated.y.stride[2];
  result.activation = activated.activation;
  return result;
}

template <class S>
__device__ __forceinline__ Compute<S> read(const Input<S>& in, int64_t sample, int64_t channel,
                                           int64_t position) {
  const Compute<S> value =
      to_compute(in.data[sample * in.batch + channel * in.channel + position * in.position]);
  if (in.y == nullptr) return value;
  const int64_t at = sample * in.y_batch + channel * in.y_channel + position * in.y_position;
  return times_derivative(in.activation, value, to_compute(in.y[at]));
}

template <class S>
struct Correlation {
  int64_t batch, groups, rows, channels;  // rows and channels of one group
  int64_t length, step;                   // of `in`: positions, and how many an output moves on
  int64_t classes, outputs;               // outputs: of all classes together
  int64_t kernel_size, stride, dilation, pad_left;
  bool transposed;  // grad_input

  Input<S> in;

  const S* weight;
  int64_t weight_group, weight_row, weight_channel, weight_tap;
  const S* bias;
  int64_t bias_stride;
  Activation activation;
  S* out;  // contiguous
};

// Taps first, first + step, ... of the weight read positions offset, offset + offset_step, ... of
// `in` for output 0 of the class; output q reads q * Correlation::step further on, and is written
// to position start + q * (number of classes).
struct PositionClass {
  int64_t start, outputs;
  int64_t taps, first, step;
  int64_t offset, offset_step;
};

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

__host__ __device__ inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

template <class S>
__host__ __device__ PositionClass position_class(const Correlation<S>& p, int64_t start) {
  if (!p.transposed) return {0, p.outputs, p.kernel_size, 0, 1, -p.pad_left, p.dilation};
  // Position `start` was read by output (start + pad_left - tap * dilation) / stride.
  const int64_t divisor = greatest_common_divisor(p.stride, p.dilation);
  const int64_t period = p.stride / divisor;
  const int64_t residue = (start + p.pad_left) % p.stride;
  const int64_t most = period < p.kernel_size ? period : p.kernel_size;
  int64_t first = 0;
  while (first < most && first * p.dilation % p.stride != residue) ++first;
  const bool any = first < most;
  PositionClass c;
  c.start = start;
  c.outputs = divide_up(p.outputs - start, p.stride);
  c.taps = any ? (p.kernel_size - 1 - first) / period + 1 : 0;
  c.first = first;
  c.step = period;
  c.offset = any ? (start + p.pad_left - first * p.dilation) / p.stride : 0;
  c.offset_step = -(p.dilation / divisor);
  return c;
}

// grad_weight[row, channel, tap] = sum over batch, outputs of grad_output[row, q] * x[channel, q *
// stride + tap * dilation - pad_left].
template <class S>
struct WeightGradient {
  int64_t batch, groups, rows, channels;
  int64_t length, outputs;
  int64_t kernel_size, stride, dilation, pad_left;

  Input<S> grad_output, x;
  S* grad_weight;  // contiguous
  S* grad_bias;    // contiguous, or null
};

template <class S>
Correlation<S> correlation(const ForwardArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  Correlation<S> p{};
  p.batch = g.batch;
  p.groups = g.groups;
  p.rows = g.out_channels_per_group();
  p.channels = g.in_channels_per_group();
  p.length = g.length;
  p.step = g.stride;
  p.classes = 1;
  p.outputs = g.out_length;
  p.kernel_size = g.kernel_size;
  p.stride = g.stride;
  p.dilation = g.dilation;
  p.pad_left = g.pad_left;
  p.in = input<S>(a.x);
  p.weight = static_cast<const S*>(a.weight.data);
  p.weight_group = p.rows * a.weight.stride[0];
  p.weight_row = a.weight.stride[0];
  p.weight_channel = a.weight.stride[1];
  p.weight_tap = a.weight.stride[2];
  p.bias = static_cast<const S*>(a.bias.data);
  p.bias_stride = a.bias.stride[0];
  p.activation = a.activation;
  p.out = static_cast<S*>(a.y);
  return p;
}

template <class S>
Correlation<S> correlation(const GradInputArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  Correlation<S> p{};
  p.batch = g.batch;
  p.groups = g.groups;
  p.rows = g.in_channels_per_group();
  p.channels = g.out_channels_per_group();
  p.length = g.out_length;
  p.step = 1;
  p.classes = g.stride < g.length ? g.stride : g.length;
  p.outputs = g.length;
  p.kernel_size = g.kernel_size;
  p.stride = g.stride;
  p.dilation = g.dilation;
  p.pad_left = g.pad_left;
  p.transposed = true;
  p.in = input<S>(a.grad_output, a.activated);
  p.weight = static_cast<const S*>(a.weight.data);
  p.weight_group = p.channels * a.weight.stride[0];
  p.weight_row = a.weight.stride[1];
  p.weight_channel = a.weight.stride[0];
  p.weight_tap = a.weight.stride[2];
  p.out = static_cast<S*>(a.grad_input);
  return p;
}

template <class S>
WeightGradient<S> weight_gradient(const GradWeightArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  WeightGradient<S> p{};
  p.batch = g.batch;
  p.groups = g.groups;
  p.rows = g.out_channels_per_group();
  p.channels = g.in_channels_per_group();
  p.length = g.length;
  p.outputs = g.out_length;
  p.kernel_size = g.kernel_size;
  p.stride = g.stride;
  p.dilation = g.dilation;
  p.pad_left = g.pad_left;
  p.grad_output = input<S>(a.grad_output, a.activated);
  p.x = input<S>(a.x);
  p.grad_weight = static_cast<S*>(a.grad_weight);
  p.grad_bias = static_cast<S*>(a.grad_bias);
  return p;
}

}  // namespace convlm::cuda
