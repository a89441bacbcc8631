// The operators of fused stacks on CPU tensors, run by the emulator.
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "cuda/stack_functions.h"
#include "emulated.h"
#include "guarded.h"

namespace convlm::cuda {
namespace {

Capability emulated_capability = 90;

void guard(emulator::GuardedCall& call, StackProblem& p) {
  StackArguments& a = p.arguments;
  const int64_t channels = p.layers.front().in_channels;
  const int64_t results = a.batch * p.layers.back().out_channels() * a.out_length;
  if (a.input_is_rows)
    call.input("x", a.input, p.vocab, channels);
  else
    call.input("x", a.input, a.batch, channels, a.length);
  call.input("grad_output", a.grad_output, a.batch, p.layers.back().out_channels(), a.out_length);
  call.output("y", a.output, results);
  call.output("losses", a.losses, a.batch * a.out_length);
  call.output("loss", p.loss, 1);
  const auto result = [&](const char* name, MutableTensor& t, int64_t d0, int64_t d1, int64_t d2) {
    if (!p.as_step) return call.output(name, t.data, d0 * d1 * d2);
    // A step updates parameters, the elements of which may lie apart.
    const int64_t last = (d0 - 1) * t.stride[0] + (d1 - 1) * t.stride[1] + (d2 - 1) * t.stride[2];
    call.updated(name, t.data, last + 1);
  };
  if (a.input_is_rows)
    result("grad_x", a.grad_input, p.vocab, channels, 1);
  else
    result("grad_x", a.grad_input, a.batch, channels, a.length);
  for (StackLayer& layer : p.layers) {
    call.input("weight", layer.weight, layer.columns, layer.in_channels, layer.kernel_size);
    call.input("bias", layer.bias, layer.columns);
    result("grad_weight", layer.grad_weight, layer.columns, layer.in_channels, layer.kernel_size);
    result("grad_bias", layer.grad_bias, layer.columns, 1, 1);
  }
}

void guard(emulator::GuardedCall& call, int64_t batch, Indices& indices) {
  ConstTensor tensor{indices.rows, {indices.rows_step, 0, 0}};
  call.input("rows", tensor, batch);
  indices.rows = static_cast<const int64_t*>(tensor.data);
}

int64_t least_products = kLeastProductsToShare;

struct Emulated {
  static Capability capability(const Tensor&) { return emulated_capability; }

  static int64_t least_products_to_share() { return least_products; }

  static void run(const char*, StackProblem problem, const Tensor&) {
    const StackArguments a = problem.arguments;
    emulator::GuardedCall call(bytes_of(a.dtype));
    guard(call, problem);
    emulator::GuardedCall tokens(bytes_of(problem.tokens));
    guard_indices(tokens, "tokens", problem.tokens, a.length);
    emulator::GuardedCall target(bytes_of(problem.target));
    guard_indices(target, "target", problem.target, a.out_length);
    emulator::GuardedCall rows(sizeof(int64_t));
    guard(rows, a.batch, problem.tokens);
    guard(rows, a.batch, problem.target);
    emulator::GuardedCall counts(sizeof(int64_t));
    void* row_counts = problem.row_counts;
    counts.output("rows", row_counts, a.depth);
    problem.row_counts = static_cast<int64_t*>(row_counts);
    const emulator::Guarded workspace(stack_workspace_bytes(problem));
    if (run_stack(problem, workspace.data(), nullptr) != cudaSuccess)
      throw std::runtime_error("the launch failed");
    workspace.check("the workspace");
    for (emulator::GuardedCall* guarded : {&call, &tokens, &target, &rows, &counts})
      guarded->finish();
  }
};

}  // namespace

// Of the GPU that is emulated, for tests that want another.
extern "C" __attribute__((visibility("default"))) void set_capability(int value) {
  emulated_capability = value;
}

// From how many products on contexts are shared, for tests of few.
extern "C" __attribute__((visibility("default"))) void set_least_products_to_share(int64_t value) {
  least_products = value;
}

STABLE_TORCH_LIBRARY_IMPL(convlm_emulated, CPU, m) {
  m.impl("stack_forward", TORCH_BOX(&stack_forward<Emulated>));
  m.impl("stack_backward", TORCH_BOX(&stack_backward<Emulated>));
  m.impl("stack_cross_entropy", TORCH_BOX(&stack_cross_entropy<Emulated>));
  m.impl("stack_sgd_", TORCH_BOX(&stack_sgd<Emulated>));
  m.impl("stack_losses", TORCH_BOX(&stack_losses<Emulated>));
  m.impl("stack_rows", TORCH_BOX(&stack_rows<Emulated>));
}

}  // namespace convlm::cuda
