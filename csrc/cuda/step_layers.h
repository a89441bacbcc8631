// What a block does at one position, apart from the products: it gathers what the layers remember,
// takes the input, and finishes layer after layer. Rings are read before any is written to.
#pragma once
#include <cmath>

#include "cuda/activation.h"
#include "cuda/instructions.h"
#include "cuda/numbers.h"
#include "cuda/step_plan.h"

namespace convlm::cuda {

// a % b, without the division of 64 bits, a function that is called and keeps registers in memory.
__device__ inline uint64_t remainder_of(uint64_t a, uint64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) % static_cast<uint32_t>(b);
  uint64_t shifted = b;
  while (shifted <= a / 2) shifted *= 2;
  for (; shifted >= b; shifted /= 2)
    if (a >= shifted) a -= shifted;
  return a;
}

// Where a block keeps what StepMemory counts. The windows of all layers lie side by side, so that
// the past of the whole network is fetched at once, and a layer's results go where the next one
// reads.
template <class S, int SAMPLES>
struct StepBlock {
  using C = Compute<S>;
  static constexpr int kSampleThreads = kStepThreads / SAMPLES;

  const StepProblem& p;
  StepSample* samples;
  int64_t* slots;  // [sample][layer]: where the ring has the oldest input, or the newest is to go
  C *biases, *windows, *sums, *outputs;

  __device__ StepBlock(const StepProblem& problem, unsigned char* memory)
      : p(problem),
        samples(reinterpret_cast<StepSample*>(memory)),
        slots(reinterpret_cast<int64_t*>(samples + SAMPLES)),
        biases(reinterpret_cast<C*>(memory + problem.memory.numbers_at)),
        windows(biases + problem.memory.biases),
        sums(windows + SAMPLES * problem.memory.windows),
        outputs(sums + SAMPLES * problem.memory.sums) {}

  __device__ int layers() const { return static_cast<int>(p.a.step.layer_count); }
  __device__ S* ring(const PlannedLayer& layer, const StepSample& sample) const {
    return static_cast<S*>(p.a.step.rings) + sample.number * p.a.step.ring_row + layer.ring;
  }

  // ---- between positions: a barrier follows each ----

  // The samples of this block; windows of zeros, which fill up odd ones for good.
  __device__ void begin(int64_t block) const {
    const int thread = static_cast<int>(threadIdx.x);
    const StepArguments& a = p.a.step;
    if (thread < SAMPLES) {
      const int64_t n = block * SAMPLES + thread;
      const bool exists = n < a.batch;
      const int64_t token = exists && a.tokens.data != nullptr ? token_at(n) : 0;
      samples[thread] = {exists ? n : -1, exists ? a.position[n] : 0, token, exists};
    }
    const C* all_biases = static_cast<const C*>(a.biases);
    for (int i = thread; i < p.memory.biases; i += kStepThreads) biases[i] = all_biases[i];
    for (int i = thread; i < SAMPLES * p.memory.windows; i += kStepThreads) windows[i] = C(0);
  }

  __device__ int64_t token_at(int64_t sample) const {
    const ConstTensor& tokens = p.a.step.tokens;
    return static_cast<const int64_t*>(tokens.data)[sample * tokens.stride[0]];
  }

  __device__ bool any_runs() const {
    bool any = false;
#pragma unroll
    for (int i = 0; i < SAMPLES; ++i) any |= samples[i].running;
    return any;
  }

  // A position that is negative, which nothing on the host has seen, stays within the ring.
  __device__ void find_slots() const {
    for (int i = threadIdx.x; i < SAMPLES * layers(); i += kStepThreads) {
      const auto count = static_cast<uint64_t>(p.layers[i % layers()].slots());
      const auto position = static_cast<uint64_t>(samples[i / layers()].position);
      slots[i] = count > 0 ? static_cast<int64_t>(remainder_of(position, count)) : 0;
    }
  }

  // ---- windows ----

  // All inputs but the newest, of all layers; warps take turns at the taps.
  __device__ void gather() const {
    constexpr int kWarps = kStepThreads / kWarpSize;
    int turn = static_cast<int>(threadIdx.x) / kWarpSize;
    for (int i = 0; i < SAMPLES; ++i) {
      if (!samples[i].running) continue;
      for (int l = 0; l < layers(); ++l) {
        const PlannedLayer& layer = p.layers[l];
        const int older = layer.kernel_size - 1;
        int tap = turn;
        for (; tap < older; tap += kWarps) gather_tap(i, l, tap);
        turn = tap - older;
      }
    }
  }

  __device__ void gather_tap(int i, int l, int tap) const {
    const PlannedLayer& layer = p.layers[l];
    int64_t slot = slots[i * layers() + l] + int64_t{tap} * layer.dilation;
    if (slot >= layer.slots()) slot -= layer.slots();
    const S* in = ring(layer, samples[i]) + slot * layer.in_channels();
    C* window = windows + i * p.memory.windows;
    for (int c = static_cast<int>(threadIdx.x) % kWarpSize; c < layer.in_channels(); c += kWarpSize)
      window[layer.place(c, tap)] = to_compute(in[c]);
  }

  // The first layer's newest input. A token that is none is a row of NaNs: nothing on the host has
  // seen it.
  __device__ void take_input() const {
    const StepArguments& a = p.a.step;
    const StepSample& sample = samples[my_sample()];
    if (!sample.running) return;
    const PlannedLayer& layer = p.layers[0];
    const bool by_token = a.tokens.data != nullptr;
    const ConstTensor& from = by_token ? a.embedding : a.x;
    const int64_t row = by_token ? sample.token : sample.number;
    const bool exists = !by_token || (row >= 0 && row < p.a.vocab);
    const S* in = static_cast<const S*>(from.data) + (exists ? row * from.stride[0] : 0);
    for (int c = my_channel(); c < layer.in_channels(); c += kSampleThreads)
      newest(layer, c) = exists ? to_compute(in[c * from.stride[1]]) : C(NAN);
  }

  // In all that follows a thread works for one sample, and so many channels apart.
  __device__ int my_sample() const { return static_cast<int>(threadIdx.x) / kSampleThreads; }
  __device__ int my_channel() const { return static_cast<int>(threadIdx.x) % kSampleThreads; }

  __device__ C& newest(const PlannedLayer& layer, int channel) const {
    return windows[my_sample() * p.memory.windows + layer.place(channel, layer.kernel_size - 1)];
  }

  // ---- behind the products of a layer ----

  // The ring gets the newest input, in place of the oldest. By the last threads: the first ones
  // have results to finish.
  __device__ void keep_input(int l) const {
    const PlannedLayer& layer = p.layers[l];
    const StepSample& sample = samples[my_sample()];
    if (!sample.running || layer.slots() == 0) return;
    S* kept = ring(layer, sample) + slots[my_sample() * layers() + l] * layer.in_channels();
    for (int c = kSampleThreads - 1 - my_channel(); c < layer.in_channels(); c += kSampleThreads)
      kept[c] = from_compute<S>(newest(layer, c));
  }

  // Adds up the slices, always in the same order.
  __device__ C sum_of(const PlannedLayer& layer, int output) const {
    const C* slice = sums + my_sample() * p.memory.sums + layer.sum_place(output);
    const int stride = layer.quads() * kQuad;
    C total = slice[0];
    for (int s = 1; s < layer.slices; ++s) total += slice[s * stride];
    return total + biases[layer.bias + output];
  }

  __device__ C result_of(const PlannedLayer& layer, int channel) const {
    const auto activation = static_cast<Activation>(layer.activation);
    C y = activate(layer.gated ? Activation::tanh : activation, sum_of(layer, channel));
    if (layer.gated) y *= activate(Activation::sigmoid, sum_of(layer, layer.results() + channel));
    y = as_stored(y);
    return layer.residual ? as_stored(y + newest(layer, channel)) : y;
  }

  __device__ static C as_stored(C value) { return to_compute(from_compute<S>(value)); }

  // The results of a layer become the newest input of the next one, or the outputs. Before its
  // first input a layer sees the zeros that it is padded with; before the first output there is
  // none.
  __device__ void finish(int l) const {
    const PlannedLayer& layer = p.layers[l];
    const StepSample& sample = samples[my_sample()];
    if (!sample.running) return;
    const bool last = l + 1 == layers();
    for (int c = my_channel(); c < layer.results(); c += kSampleThreads) {
      const C y = result_of(layer, c);
      if (!last)
        newest(p.layers[l + 1], c) = sample.position < p.layers[l + 1].lag ? C(0) : y;
      else
        put_out(sample, c, sample.position < p.lag ? C(NAN) : y);
    }
  }

  __device__ void put_out(const StepSample& sample, int channel, C y) const {
    if (p.draws())
      outputs[my_sample() * p.memory.outputs + channel] = y;
    else
      static_cast<S*>(p.a.step.y)[sample.number * p.layers[layers() - 1].results() + channel] =
          from_compute<S>(y);
  }

  // ---- at the end ----

  __device__ void keep_position() const {
    const int i = static_cast<int>(threadIdx.x);
    if (i < SAMPLES && samples[i].number >= 0)
      p.a.step.position[samples[i].number] = samples[i].position;
  }
};

}  // namespace convlm::cuda
