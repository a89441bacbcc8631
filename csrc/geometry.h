// The arithmetic of a one-dimensional convolution. No torch header: device code includes this too.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define CONVLM_HOST_DEVICE __host__ __device__
#else
#define CONVLM_HOST_DEVICE
#endif

namespace convlm {

// Position in the unpadded input that tap `tap` of output `out` reads; outside [0, length) it is a
// zero.
CONVLM_HOST_DEVICE constexpr int64_t input_position(int64_t out, int64_t tap, int64_t stride,
                                                    int64_t dilation, int64_t pad_left) {
  return out * stride + tap * dilation - pad_left;
}

// Number of outputs; zero or less where the dilated kernel is longer than the padded input.
CONVLM_HOST_DEVICE constexpr int64_t output_length(int64_t length, int64_t kernel_size,
                                                   int64_t stride, int64_t dilation,
                                                   int64_t pad_left, int64_t pad_right) {
  const int64_t last_start = length + pad_left + pad_right - dilation * (kernel_size - 1) - 1;
  const int64_t floor_division =
      last_start >= 0 ? last_start / stride : -((-last_start + stride - 1) / stride);
  return floor_division + 1;
}

struct Conv1dGeometry {
  int64_t batch, in_channels, out_channels, groups;
  int64_t length, out_length, kernel_size;
  int64_t stride, dilation, pad_left, pad_right;

  int64_t in_channels_per_group() const { return in_channels / groups; }
  int64_t out_channels_per_group() const { return out_channels / groups; }
};

}  // namespace convlm
