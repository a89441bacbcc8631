#include "cuda/step_functions.h"
#include "cuda/step_plan.h"

namespace convlm::cuda {
namespace {

// With fewer there is a multiprocessor for each, on the larger GPUs.
constexpr int64_t kMostAlone = 128;
constexpr int64_t kMostBlocksInWorkspace = 256;

// It changes no bit of a result.
StepArrangement arrangement_of(const GenerateArguments& a, int64_t most_shared_bytes) {
  const auto fits = [&](int samples) {
    return planned(a, samples).memory.bytes <= most_shared_bytes;
  };
  const int64_t batch = a.step.batch;
  if (batch > kMostAlone && fits(kFewSamples))
    return {kFewSamples, true, (batch + kFewSamples - 1) / kFewSamples};
  if (fits(1)) return {1, true, batch};
  return {1, false, std::min(batch, kMostBlocksInWorkspace)};
}

}  // namespace

int64_t step_numbers(const StepArguments& a) {
  int64_t size = 0;
  for (int64_t l = 0; l < a.layer_count; ++l) {
    const StepLayer& layer = a.layers[l];
    const int64_t own =
        window_size(layer) + layer.bias_size() + kQuad * (layer.out_channels + layer.groups);
    size += std::min(own, kMostStepNumbers);
  }
  return size;
}

int64_t step_workspace_bytes(const GenerateArguments& a, int64_t most_shared_bytes) {
  const StepArrangement how = arrangement_of(a, most_shared_bytes);
  return how.shared ? 0 : how.blocks * planned(a, how.samples).memory.bytes;
}

cudaError_t run_steps(const GenerateArguments& a, const StepLaunch& launch) {
  const StepArrangement how = arrangement_of(a, launch.most_shared_bytes);
  StepProblem p = planned(a, how.samples);
  p.workspace = launch.workspace;
  switch (a.step.dtype) {
    case ScalarType::float32:
      return a.step.weight_dtype == ScalarType::bfloat16
                 ? launch_step<float, bfloat16>(p, how, launch.stream)
                 : launch_step<float, float>(p, how, launch.stream);
    case ScalarType::float64:
      return launch_step<double, double>(p, how, launch.stream);
    case ScalarType::bfloat16:
      return launch_step<bfloat16, bfloat16>(p, how, launch.stream);
    case ScalarType::float16:
      return launch_step<float16, float16>(p, how, launch.stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace convlm::cuda
