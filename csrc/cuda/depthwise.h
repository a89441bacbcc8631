// What the depthwise kernels can take: what they keep in shared memory must fit.
#pragma once
#include "arguments.h"

namespace convlm::cuda {

constexpr int64_t kDepthwiseBytes = 96 * 1024;  // of shared memory, which every GPU from 8.0 on has
constexpr int64_t kMostClasses = 16;            // of positions, in grad_input: the stride
constexpr int64_t kMostOutputsPerInput = 8;     // above it a matrix product shares its operands

inline int64_t bytes_of_compute(ScalarType dtype) { return dtype == ScalarType::float64 ? 8 : 4; }

inline bool fits_depthwise(const Conv1dGeometry& g, ScalarType dtype) {
  if (g.groups != g.in_channels || g.stride > kMostClasses) return false;
  constexpr int64_t kLeastOutputs = 128, kLeastPadding = 64;
  const int64_t channels = g.out_channels_per_group();
  const int64_t limit = kDepthwiseBytes / bytes_of_compute(dtype);
  if (channels > kMostOutputsPerInput || g.kernel_size > limit) return false;
  const int64_t window = kLeastOutputs * (g.stride + 1) + g.dilation * (g.kernel_size - 1);
  return channels * (window + kLeastPadding + g.kernel_size) <= limit;
}

}  // namespace convlm::cuda
