// What the kernels that keep their operands whole in shared memory can take.
#pragma once
#include "arguments.h"

namespace convlm::cuda {

constexpr int64_t kMostSharedBytes = 96 * 1024;  // of a block; every GPU from 8.0 on has them
constexpr int64_t kMostClasses = 16;             // of positions, in grad_input: the stride

inline int64_t bytes_of_compute(ScalarType dtype) { return dtype == ScalarType::float64 ? 8 : 4; }

inline int64_t span(const Conv1dGeometry& g) { return g.dilation * (g.kernel_size - 1); }

inline bool fits_depthwise(const Conv1dGeometry& g, ScalarType dtype) {
  constexpr int64_t kMostOutputsPerInput = 8;  // above, a matrix product shares its operands
  constexpr int64_t kLeastOutputs = 128, kRounding = 64;
  const int64_t elements = kMostSharedBytes / bytes_of_compute(dtype);
  const int64_t rows = g.out_channels_per_group();
  if (g.groups != g.in_channels || rows > kMostOutputsPerInput) return false;
  if (g.stride > kMostClasses || g.kernel_size > elements) return false;
  const int64_t window = kLeastOutputs * (g.stride + 1) + span(g) + kRounding;
  return rows * (window + g.kernel_size) <= elements;
}

// Of small.cu: rows of a block in a correlation; rows and columns in a weight's gradient.
constexpr int64_t kSmallRows = 32, kSmallGradientRows = 16, kSmallColumns = 16;

inline int64_t small_rows(int64_t rows) {
  return rows < kSmallRows ? (rows + 3) / 4 * 4 : kSmallRows;
}

// `window`: the positions that all outputs of a channel read.
inline bool fits_small_gradient(int64_t out_length, int64_t window, ScalarType dtype) {
  const int64_t elements = kMostSharedBytes / bytes_of_compute(dtype);
  return (kSmallGradientRows + 4) * out_length + kSmallColumns * window <= elements;
}

inline bool fits_small(const Conv1dGeometry& g, ScalarType dtype) {
  constexpr int64_t kMostChannels = 128,
                    kMostLength = 256;  // above, there are larger tiles to fill
  if (g.groups != 1) return false;
  if (g.in_channels > kMostChannels || g.out_channels > kMostChannels) return false;
  if (g.length > kMostLength || g.out_length > kMostLength || g.stride > kMostClasses) return false;
  const int64_t elements = kMostSharedBytes / bytes_of_compute(dtype);
  if (g.kernel_size > elements || span(g) > elements) return false;
  const int64_t in = g.in_channels, out = g.out_channels;
  const int64_t window = (g.out_length - 1) * g.stride + span(g) + 1;
  const int64_t window_of_gradient = (g.length + span(g)) / g.stride + 2;
  return in * (window + g.kernel_size * small_rows(out)) <= elements &&
         out * (window_of_gradient + g.kernel_size * small_rows(in)) <= elements &&
         fits_small_gradient(g.out_length, window, dtype);
}

}  // namespace convlm::cuda
