// A step of a whole network in one launch, and generation, which is many steps. A block has a
// sample, or a few that share the weights as they are read, and walks the layers: products by all
// threads, then the sums of the slices, activations, and on to the next layer. See docs/cuda.md.
#pragma once
#include "cuda/draw.h"
#include "cuda/step_layers.h"
#include "cuda/step_product.h"

namespace convlm::cuda {

// Each output reads one channel, so there is nothing to share.
template <class S, class Weight, int SAMPLES>
__device__ void multiply_depthwise(const StepBlock<S, SAMPLES>& block, const PlannedLayer& layer) {
  using C = Compute<S>;
  const Weight* weight = static_cast<const Weight*>(block.p.a.step.weights) + layer.weight;
  const int channels = layer.channels;
  const int64_t pitch = StepLayer::filled(channels);
  const C* window = block.windows + block.my_sample() * block.p.memory.windows + layer.window;
  C* sums = block.sums + block.my_sample() * block.p.memory.sums;
  for (int c = block.my_channel(); c < channels; c += block.kSampleThreads) {
    C sum = 0;
#pragma unroll 4
    for (int tap = 0; tap < layer.kernel_size; ++tap)
      sum += to_compute(weight[tap * pitch + c]) * window[tap * channels + c];
    sums[c] = sum;
  }
}

// The sums of all slices. What is read meanwhile belongs to the next layer.
template <class S, class Weight, int SAMPLES>
__device__ void multiply(const StepBlock<S, SAMPLES>& block, WeightReader<Weight>& reader, int l) {
  using C = Compute<S>;
  const StepProblem& p = block.p;
  const PlannedLayer& layer = p.layers[l];
  const int thread = static_cast<int>(threadIdx.x);
  const int items = layer.depthwise ? 0 : layer.quads() * layer.slices;
  if (layer.depthwise) multiply_depthwise<S, Weight>(block, layer);
  for (int item = thread; item == thread || item < items; item += kStepThreads) {
    const bool more = item + kStepThreads < items, last = !more && l + 1 == block.layers();
    const PlannedLayer& next = p.layers[more || last ? l : l + 1];
    reader.look_ahead(next, more ? item + kStepThreads : thread, !more && next.like_the_last);
    if (last) reader.look_at_nothing();
    const StepPart part = reader.now.part;
    C sums[SAMPLES][kQuad] = {};
    multiply_part<C, Weight, SAMPLES>(reader, block.windows + layer.window, p.memory.windows, sums);
    if (part.rows > 0)
#pragma unroll
      for (int i = 0; i < SAMPLES; ++i)
#pragma unroll
        for (int j = 0; j < kQuad; ++j) block.sums[i * p.memory.sums + part.sums + j] = sums[i][j];
  }
}

// One position of all samples of the block, from their inputs to their outputs.
template <class S, class Weight, int SAMPLES>
__device__ void step_position(const StepBlock<S, SAMPLES>& block, WeightReader<Weight>& reader) {
  reader.start(block.p.layers[0], static_cast<int>(threadIdx.x));
  block.find_slots();
  __syncthreads();
  block.gather();
  block.take_input();
  __syncthreads();
  for (int l = 0; l < block.layers(); ++l) {
    multiply<S, Weight, SAMPLES>(block, reader, l);
    __syncthreads();
    block.keep_input(l);
    block.finish(l);
    __syncthreads();
  }
}

// A token for each sample; the stop token is the last, and so is none.
template <class S, int SAMPLES>
__device__ void draw_tokens(const StepBlock<S, SAMPLES>& block, int64_t step) {
  const GenerateArguments& a = block.p.a;
  const int thread = static_cast<int>(threadIdx.x);
  const int i = thread / kWarpSize, lane = thread % kWarpSize;
  if (i >= SAMPLES || !block.samples[i].running) return;
  StepSample& sample = block.samples[i];
  const int64_t at = sample.number * a.steps;
  const int64_t token = draw(block.outputs + i * block.p.memory.outputs, static_cast<int>(a.vocab),
                             a, a.uniform[at + step], lane);
  const bool runs = token >= 0 && token != a.stop;
  for (int64_t s = step + lane; s < (runs ? step + 1 : a.steps); s += kWarpSize)
    a.generated[at + s] = token;
  synchronize_warp();
  if (lane > 0) return;
  sample.token = token;
  sample.running = runs;
}

template <class S, class Weight, int SAMPLES, bool SHARED>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel(const __grid_constant__ StepProblem p) {
  unsigned char* own = static_cast<unsigned char*>(p.workspace) + blockIdx.x * p.memory.bytes;
  const StepBlock<S, SAMPLES> block(p, SHARED ? shared_memory() : own);
  const int64_t blocks = (p.a.step.batch + SAMPLES - 1) / SAMPLES;
  WeightReader<Weight> reader{static_cast<const Weight*>(p.a.step.weights), {}, {}, {}};
  for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
    block.begin(b);
    __syncthreads();
    for (int64_t step = 0; step < p.a.steps && block.any_runs(); ++step) {
      step_position<S, Weight, SAMPLES>(block, reader);
      if (threadIdx.x < SAMPLES && block.samples[threadIdx.x].running)
        ++block.samples[threadIdx.x].position;
      if (p.draws()) {
        __syncthreads();
        draw_tokens(block, step);
      }
      __syncthreads();
    }
    block.keep_position();
    __syncthreads();
  }
}

template <class S, class Weight, int SAMPLES, bool SHARED>
cudaError_t launch_as(const StepProblem& p, int64_t blocks, cudaStream_t stream) {
  const int shared_bytes = SHARED ? static_cast<int>(p.memory.bytes) : 0;
  return launch(&step_kernel<S, Weight, SAMPLES, SHARED>, blocks, kStepThreads, shared_bytes,
                stream, p);
}

template <class S, class Weight>
cudaError_t launch_step(const StepProblem& p, const StepArrangement& how, cudaStream_t stream) {
  if (!how.shared) return launch_as<S, Weight, 1, false>(p, how.blocks, stream);
  if (how.samples == 1) return launch_as<S, Weight, 1, true>(p, how.blocks, stream);
  return launch_as<S, Weight, kFewSamples, true>(p, how.blocks, stream);
}

// In files of their own, which compile side by side.
#define CONVLM_INSTANTIATE_STEP(S, WEIGHT)                                                \
  template cudaError_t launch_step<S, WEIGHT>(const StepProblem&, const StepArrangement&, \
                                              cudaStream_t);

}  // namespace convlm::cuda
