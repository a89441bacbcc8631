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

// x goes on where `state`, its last dilation * (kernel_size - 1) positions so far, ends. The
// geometry is that of a causal forward.
struct ForwardWithStateArguments {
  ForwardArguments forward;
  ConstTensor state;
  void* new_state;  // contiguous
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

}  // namespace convlm
