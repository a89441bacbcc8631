// Activations, at the end of forward.
#pragma once
#include <cmath>

#include "arguments.h"
#include "cuda/launch.h"

namespace convlm::cuda {

template <class C>
__device__ __forceinline__ C activate(Activation activation, C z) {
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::tanh:
      return std::tanh(z);
    case Activation::relu:
      return z < C(0) ? C(0) : z;  // keeps NaN
    case Activation::silu:
      return z / (C(1) + std::exp(-z));
    case Activation::gelu:
      return C(0.5) * z * (C(1) + std::erf(z * C(0.70710678118654752440)));
    case Activation::sigmoid:
      return C(1) / (C(1) + std::exp(-z));
  }
  return z;
}

}  // namespace convlm::cuda
