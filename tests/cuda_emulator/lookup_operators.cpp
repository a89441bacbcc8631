// The operators of look-ups on CPU tensors, run by the emulator.
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "cuda/lookup_functions.h"
#include "emulated.h"
#include "guarded.h"

namespace convlm::cuda {
namespace {

template <class Problem>
void run_guarded(cudaError_t (*function)(const Problem&, cudaStream_t), const Problem& p,
                 emulator::GuardedCall& call) {
  if (function(p, nullptr) != cudaSuccess) throw std::runtime_error("the launch failed");
  call.finish();
}

struct Emulated {
  static void run(LookupProblem p, const Tensor&) {
    const Conv1dGeometry& g = p.geometry;
    emulator::GuardedCall call(bytes_of(p.dtype)), tokens(bytes_of(p.tokens));
    guard_indices(tokens, "tokens", p.tokens, g.length);
    call.input("table", p.table, g.kernel_size, g.in_channels, g.out_channels);
    call.input("bias", p.bias, g.out_channels);
    call.output("y", p.y, g.batch * g.out_channels * g.out_length);
    run_guarded(&look_up, p, call);
    tokens.finish();
  }

  static void run(GradTableProblem p, const Tensor&) {
    const Conv1dGeometry& g = p.geometry;
    emulator::GuardedCall call(bytes_of(p.dtype)), tokens(bytes_of(p.tokens));
    guard_indices(tokens, "tokens", p.tokens, g.length);
    call.input("grad_output", p.grad_output, g.batch, g.out_channels, g.out_length);
    call.output("grad_table", p.grad_table, g.kernel_size * g.in_channels * g.out_channels);
    call.output("grad_bias", p.grad_bias, g.out_channels);
    run_guarded(&add_up_table, p, call);
    tokens.finish();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm_emulated, CPU, m) {
  m.impl("lookup", TORCH_BOX(&lookup<Emulated>));
  m.impl("lookup_grad_table", TORCH_BOX(&lookup_grad_table<Emulated>));
}

}  // namespace convlm::cuda
