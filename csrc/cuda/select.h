// Which kernel a problem's three functions get on a GPU, from geometry, dtype and precision alone.
// The batch must not show in the bits of one sample's results, so it has no say; nor has the
// length, except that samples of a few positions get `small`. No CUDA header: introspection and the
// emulator ask too.
#pragma once
#include "arguments.h"
#include "cuda/fits.h"

namespace convlm::cuda {

enum class Kernel { direct, depthwise, small, implicit_gemm, register_tile };

inline const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::direct:
      return "direct";
    case Kernel::implicit_gemm:
      return "implicit_gemm";
    case Kernel::register_tile:
      return "register_tile";
    case Kernel::depthwise:
      return "depthwise";
    case Kernel::small:
      return "small";
  }
  return "";
}

// Tensor cores multiply 16-bit numbers exactly; of float32 they round the factors, so only if told
// that TF32 will do. What they do not take is multiplied in its own type, in tiles all the same.
inline Kernel tiled_kernel(ScalarType dtype, Precision precision) {
  const bool sixteen_bits = dtype == ScalarType::bfloat16 || dtype == ScalarType::float16;
  const bool tf32 = dtype == ScalarType::float32 && precision == Precision::tf32;
  return sixteen_bits || tf32 ? Kernel::implicit_gemm : Kernel::register_tile;
}

// A tile is 64 rows of the weight at least and reads a block of 8 to 32 channels. With fewer than 8
// of either in a group, nearly all of its products would be with zeros that fill it up.
inline bool fills_tiles(const Conv1dGeometry& g) {
  constexpr int64_t kFewest = 8;
  return g.in_channels_per_group() >= kFewest && g.out_channels_per_group() >= kFewest;
}

// Depthwise layers multiply each input by a few weights, so memory is their limit, and their kernel
// reads it once. Small ones are over before a launch is: what counts is that theirs needs but one.
inline Kernel kernel_for(const Conv1dGeometry& g, ScalarType dtype, Precision precision) {
  if (fits_depthwise(g, dtype)) return Kernel::depthwise;
  if (fits_small(g, dtype)) return Kernel::small;
  return fills_tiles(g) ? tiled_kernel(dtype, precision) : Kernel::direct;
}

}  // namespace convlm::cuda
