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

// The derivative at y = activate(z) times `gradient`.
template <class C>
__device__ __forceinline__ C times_derivative(Activation activation, C gradient, C y) {
  switch (activation) {
    case Activation::tanh:
      return gradient * ((C(1) - y) * (C(1) + y));  // no digits lost near |y| = 1
    case Activation::sigmoid:
      return gradient * (y * (C(1) - y));
    case Activation::relu:
      return y <= C(0) ? C(0) : gradient;
    default:
      return gradient;
  }
}

}  // namespace convlm::cuda
