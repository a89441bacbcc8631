// All kernels of one instruction set. The including file sets CONVLM_ISA, its name as a namespace,
// and CONVLM_VECTOR_BYTES, and compiles this under the matching target pragma. Where the set has
// dot products of bfloat16 it sets CONVLM_DOT_BFLOAT16 too: only that type is compiled then, and
// the others are left to the kernels that this macro names. Nothing here may instantiate library
// templates: their code would be shared with translation units for lesser processors.

namespace convlm::cpu {
namespace CONVLM_ISA {
namespace {

#include "cpu/simd.inl"

// Each builds on the ones above it.
// clang-format off
#include "cpu/jobs.inl"
#include "cpu/operands.inl"
#if defined(CONVLM_DOT_BFLOAT16)
#include "cpu/pairs.inl"
#endif
#include "cpu/activation.inl"
#include "cpu/transpose.inl"
#include "cpu/staging.inl"
#include "cpu/interleave.inl"
#include "cpu/outer_product.inl"
#include "cpu/correlation.inl"
#include "cpu/position_tiles.inl"
#include "cpu/correlate_positions.inl"
#include "cpu/correlate_rows.inl"
#include "cpu/joined.inl"
#include "cpu/correlate_joined.inl"
#include "cpu/correlate_taps.inl"
#include "cpu/depthwise.inl"
#include "cpu/depthwise_interleaved.inl"
#include "cpu/inner_product.inl"
#include "cpu/windows.inl"
#include "cpu/correlate_windows.inl"
#include "cpu/correlate_into_windows.inl"
#include "cpu/fast_filter.inl"
#include "cpu/fast_filter_input.inl"
#include "cpu/correlate_fast.inl"
#include "cpu/weight_gradient.inl"
#include "cpu/depthwise_groups.inl"
#include "cpu/grad_weight_rows.inl"
#include "cpu/grad_weight_windows.inl"
#include "cpu/grad_weight_positions.inl"
#include "cpu/depthwise_gradients.inl"
#include "cpu/grad_weight_joined.inl"
#include "cpu/grad_weight_fast.inl"
#include "cpu/correlation_costs.inl"
#include "cpu/window_costs.inl"
#include "cpu/select.inl"
#include "cpu/select_grad_weight.inl"
#include "cpu/position_classes.inl"
#include "cpu/problems.inl"
#include "cpu/functions.inl"
#include "cpu/activation_gradient.inl"
#include "cpu/lookup.inl"
#include "cpu/grad_table.inl"
#include "cpu/put_gradient.inl"
#include "cpu/table.inl"
#include "cpu/cross_entropy.inl"
#include "cpu/sgd.inl"
#include "cpu/arena.inl"
#include "cpu/row_sums.inl"
#include "cpu/row_product.inl"
#include "cpu/row_gradient.inl"
#include "cpu/stack_rows.inl"
#include "cpu/stack_weights.inl"
#include "cpu/stack_products.inl"
#include "cpu/stack_filter.inl"
#include "cpu/stack.inl"
#include "cpu/stack_sums.inl"
#include "cpu/stack_links.inl"
#include "cpu/stack_slopes.inl"
#include "cpu/stack_backward.inl"
#include "cpu/stack_loss.inl"
#if !defined(CONVLM_DOT_BFLOAT16)
#include "cpu/step_products.inl"
#include "cpu/step.inl"
#include "cpu/generate.inl"
#endif
// clang-format on

#if defined(CONVLM_DOT_BFLOAT16)
// A step reads each weight once: dot products of pairs would save it nothing.
void step(const StepArguments& arguments) { CONVLM_DOT_BFLOAT16.step(arguments); }
void generate(const GenerateArguments& arguments) { CONVLM_DOT_BFLOAT16.generate(arguments); }
#endif

}  // namespace

}  // namespace CONVLM_ISA

#define CONVLM_TABLE_NAME(isa) isa##_kernels
#define CONVLM_TABLE(isa) CONVLM_TABLE_NAME(isa)
#define CONVLM_STRING_OF(isa) #isa
#define CONVLM_STRING(isa) CONVLM_STRING_OF(isa)
// A constant: what is computed as the library is loaded may not need these instructions.
constexpr Kernels CONVLM_TABLE(CONVLM_ISA) = {CONVLM_STRING(CONVLM_ISA),
                                              &CONVLM_ISA::forward,
                                              &CONVLM_ISA::grad_input,
                                              &CONVLM_ISA::grad_weight,
                                              &CONVLM_ISA::gradients,
                                              &CONVLM_ISA::forward_kernel_of,
                                              &CONVLM_ISA::grad_input_kernel_of,
                                              &CONVLM_ISA::grad_weight_kernel_of,
                                              &CONVLM_ISA::activation_gradient,
                                              &CONVLM_ISA::lookup,
                                              &CONVLM_ISA::grad_table,
                                              &CONVLM_ISA::cross_entropy,
                                              &CONVLM_ISA::sgd,
                                              &CONVLM_ISA::stack_forward,
                                              &CONVLM_ISA::stack_backward,
                                              &CONVLM_ISA::stack_loss,
                                              &CONVLM_ISA::step,
                                              &CONVLM_ISA::generate};

}  // namespace convlm::cpu
