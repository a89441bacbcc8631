// The boundary between the host functions, which know torch, and the kernels, which see pointers.
#pragma once
#include <cstdint>

#include "geometry.h"

namespace convlm::cpu {

enum class ScalarType { float32, float64, bfloat16, float16 };
enum class Activation { none, tanh, relu, silu, gelu, sigmoid };

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

struct ForwardArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  ConstTensor x, weight;
  ConstTensor bias;  // data is null without a bias
  Activation activation;
  void* y;  // contiguous
};

struct GradInputArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  ConstTensor grad_output, weight;
  void* grad_input;  // contiguous
};

struct GradWeightArguments {
  Conv1dGeometry geometry;
  ScalarType dtype;
  ConstTensor grad_output, x;
  void* grad_weight;  // contiguous
  void* grad_bias;    // contiguous, or null
};

// What a vector holds, or what the kernel is for; grad_input of a longer stride gets one per class
// of positions.
enum class Kernel { depthwise, positions, rows, fast_filter_2, fast_filter_4 };

// One entry per instruction set; all are compiled from the same kernels.inl.
struct Kernels {
  const char* isa;
  void (*forward)(const ForwardArguments&);
  void (*grad_input)(const GradInputArguments&);
  void (*grad_weight)(const GradWeightArguments&);
  // Which kernel runs, from geometry and strides alone; for grad_input that of the first positions.
  Kernel (*forward_kernel)(const ForwardArguments&);
  Kernel (*grad_input_kernel)(const GradInputArguments&);
  Kernel (*grad_weight_kernel)(const GradWeightArguments&);
};

extern const Kernels generic_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_bf16_kernels;  // AVX-512 with dot products of bfloat16
#endif

}  // namespace convlm::cpu
