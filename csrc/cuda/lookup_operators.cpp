// The operators of look-ups on CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/current.h"
#include "cuda/lookup_functions.h"

namespace convlm::cuda {
namespace {

struct Gpu {
  static void run(const LookupProblem& p, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    check("lookup", look_up(p, current_stream(like)));
  }
  static void run(const GradTableProblem& p, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    check("lookup_grad_table", add_up_table(p, current_stream(like)));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CUDA, m) {
  m.impl("lookup", TORCH_BOX(&lookup<Gpu>));
  m.impl("lookup_grad_table", TORCH_BOX(&lookup_grad_table<Gpu>));
}

}  // namespace convlm::cuda
