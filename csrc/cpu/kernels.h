// The table of CPU kernels, one for each instruction set.
#pragma once
#include "arguments.h"
#include "stack.h"
#include "step.h"

// Linux grants tiles to who asks, and GCC knows them since 11.
#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 11 && !defined(CONVLM_PORTABLE)
#define CONVLM_AMX
#endif

namespace convlm::cpu {

// What a vector holds, or what the kernel is for; grad_input of a longer stride gets one per class
// of positions.
enum class Kernel {
  depthwise,
  positions,
  rows,
  joined,
  taps,
  windows,
  fast_filter_2,
  fast_filter_4,
  tiles
};

// grad_output (batch, channels, length) times the derivative of the activation that made y.
struct ActivationGradientArguments {
  ScalarType dtype;
  int64_t batch, channels, length;
  ConstTensor grad_output;
  Activated activated;
  void* result;  // contiguous
};

// Both gradients of one problem.
struct GradientsArguments {
  ScalarType dtype;
  GradInputArguments input;
  GradWeightArguments weight;
};

// One entry per instruction set; all but those of tiles are compiled from the same kernels.inl.
struct Kernels {
  const char* isa;
  void (*forward)(const ForwardArguments&);
  void (*grad_input)(const GradInputArguments&);
  void (*grad_weight)(const GradWeightArguments&);
  void (*gradients)(const GradientsArguments&);
  // Which kernel runs, from geometry and strides alone; for grad_input that of the first positions.
  Kernel (*forward_kernel)(const ForwardArguments&);
  Kernel (*grad_input_kernel)(const GradInputArguments&);
  Kernel (*grad_weight_kernel)(const GradWeightArguments&);
  void (*activation_gradient)(const ActivationGradientArguments&);
  void (*lookup)(const LookupArguments&);
  void (*grad_table)(const GradTableArguments&);
  void (*cross_entropy)(const CrossEntropyArguments&);
  void (*sgd)(const SgdArguments&);
  void (*stack_forward)(const StackArguments&);
  void (*stack_backward)(const StackArguments&);
  void (*stack_loss)(const StackArguments&);
  void (*step)(const StepArguments&);
  void (*generate)(const GenerateArguments&);
};

extern const Kernels generic_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_bf16_kernels;  // AVX-512 with dot products of bfloat16
#endif
#if defined(CONVLM_AMX)
extern const Kernels amx_kernels;  // AVX-512 with tiles of bfloat16
#endif

}  // namespace convlm::cpu
