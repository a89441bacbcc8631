// Which kernel a problem gets on a GPU, from geometry, dtype and the GPU's compute capability
// alone. Neither batch nor length may show in the bits of one sample's results, so they have no say
// where kernels add up in different orders. No CUDA header: introspection and the emulator ask too.
#pragma once
#include "arguments.h"
#include "cuda/depthwise.h"

namespace convlm::cuda {

enum class Kernel { direct, depthwise };

// 10 * major + minor.
using Capability = int;

inline const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::direct:
      return "direct";
    case Kernel::depthwise:
      return "depthwise";
  }
  return "";
}

inline Kernel correlation_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision, Capability) {
  if (fits_depthwise(g, dtype))
    return Kernel::depthwise;  // bound by memory: nothing to multiply by
  return Kernel::direct;
}

inline Kernel forward_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision precision,
                             Capability capability) {
  return correlation_kernel(g, dtype, precision, capability);
}

inline Kernel grad_input_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision precision,
                                Capability capability) {
  return correlation_kernel(g, dtype, precision, capability);
}

inline Kernel grad_weight_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision, Capability) {
  if (fits_depthwise(g, dtype)) return Kernel::depthwise;
  return Kernel::direct;
}

}  // namespace convlm::cuda
