#include "cpu/kernels.h"

#if defined(CONVLM_AMX)
#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "cpu/runtime.h"

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define CONVLM_VECTOR_BYTES 64
#define CONVLM_DOT_BFLOAT16 avx512_kernels

// AVX-512 with tiles of bfloat16: what they multiply is compiled here, all else is left to vectors.
namespace convlm::cpu {
namespace amx {
namespace {

// Each builds on the ones above it.
// clang-format off
#include "cpu/simd.inl"
#include "cpu/jobs.inl"
#include "cpu/operands.inl"
#include "cpu/pairs.inl"
#include "cpu/activation.inl"
#include "cpu/transpose.inl"
#include "cpu/staging.inl"
#include "cpu/interleave.inl"
#include "cpu/outer_product.inl"
#include "cpu/correlation.inl"
#include "cpu/weight_gradient.inl"
#include "cpu/grad_weight_rows.inl"
#include "cpu/position_classes.inl"
#include "cpu/problems.inl"
#include "cpu/tiles.inl"
#include "cpu/correlate_tiles.inl"
#include "cpu/grad_weight_tiles.inl"
#include "cpu/select_tiles.inl"
// clang-format on

}  // namespace
}  // namespace amx

const Kernels amx_kernels = [] {
  Kernels kernels = avx512_kernels;
  kernels.isa = "amx";
  kernels.forward = &amx::forward;
  kernels.grad_input = &amx::grad_input;
  kernels.grad_weight = &amx::grad_weight;
  kernels.gradients = &amx::gradients;
  kernels.forward_kernel = &amx::forward_kernel;
  kernels.grad_input_kernel = &amx::grad_input_kernel;
  kernels.grad_weight_kernel = &amx::grad_weight_kernel;
  return kernels;
}();

}  // namespace convlm::cpu
#pragma GCC pop_options
#endif
