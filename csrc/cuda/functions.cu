#include "cuda/functions.h"
#include "cuda/kernels.h"

namespace convlm::cuda {
namespace {

template <class Body>
cudaError_t for_dtype(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::float32:
      return body(float{});
    case ScalarType::float64:
      return body(double{});
    case ScalarType::bfloat16:
      return body(bfloat16{});
    default:
      return body(float16{});
  }
}

template <class S>
cudaError_t correlate(Kernel kernel, const Correlation<S>& p, const Launch& launch) {
  switch (kernel) {
    case Kernel::depthwise:
      return correlate_depthwise(p, launch.stream);
    case Kernel::direct:
      return correlate_direct(p, launch.stream);
  }
  return cudaSuccess;
}

template <class S>
cudaError_t weight_gradient(Kernel kernel, const WeightGradient<S>& p, const Launch& launch) {
  switch (kernel) {
    case Kernel::depthwise:
      return weight_gradient_depthwise(p, launch.workspace, launch.stream);
    case Kernel::direct:
      return weight_gradient_direct(p, launch.stream);
  }
  return cudaSuccess;
}

Kernel kernel_of(const ForwardArguments& a, Capability capability) {
  return forward_kernel(a.geometry, a.dtype, a.precision, capability);
}
Kernel kernel_of(const GradInputArguments& a, Capability capability) {
  return grad_input_kernel(a.geometry, a.dtype, a.precision, capability);
}
Kernel kernel_of(const GradWeightArguments& a, Capability capability) {
  return grad_weight_kernel(a.geometry, a.dtype, a.precision, capability);
}

}  // namespace

int64_t workspace_bytes(const ForwardArguments&, Capability) { return 0; }
int64_t workspace_bytes(const GradInputArguments&, Capability) { return 0; }
int64_t workspace_bytes(const GradWeightArguments& a, Capability capability) {
  if (kernel_of(a, capability) != Kernel::depthwise) return 0;
  int64_t bytes = 0;
  for_dtype(a.dtype, [&](auto number) {
    bytes = weight_gradient_depthwise_workspace(weight_gradient<decltype(number)>(a));
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t forward(const ForwardArguments& a, const Launch& launch) {
  return for_dtype(a.dtype, [&](auto number) {
    return correlate(kernel_of(a, launch.capability), correlation<decltype(number)>(a), launch);
  });
}

cudaError_t grad_input(const GradInputArguments& a, const Launch& launch) {
  return for_dtype(a.dtype, [&](auto number) {
    return correlate(kernel_of(a, launch.capability), correlation<decltype(number)>(a), launch);
  });
}

cudaError_t grad_weight(const GradWeightArguments& a, const Launch& launch) {
  return for_dtype(a.dtype, [&](auto number) {
    return weight_gradient(kernel_of(a, launch.capability), weight_gradient<decltype(number)>(a),
                           launch);
  });
}

}  // namespace convlm::cuda
