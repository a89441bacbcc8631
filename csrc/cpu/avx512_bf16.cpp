#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/runtime.h"

#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define CONVLM_ISA avx512_bf16
#define CONVLM_VECTOR_BYTES 64
#define CONVLM_DOT_BFLOAT16 avx512_kernels
#include "cpu/kernels.inl"
#pragma GCC pop_options
#endif
