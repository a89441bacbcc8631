// A network as the step kernel walks it: made on the host, where nothing costs time, from a plan
// that was checked there.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/fits.h"
#include "cuda/step_functions.h"
#include "step.h"

namespace convlm::cuda {

constexpr int kStepThreads = 256;
constexpr int kQuad = 4;        // neighbouring outputs, of one thread
constexpr int kFewSamples = 4;  // of a block that has several

// Weights of bfloat16 lie in pairs of steps (StepLayer::weight_size).
constexpr int row_steps(ScalarType weight_dtype) {
  return weight_dtype == ScalarType::bfloat16 ? 2 : 1;
}

// Offsets count elements. A depthwise layer is one group here, whose taps do not mix channels.
struct PlannedLayer {
  int64_t weight, ring;       // where they begin, the ring in a row of the state
  int64_t lag;                // steps before its first input
  int32_t channels, outputs;  // of a group
  int32_t groups, kernel_size, dilation;
  int32_t window, bias;  // where they begin
  // Its products are cut into so many slices of rows, each for a thread of every quad.
  int16_t slices;
  uint8_t activation;
  bool gated : 1, residual : 1, depthwise : 1;
  bool channels_outside : 1;
  bool like_the_last : 1;  // the products are cut as those of the layer before

  __host__ __device__ int in_channels() const { return channels * groups; }
  __host__ __device__ int results() const { return outputs * groups / (gated ? 2 : 1); }
  __host__ __device__ int64_t slots() const { return int64_t{dilation} * (kernel_size - 1); }
  __host__ __device__ int packed_steps() const { return (channels * kernel_size + 1) / 2 * 2; }
  __host__ __device__ int group_quads() const { return (outputs + kQuad - 1) / kQuad; }
  __host__ __device__ int quads() const { return groups * group_quads(); }
  // Where the window has an input, in the order of the packed weights.
  __host__ __device__ int place(int channel, int tap) const {
    int first = window, c = channel;
    if (groups > 1) {
      first += channel / channels * packed_steps();
      c = channel % channels;
    }
    return first + (channels_outside ? c * kernel_size + tap : tap * channels + c);
  }
  // Where the sums of a slice have an output.
  __host__ __device__ int sum_place(int output) const {
    if (groups == 1) return output;
    return output / outputs * (group_quads() * kQuad) + output % outputs;
  }
};

struct StepSample {
  int64_t number;  // in the batch; none if negative
  int64_t position, token;
  bool running;
};

// A block's memory: the samples, their slots [sample][layer], then numbers of the type of the sums.
struct StepMemory {
  int32_t windows, sums, outputs;  // of one sample
  int32_t biases;
  int64_t numbers_at, bytes;
};

// All that the kernel is told. A plain step is a generation of one position without drawing.
struct StepProblem {
  GenerateArguments a;  // but for its layers
  StepMemory memory;
  void* workspace;  // the memory of all blocks, where it does not fit into shared memory
  int64_t lag;      // steps before the first output
  PlannedLayer layers[kMostStepLayers];

  __host__ __device__ bool draws() const { return a.uniform != nullptr; }
};
static_assert(sizeof(StepProblem) <= 4096, "what a kernel may be told");

inline bool cut_alike(const PlannedLayer& a, const PlannedLayer& b) {
  return a.channels == b.channels && a.outputs == b.outputs && a.groups == b.groups &&
         a.kernel_size == b.kernel_size && a.depthwise == b.depthwise && a.quads() <= kStepThreads;
}

// What does not depend on the layers before.
inline PlannedLayer planned_layer(const StepLayer& layer, ScalarType weight_dtype) {
  PlannedLayer p{};
  p.depthwise = layer.depthwise();
  p.groups = static_cast<int32_t>(p.depthwise ? 1 : layer.groups);
  p.channels = static_cast<int32_t>(layer.in_channels / p.groups);
  p.outputs = static_cast<int32_t>(layer.out_channels / p.groups);
  p.kernel_size = static_cast<int32_t>(layer.kernel_size);
  p.dilation = static_cast<int32_t>(layer.dilation);
  p.activation = static_cast<uint8_t>(layer.activation);
  p.gated = layer.gated;
  p.residual = layer.residual;
  p.channels_outside = !p.depthwise && layer.channels_outside();
  const int rows = p.packed_steps() / row_steps(weight_dtype);
  p.slices = static_cast<int16_t>(
      p.depthwise ? 1 : std::clamp(kStepThreads / p.quads(), 1, std::min(rows, kStepThreads)));
  return p;
}

inline int64_t window_size(const StepLayer& layer) {
  return layer.depthwise() ? layer.kernel_size * layer.in_channels
                           : layer.groups * layer.packed_steps();
}

inline StepMemory memory_of(const StepProblem& p, int64_t windows, int64_t biases, int samples) {
  StepMemory m{};
  for (int64_t l = 0; l < p.a.step.layer_count; ++l) {
    const PlannedLayer& layer = p.layers[l];
    m.sums = std::max(m.sums, layer.slices * layer.quads() * kQuad);
  }
  m.windows = static_cast<int32_t>(windows);
  m.biases = static_cast<int32_t>(biases);
  m.outputs = p.draws() ? p.layers[p.a.step.layer_count - 1].results() : 0;
  m.numbers_at = samples * (sizeof(StepSample) + p.a.step.layer_count * sizeof(int64_t));
  const int64_t numbers = m.biases + int64_t{samples} * (m.windows + m.sums + m.outputs);
  m.bytes = (m.numbers_at + numbers * bytes_of_compute(p.a.step.dtype) + 255) / 256 * 256;
  return m;
}

// How many samples a block has, and where its memory is.
struct StepArrangement {
  int samples;  // 1, or kFewSamples in shared memory
  bool shared;
  int64_t blocks;
};

inline StepProblem planned(const GenerateArguments& a, int samples) {
  StepProblem p{};
  p.a = a;
  p.a.step.layers = nullptr;  // the host's
  int64_t weight = 0, ring = 0, lag = 0, window = 0, bias = 0;
  for (int64_t l = 0; l < a.step.layer_count; ++l) {
    const StepLayer& layer = a.step.layers[l];
    PlannedLayer& planned = p.layers[l];
    planned = planned_layer(layer, a.step.weight_dtype);
    planned.weight = weight;
    planned.ring = ring;
    planned.lag = lag;
    planned.window = static_cast<int32_t>(window);
    planned.bias = static_cast<int32_t>(bias);
    planned.like_the_last = l > 0 && cut_alike(planned, p.layers[l - 1]);
    weight += layer.weight_size();
    ring += layer.slots() * layer.in_channels;
    lag += layer.lag();
    window += window_size(layer);
    bias += layer.bias_size();
  }
  p.lag = lag;
  p.memory = memory_of(p, window, bias, samples);
  return p;
}

// In step_kernel.h.
template <class S, class Weight>
cudaError_t launch_step(const StepProblem& p, const StepArrangement& how, cudaStream_t stream);

}  // namespace convlm::cuda
