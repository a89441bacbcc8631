// From a dtype that is known when running to one that is known when compiling.
#pragma once
#include "arguments.h"

namespace convlm::cuda {

template <class Body>
auto for_dtype(ScalarType dtype, const Body& body) {
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

}  // namespace convlm::cuda
