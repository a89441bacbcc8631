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

}  // namespace

int64_t workspace_bytes(const ForwardArguments&, Capability) { return 0; }
int64_t workspace_bytes(const GradInputArguments&, Capability) { return 0; }
int64_t workspace_bytes(const GradWeightArguments&, Capability) { return 0; }

cudaError_t forward(const ForwardArguments& arguments, const Launch& launch) {
  return for_dtype(arguments.dtype, [&](auto number) {
    return correlate_direct(correlation<decltype(number)>(arguments), launch.stream);
  });
}

cudaError_t grad_input(const GradInputArguments& arguments, const Launch& launch) {
  return for_dtype(arguments.dtype, [&](auto number) {
    return correlate_direct(correlation<decltype(number)>(arguments), launch.stream);
  });
}

cudaError_t grad_weight(const GradWeightArguments& arguments, const Launch& launch) {
  return for_dtype(arguments.dtype, [&](auto number) {
    return weight_gradient_direct(weight_gradient<decltype(number)>(arguments), launch.stream);
  });
}

}  // namespace convlm::cuda
