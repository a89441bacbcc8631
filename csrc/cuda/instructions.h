// Instructions that C++ has no words for, each as a function. Under nvcc they are PTX; elsewhere
// they are what the PTX manual says of them, lane by lane, for the emulator.
#pragma once
#include <cstdint>
#include <cstring>

#include "arguments.h"
#include "cuda/launch.h"
#include "cuda/numbers.h"

namespace convlm::cuda {

constexpr int kWarpSize = 32;

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of 16 bytes to shared memory; both addresses are multiples of 16.
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
}

// Waits for all copies that this thread has started. Others see them after a barrier.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Four matrices of 8 rows, 16 bytes each. Lane l has the address of row l % 8 of matrix l / 8. Of
// every matrix it gets the 32 bits number l % 4 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row)));
}

// Likewise, but lane l gets the 16-bit numbers in column l / 4 of rows 2 * (l % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row)));
}

// To the nearest number of TF32, ties away from zero.
__device__ __forceinline__ float to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return float_of(bits);
}

// sums (16 x 8) += a * b on tensor cores, where a is 16 x 16 and b 16 x 8 of 16-bit numbers, or
// 16 x 8 and 8 x 8 of TF32. Lane l, with g = l / 4 and t = l % 4, has
//   sums[0], [1]  row g, columns 2t and 2t + 1;   sums[2], [3]  row g + 8
//   a[0], a[1]    rows g and g + 8, the 32 bits number t;   a[2], a[3]  the 32 bits number t + 4
//   b[0], b[1]    column g, the 32 bits number t and t + 4
template <class S>
__device__ __forceinline__ void multiply_matrices(float (&sums)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1);

#define CONVLM_MULTIPLY_MATRICES(S, TYPES)                                                     \
  template <>                                                                                  \
  __device__ __forceinline__ void multiply_matrices<S>(float(&sums)[4], const uint32_t(&a)[4], \
                                                       uint32_t b0, uint32_t b1) {             \
    asm volatile("mma.sync.aligned." TYPES                                                     \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));              \
  }
CONVLM_MULTIPLY_MATRICES(bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
CONVLM_MULTIPLY_MATRICES(float16, "m16n8k16.row.col.f32.f16.f16.f32")
CONVLM_MULTIPLY_MATRICES(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef CONVLM_MULTIPLY_MATRICES

// What lane l ^ mask of the warp has as `value`.
template <class T>
__device__ __forceinline__ T exchange(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Behind it a lane sees what the others of its warp wrote before.
__device__ __forceinline__ void synchronize_warp() { __syncwarp(); }

#else

inline void copy_16_bytes(void* shared, const void* global) {
  emulator::check_access("copy_16_bytes, to", shared, 16, 16, true);
  emulator::check_access("copy_16_bytes, from", global, 16, 16, false);
  emulator::copy_later(shared, global, 16);
}

inline void wait_for_copies() {
  emulator::commit_copies();
  emulator::wait_for_copies(0);
}

struct MatrixRow {
  const void* row;
  uint32_t* matrices;
};

inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  emulator::check_access("load_matrices", row, 16, 16, true);
  MatrixRow mine{row, matrices};
  emulator::collective("load_matrices", &mine, [](void* const* lanes) {
    const auto lane = [&](int l) { return static_cast<MatrixRow*>(lanes[l]); };
    for (int l = 0; l < kWarpSize; ++l)
      for (int m = 0; m < 4; ++m)
        std::memcpy(&lane(l)->matrices[m],
                    static_cast<const char*>(lane(8 * m + l / 4)->row) + 4 * (l % 4), 4);
  });
}

inline void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
  emulator::check_access("load_matrices_transposed", row, 16, 16, true);
  MatrixRow mine{row, matrices};
  emulator::collective("load_matrices_transposed", &mine, [](void* const* lanes) {
    const auto lane = [&](int l) { return static_cast<MatrixRow*>(lanes[l]); };
    for (int l = 0; l < kWarpSize; ++l)
      for (int m = 0; m < 4; ++m) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i)
          std::memcpy(&pair[i],
                      static_cast<const char*>(lane(8 * m + 2 * (l % 4) + i)->row) + 2 * (l / 4),
                      2);
        std::memcpy(&lane(l)->matrices[m], pair, 4);
      }
  });
}

inline float to_tf32(float value) {
  const uint32_t bits = bits_of(value);
  return value != value ? value : float_of((bits + 0x1000) & ~uint32_t{0x1fff});
}

// Number i of the 32 bits of an operand; of TF32 there is one, and its low bits are not looked at.
template <class S>
float number_in(uint32_t word, int i) {
  return to_compute(S{static_cast<uint16_t>(word >> 16 * i)});
}
template <>
inline float number_in<float>(uint32_t word, int) {
  return float_of(word & ~uint32_t{0x1fff});
}

template <class S>
void multiply_matrices(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    float* sums;
    const uint32_t* a;
    uint32_t b[2];
  } mine{sums, a, {b0, b1}};
  emulator::collective("multiply_matrices", &mine, [](void* const* lanes) {
    constexpr int kNumbers = 4 / sizeof(S);  // in 32 bits
    constexpr int kDepth = 8 * kNumbers;
    float left[16][kDepth], right[8][kDepth];
    for (int l = 0; l < kWarpSize; ++l) {
      const Operands& lane = *static_cast<Operands*>(lanes[l]);
      for (int half = 0; half < 2; ++half)
        for (int i = 0; i < kNumbers; ++i) {
          const int k = (l % 4 + 4 * half) * kNumbers + i;
          left[l / 4][k] = number_in<S>(lane.a[2 * half], i);
          left[l / 4 + 8][k] = number_in<S>(lane.a[2 * half + 1], i);
          right[l / 4][k] = number_in<S>(lane.b[half], i);
        }
    }
    for (int l = 0; l < kWarpSize; ++l)
      for (int i = 0; i < 4; ++i) {
        float& sum = static_cast<Operands*>(lanes[l])->sums[i];
        const float *row = left[l / 4 + i / 2 * 8], *column = right[l % 4 * 2 + i % 2];
        for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
      }
  });
}

template <class T>
T exchange(T value, int mask) {
  struct Operands {
    T value, result;
    int mask;
  } mine{value, value, mask};
  emulator::collective("exchange", &mine, [](void* const* lanes) {
    for (int l = 0; l < kWarpSize; ++l) {
      Operands& lane = *static_cast<Operands*>(lanes[l]);
      lane.result = static_cast<Operands*>(lanes[l ^ lane.mask])->value;
    }
  });
  return mine.result;
}

inline void synchronize_warp() {
  emulator::collective("synchronize_warp", nullptr, [](void* const*) {});
}

#endif

}  // namespace convlm::cuda
