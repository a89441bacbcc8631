// Which kernel a problem gets on a GPU, from geometry, dtype and the GPU's compute capability
// alone. The batch must not show in the bits of one sample's results, so it has no say; nor has the
// length, except that samples of a few positions get `small`. No CUDA header: introspection and the
// emulator ask too.
#pragma once
#include "arguments.h"
#include "cuda/fits.h"

namespace convlm::cuda {

enum class Kernel { direct, depthwise, small };
constexpr Kernel kKernels[] = {Kernel::direct, Kernel::depthwise, Kernel::small};

// 10 * major + minor.
using Capability = int;

inline const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::direct:
      return "direct";
    case Kernel::depthwise:
      return "depthwise";
    case Kernel::small:
      return "small";
  }
  return "";
}

// Depthwise layers multiply each input by a few weights, so memory is their limit, and their kernel
// reads it once. Small ones are over before a launch is: what counts is that theirs needs but one.
inline Kernel correlation_kernel(const Conv1dGeometry& g, ScalarType dtype, Precision, Capability) {
  if (fits_depthwise(g, dtype)) return Kernel::depthwise;
  if (fits_small(g, dtype)) return Kernel::small;
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
  if (fits_small(g, dtype)) return Kernel::small;
  return Kernel::direct;
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
