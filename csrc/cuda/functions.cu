#include <type_traits>

#include "cuda/dtypes.h"
#include "cuda/functions.h"
#include "cuda/kernels.h"

namespace convlm::cuda {
namespace {

template <class S>
constexpr bool kHasImplicitGemm = !std::is_same_v<S, double>;
template <class S>
constexpr bool kHasRegisterTile = std::is_same_v<S, Compute<S>>;

// The gradient of an input without positions: there is nothing to do, and no classes to divide by.
template <class S>
bool makes_nothing(const Correlation<S>& p) {
  return p.outputs == 0;
}

template <class S, template <class> class Problem>
int64_t tiles_workspace(Kernel kernel, const Problem<S>& p) {
  if constexpr (kHasImplicitGemm<S>)
    if (kernel == Kernel::implicit_gemm) return implicit_gemm_workspace(p);
  if constexpr (kHasRegisterTile<S>)
    if (kernel == Kernel::register_tile) return register_tile_workspace(p);
  return 0;
}

template <class S>
int64_t workspace_bytes(Kernel kernel, const Correlation<S>& p) {
  return makes_nothing(p) ? 0 : tiles_workspace(kernel, p);
}

template <class S>
int64_t workspace_bytes(Kernel kernel, const WeightGradient<S>& p) {
  if (kernel == Kernel::depthwise) return weight_gradient_depthwise_workspace(p);
  return tiles_workspace(kernel, p);
}

template <class S>
cudaError_t correlate(const Correlation<S>& p, const Launch& launch) {
  if (makes_nothing(p)) return cudaSuccess;
  if (launch.kernel == Kernel::depthwise) return correlate_depthwise(p, launch.stream);
  if (launch.kernel == Kernel::small) return correlate_small(p, launch.stream);
  if constexpr (kHasImplicitGemm<S>)
    if (launch.kernel == Kernel::implicit_gemm)
      return correlate_implicit_gemm(p, launch.workspace, launch.stream);
  if constexpr (kHasRegisterTile<S>)
    if (launch.kernel == Kernel::register_tile)
      return correlate_register_tile(p, launch.workspace, launch.stream);
  if (launch.kernel == Kernel::direct) return correlate_direct(p, launch.stream);
  return cudaErrorInvalidValue;
}

template <class S>
cudaError_t weight_gradient(const WeightGradient<S>& p, const Launch& launch) {
  if (launch.kernel == Kernel::depthwise)
    return weight_gradient_depthwise(p, launch.workspace, launch.stream);
  if (launch.kernel == Kernel::small) return weight_gradient_small(p, launch.stream);
  if constexpr (kHasImplicitGemm<S>)
    if (launch.kernel == Kernel::implicit_gemm)
      return weight_gradient_implicit_gemm(p, launch.workspace, launch.stream);
  if constexpr (kHasRegisterTile<S>)
    if (launch.kernel == Kernel::register_tile)
      return weight_gradient_register_tile(p, launch.workspace, launch.stream);
  if (launch.kernel == Kernel::direct) return weight_gradient_direct(p, launch.stream);
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t workspace_bytes(const ForwardArguments& a, Kernel kernel) {
  return for_dtype(a.dtype,
                   [&](auto s) { return workspace_bytes(kernel, correlation<decltype(s)>(a)); });
}
int64_t workspace_bytes(const GradInputArguments& a, Kernel kernel) {
  return for_dtype(a.dtype,
                   [&](auto s) { return workspace_bytes(kernel, correlation<decltype(s)>(a)); });
}
int64_t workspace_bytes(const GradWeightArguments& a, Kernel kernel) {
  return for_dtype(
      a.dtype, [&](auto s) { return workspace_bytes(kernel, weight_gradient<decltype(s)>(a)); });
}

cudaError_t forward(const ForwardArguments& a, const Launch& launch) {
  return for_dtype(a.dtype, [&](auto s) { return correlate(correlation<decltype(s)>(a), launch); });
}
cudaError_t grad_input(const GradInputArguments& a, const Launch& launch) {
  return for_dtype(a.dtype, [&](auto s) { return correlate(correlation<decltype(s)>(a), launch); });
}
cudaError_t grad_weight(const GradWeightArguments& a, const Launch& launch) {
  return for_dtype(
      a.dtype, [&](auto s) { return weight_gradient(weight_gradient<decltype(s)>(a), launch); });
}

}  // namespace convlm::cuda
