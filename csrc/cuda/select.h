// Which kernel a problem gets on a GPU, from geometry, dtype and the GPU's compute capability
// alone. Neither batch nor length may show in the bits of one sample's results, so they have no say
// where kernels add up in different orders. No CUDA header: introspection and the emulator ask too.
#pragma once
#include "arguments.h"

namespace convlm::cuda {

enum class Kernel { direct, implicit_gemm, register_tile };
constexpr Kernel kKernels[] = {Kernel::direct, Kernel::implicit_gemm, Kernel::register_tile};

// 10 * major + minor.
using Capability = int;

inline const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::direct:
      return "direct";
    case Kernel::implicit_gemm:
      return "implicit_gemm";
    case Kernel::register_tile:
      return "register_tile";
  }
  return "";
}

// Tensor cores multiply 16-bit numbers exactly; of float32 they round the factors, so only if told
// that TF32 will do. What they do not take is multiplied in its own type, in tiles all the same.
inline Kernel tiled_kernel(ScalarType dtype, Precision precision) {
  const bool sixteen_bits = dtype == ScalarType::bfloat16 || dtype == ScalarType::float16;
  const bool tf32 = dtype == ScalarType::float32 && precision == Precision::tf32;
  return sixteen_bits || tf32 ? Kernel::implicit_gemm : Kernel::register_tile;
}

// A tile is 64 rows of the weight at least and reads a block of 8 to 32 channels. With fewer than 8
// of either in a group, nearly all of its products would be with zeros that fill it up.
inline bool fills_tiles(const Conv1dGeometry& g) {
  constexpr int64_t kFewest = 8;
  return g.in_channels_per_group() >= kFewest && g.out_channels_per_group() >= kFewest;
}

inline Kernel correlation_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision precision,
                                 Capability) {
  return fills_tiles(g) ? tiled_kernel(dtype, precision) : Kernel::direct;
}

inline Kernel forward_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision precision,
                             Capability capability) {
  return correlation_kernel(g, dtype, precision, capability);
}

inline Kernel grad_input_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision precision,
                                Capability capability) {
  return correlation_kernel(g, dtype, precision, capability);
}

inline Kernel grad_weight_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision precision,
                                 Capability) {
  return fills_tiles(g) ? tiled_kernel(dtype, precision) : Kernel::direct;
}

inline Kernel kernel_of(const ForwardArguments& a, Capability capability) {
  return forward_kernel(a.geometry, a.dtype, a.precision, capability);
}
inline Kernel kernel_of(const GradInputArguments& a, Capability capability) {
  return grad_input_kernel(a.geometry, a.dtype, a.precision, capability);
}
inline Kernel kernel_of(const GradWeightArguments& a, Capability capability) {
  return grad_weight_kernel(a.geometry, a.dtype, a.precision, capability);
}

}  // namespace convlm::cuda
