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

// What tiles have no part in.
template <class Arguments, void (*Kernels::*FUNCTION)(const Arguments&)>
void by_vectors(const Arguments& arguments) {
  (avx512_kernels.*FUNCTION)(arguments);
}

}  // namespace
}  // namespace amx

// A constant: what is computed as the library is loaded may not need these instructions.
constexpr Kernels amx_kernels = {
    "amx",
    &amx::forward,
    &amx::grad_input,
    &amx::grad_weight,
    &amx::gradients,
    &amx::forward_kernel,
    &amx::grad_input_kernel,
    &amx::grad_weight_kernel,
    &amx::by_vectors<ActivationGradientArguments, &Kernels::activation_gradient>,
    &amx::by_vectors<LookupArguments, &Kernels::lookup>,
    &amx::by_vectors<GradTableArguments, &Kernels::grad_table>,
    &amx::by_vectors<CrossEntropyArguments, &Kernels::cross_entropy>,
    &amx::by_vectors<SgdArguments, &Kernels::sgd>,
    &amx::by_vectors<StackArguments, &Kernels::stack_forward>,
    &amx::by_vectors<StackArguments, &Kernels::stack_backward>,
    &amx::by_vectors<StackArguments, &Kernels::stack_loss>,
    &amx::by_vectors<StepArguments, &Kernels::step>,
    &amx::by_vectors<GenerateArguments, &Kernels::generate>};

}  // namespace convlm::cpu
#pragma GCC pop_options
#endif
