// The boundary between the host functions, which know torch, and the kernels, which see pointers.
#pragma once
#include <cstdint>

#include "geometry.h"

namespace convlm {

enum class ScalarType { float32, float64, bfloat16, float16 };
enum class Activation { none, tanh, relu, silu, gelu, sigmoid };
constexpr bool derivative_needs_only_y(Activation a) {
  return a == Activation::tanh || a == Activation::relu || a == Activation::sigmoid;
}
// How exact float32 must be: as if computed in it, or no worse than with operands of TF32.
enum class Precision { ieee, tf32 };

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// Strides count elements; stride[i] belongs to dimension i of the tensor.
struct ConstTensor {
  const void* data;
  int64_t stride[3];
};

// Both gradients may be of activated outputs y = activation(z), told by y itself: grad_output,
// which is that of y, is then multiplied by the activation's derivative.
struct Activated {
  ConstTensor y;  // of grad_output's shape; data is null without an activation
  Activation activation;
};

struct ForwardArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  Precision precision;  // of float32; the other types have one only
  ConstTensor x, weight;
  ConstTensor bias;  // data is null without a bias
  Activation activation;
  void* y;  // contiguous
};

struct GradInputArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  Precision precision;  // of float32; the other types have one only
  ConstTensor grad_output, weight;
  Activated activated;
  void* grad_input;  // contiguous
};

struct GradWeightArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  Precision precision;  // of float32; the other types have one only
  ConstTensor grad_output, x;
  Activated activated;
  void* grad_weight;  // contiguous
  void* grad_bias;    // contiguous, or null
};

// A look-up is the convolution of one-hot vectors: the vocabulary is the channels of its input, and
// the table (kernel_size, vocab, out_channels) is its weight. Tokens are below in_channels.

struct LookupArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  const int64_t* tokens;  // (batch, length), contiguous
  const void* table;      // contiguous
  ConstTensor bias;       // data is null without a bias
  Activation activation;
  void* y;  // contiguous
};

struct GradTableArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  const int64_t* tokens;  // (batch, length), contiguous
  ConstTensor grad_output;
  void* grad_table;  // contiguous
  void* grad_bias;   // contiguous, or null
};

struct MutableTensor {
  void* data;
  int64_t stride[3];
};

// Of losses with gradients.
struct LossGradient {
  void* mean;  // of the losses; null where no gradient is wanted
  // The parameters themselves are what gradients are written to, as steps of gradient descent;
  // unless the mean is not finite.
  bool as_step;
  double lr;
};

// Of float32 and float64 only. The table is the product of weight (out_channels, embedding_dim,
// kernel_size) and embedding (vocab, embedding_dim).
struct CrossEntropyArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  int64_t embedding_dim;
  const int64_t* tokens;  // (batch, length), contiguous
  const int64_t* target;  // (batch, out_length), contiguous, below out_channels
  ConstTensor embedding, weight;
  ConstTensor bias;  // data is null without a bias
  void* losses;      // (batch, out_length), contiguous
  LossGradient gradient;
  // Of the mean loss; data is null where none is wanted, or there is no bias.
  MutableTensor grad_embedding, grad_weight, grad_bias;
};

// parameter -= lr * gradient, for `count` elements that are `stride` apart.
struct SgdArguments {
  ScalarType dtype;
  int64_t count, parameter_stride, gradient_stride;
  void* parameter;
  const void* gradient;
  double lr;
};

}  // namespace convlm
