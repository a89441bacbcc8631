// The operators of fused stacks on CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/current.h"
#include "cuda/stack_functions.h"

namespace convlm::cuda {
namespace {

struct Gpu {
  static Capability capability(const Tensor& like) {
    return capability_of("stack", like.get_device_index());
  }

  static int64_t least_products_to_share() { return kLeastProductsToShare; }

  static void run(const char* function, const StackProblem& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const Tensor workspace = bytes_like(like, stack_workspace_bytes(problem));
    check(function, run_stack(problem, workspace.mutable_data_ptr(), current_stream(like)));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CUDA, m) {
  m.impl("stack_forward", TORCH_BOX(&stack_forward<Gpu>));
  m.impl("stack_backward", TORCH_BOX(&stack_backward<Gpu>));
  m.impl("stack_cross_entropy", TORCH_BOX(&stack_cross_entropy<Gpu>));
  m.impl("stack_sgd_", TORCH_BOX(&stack_sgd<Gpu>));
  m.impl("stack_losses", TORCH_BOX(&stack_losses<Gpu>));
  m.impl("stack_rows", TORCH_BOX(&stack_rows<Gpu>));
}

}  // namespace convlm::cuda
