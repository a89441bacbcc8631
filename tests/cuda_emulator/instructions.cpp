// The instructions of cuda/instructions.h, each run by one warp on buffers of the tests, and the
// arithmetic that kernels do instead of divisions.
#include "cuda/instructions.h"

#include <cstring>

#include "cuda/tile_vectors.h"
#include "emulator.h"

using namespace convlm;
using namespace convlm::cuda;

namespace {

// The 32 bits number t of row g, of an operand of `bytes` a row.
uint32_t word_of(const void* operand, int bytes, int row, int number) {
  uint32_t word;
  std::memcpy(&word, static_cast<const char*>(operand) + row * bytes + 4 * number, 4);
  return word;
}

// sums[16][8] += a[16][32 bytes] * transposed b[8][32 bytes].
template <class S>
void multiply(const void* a, const void* b, float* sums) {
  emulator::run(nullptr, 1, kWarpSize, 0, [&] {
    const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
    const uint32_t left[4] = {word_of(a, 32, g, t), word_of(a, 32, g + 8, t),
                              word_of(a, 32, g, t + 4), word_of(a, 32, g + 8, t + 4)};
    float mine[4];
    for (int i = 0; i < 4; ++i) mine[i] = sums[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    multiply_matrices<S>(mine, left, word_of(b, 32, g, t), word_of(b, 32, g, t + 4));
    for (int i = 0; i < 4; ++i) sums[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = mine[i];
  });
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void multiply_bfloat16(const void* a, const void* b, float* sums) {
  multiply<bfloat16>(a, b, sums);
}
EXPORT void multiply_float16(const void* a, const void* b, float* sums) {
  multiply<float16>(a, b, sums);
}
EXPORT void multiply_tf32(const void* a, const void* b, float* sums) {
  multiply<float>(a, b, sums);
}

// Copies 512 bytes to shared memory asynchronously, and loads them as four matrices of 8 x 8 16-bit
// numbers: words[lane][matrix].
EXPORT void load(const void* bytes, uint32_t* words, bool transposed) {
  emulator::run(nullptr, 1, kWarpSize, 512, [&] {
    const int lane = static_cast<int>(threadIdx.x);
    unsigned char* row = shared_memory() + 16 * lane;
    copy_16_bytes(row, static_cast<const char*>(bytes) + 16 * lane);
    wait_for_copies();
    __syncthreads();
    uint32_t matrices[4];
    if (transposed)
      load_matrices_transposed(matrices, row);
    else
      load_matrices(matrices, row);
    std::memcpy(words + 4 * lane, matrices, sizeof matrices);
  });
}

EXPORT void exchange_lanes(const double* values, int mask, double* results) {
  emulator::run(nullptr, 1, kWarpSize, 0,
                [&] { results[threadIdx.x] = exchange(values[threadIdx.x], mask); });
}

EXPORT float rounded_to_tf32(float value) { return to_tf32(value); }

EXPORT int divide(int number, int divisor) { return Divisor(divisor).divide(number); }
