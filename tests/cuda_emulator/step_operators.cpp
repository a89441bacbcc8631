// The operators of streaming on CPU tensors, run by the emulator like those of operators.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>

#include "cuda/step_call.h"
#include "cuda/step_functions.h"
#include "guarded.h"

namespace convlm::cuda {
namespace {

int64_t most_shared_bytes = 227 * 1024;

int bytes_of(ScalarType dtype) {
  return dtype == ScalarType::float64 ? 8 : dtype == ScalarType::float32 ? 4 : 2;
}

// Moves what a step reads and writes into guarded copies, each kind of number by a call of its own.
class GuardedStep {
 public:
  explicit GuardedStep(GenerateArguments& generation)
      : numbers(bytes_of(generation.step.dtype)),
        packed(bytes_of(generation.step.weight_dtype)),
        sums(generation.step.dtype == ScalarType::float64 ? 8 : 4),
        words(8) {
    StepArguments& a = generation.step;
    int64_t weight_size = 0, bias_size = 0;
    for (int64_t l = 0; l < a.layer_count; ++l) {
      weight_size += a.layers[l].weight_size();
      bias_size += a.layers[l].bias_size();
    }
    const int64_t in_channels = a.layers[0].in_channels;
    numbers.input("x", a.x, a.batch, in_channels);
    numbers.input("embedding", a.embedding, generation.vocab, in_channels);
    words.input("tokens", a.tokens, a.batch);
    input(packed, "weights", a.weights, weight_size);
    input(sums, "biases", a.biases, bias_size);
    numbers.updated("rings", a.rings, a.batch * a.ring_row);
    numbers.output("y", a.y, a.batch * a.layers[a.layer_count - 1].results());
    updated(words, "position", a.position, a.batch);
    input(sums, "logit_bias", generation.logit_bias, generation.vocab);
    input(words, "uniform", generation.uniform, a.batch * generation.steps);
    void* generated = generation.generated;
    words.output("generated", generated, a.batch * generation.steps);
    generation.generated = static_cast<int64_t*>(generated);
  }

  void finish() {
    for (emulator::GuardedCall* call : {&numbers, &packed, &sums, &words}) call->finish();
  }

 private:
  template <class T>
  static void input(emulator::GuardedCall& call, const char* name, const T*& data, int64_t count) {
    ConstTensor tensor{data, {1, 0, 0}};
    call.input(name, tensor, count);
    data = static_cast<const T*>(tensor.data);
  }
  static void updated(emulator::GuardedCall& call, const char* name, int64_t*& data,
                      int64_t count) {
    void* copy = data;
    call.updated(name, copy, count);
    data = static_cast<int64_t*>(copy);
  }

  emulator::GuardedCall numbers, packed, sums, words;
};

void run(const GenerateArguments& arguments, GuardedStep& guards) {
  const emulator::Guarded workspace(step_workspace_bytes(arguments, most_shared_bytes));
  if (run_steps(arguments, {nullptr, most_shared_bytes, workspace.data()}) != cudaSuccess)
    throw std::runtime_error("the launch failed");
  guards.finish();
  workspace.check("the workspace");
}

Tensor emulated_step(const Tensor& x, const std::optional<Tensor>& embedding, const Tensor& rings,
                     const Tensor& position, const Tensor& weights, const Tensor& biases,
                     const Tensor& plan, int64_t out_channels) {
  auto [arguments, y] =
      step_call_on_gpu(x, embedding, rings, position, weights, biases, plan, out_channels);
  GuardedStep guards(arguments);
  run(arguments, guards);
  return y;
}

Tensor emulated_generate(const Tensor& tokens, const Tensor& embedding, const Tensor& rings,
                         const Tensor& position, const Tensor& weights, const Tensor& biases,
                         const Tensor& plan, const std::optional<Tensor>& logit_bias,
                         const Tensor& uniform, double temperature, int64_t top_k, double top_p,
                         int64_t stop) {
  auto [arguments, generated] =
      generate_call_on_gpu(tokens, embedding, rings, position, weights, biases, plan, logit_bias,
                           uniform, {temperature, top_k, top_p, stop});
  GuardedStep guards(arguments);
  run(arguments, guards);
  return generated;
}

}  // namespace

// Of the GPU that is emulated, for tests of what does not fit.
extern "C" __attribute__((visibility("default"))) void set_shared_bytes(int64_t value) {
  most_shared_bytes = value;
}

STABLE_TORCH_LIBRARY_IMPL(convlm_emulated, CPU, m) {
  m.impl("step", TORCH_BOX(&emulated_step));
  m.impl("generate", TORCH_BOX(&emulated_generate));
}

}  // namespace convlm::cuda
