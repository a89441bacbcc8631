// The products of a step: windows of past inputs with packed weights, which a block reads from
// front to back. A thread has a quad of outputs and a slice of the rows that they sum over. It is
// always kAhead rows ahead of what it multiplies, also across layers: weights do not depend on what
// is being computed, so their way from the cache hides behind the sums of the layer before.
#pragma once
#include <type_traits>

#include "cuda/numbers.h"
#include "cuda/step_plan.h"

namespace convlm::cuda {

constexpr int kAhead = 8;  // rows: 32 KB of a block under way

template <class Weight>
constexpr int kRowSteps = std::is_same_v<Weight, bfloat16> ? 2 : 1;

// The weights of a quad's outputs in one row: [output][step of the row].
template <class Weight>
constexpr int kQuadWeights = kQuad * kRowSteps<Weight>;
template <class Weight>
struct alignas(kQuadWeights<Weight> * sizeof(Weight) < 16 ? 8 : 16) QuadWeights {
  Weight lanes[kQuadWeights<Weight>];
};

template <class Weight>
__device__ __forceinline__ QuadWeights<Weight> load_quad(const Weight* address) {
  using Quad = QuadWeights<Weight>;
#if !defined(__CUDACC__)
  emulator::check_access("load_quad", address, sizeof(Quad), alignof(Quad), false);
#endif
  return *reinterpret_cast<const Quad*>(address);
}

// What a thread multiplies of a layer: some rows of a quad. Offsets from where the layer begins.
struct StepPart {
  int64_t weight, weight_stride;  // of the first row, and from one to the next
  int window, window_stride;
  int rows;
  int sums;  // where its sums go
};

// Item `item` of quads * slices; of one that is none, no rows. `row_steps` as in step_plan.h.
inline __device__ StepPart part_of(const PlannedLayer& layer, int item, int row_steps) {
  constexpr int kPanelQuads = kPanel / kQuad;
  StepPart part{};
  const int quads = layer.quads(), column = item % quads, slice = item / quads;
  if (layer.depthwise || slice >= layer.slices) return part;
  const int group = column / layer.group_quads(), quad = column % layer.group_quads();
  const int panel = quad / kPanelQuads * static_cast<int>(kPanel);
  const int width = layer.outputs - panel;
  const int64_t pitch = pitch_of(width < kPanel ? width : kPanel);
  const int steps = layer.packed_steps();
  part.weight = (group * pitch_of(layer.outputs) + panel) * steps +
                (slice * pitch + quad % kPanelQuads * kQuad) * row_steps;
  part.weight_stride = layer.slices * pitch * row_steps;
  part.window = group * steps + slice * row_steps;
  part.window_stride = layer.slices * row_steps;
  part.rows = (steps / row_steps - slice + layer.slices - 1) / layer.slices;
  part.sums = (slice * quads + column) * kQuad;
  return part;
}

// The weights of a thread, in the order in which it multiplies them.
template <class Weight>
struct WeightReader {
  const Weight* weights;  // of the network
  const Weight* first;    // of the part
  StepPart part;
  QuadWeights<Weight> ahead[kAhead];

  __device__ __forceinline__ void turn_to(const PlannedLayer& layer, int item, bool like_the_last) {
    if (!like_the_last) part = part_of(layer, item, kRowSteps<Weight>);
    first = weights + layer.weight + part.weight;
    load_from(0);
  }

  __device__ __forceinline__ void load_from(int row) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (row + i < part.rows) ahead[i] = load_quad(first + (row + i) * part.weight_stride);
  }
};

template <class C, class Weight, int SAMPLES>
__device__ __forceinline__ void add_row(const QuadWeights<Weight>& weights, const C* window,
                                        int sample_stride, C (&sums)[SAMPLES][kQuad]) {
#pragma unroll
  for (int step = 0; step < kRowSteps<Weight>; ++step)
#pragma unroll
    for (int i = 0; i < SAMPLES; ++i) {
      const C value = window[i * sample_stride + step];
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        sums[i][j] += to_compute(weights.lanes[j * kRowSteps<Weight> + step]) * value;
    }
}

// Adds up the reader's part; `window` is that of the layer, of the first sample.
template <class C, class Weight, int SAMPLES>
__device__ __forceinline__ void multiply_part(WeightReader<Weight>& reader, const C* window,
                                              int sample_stride, C (&sums)[SAMPLES][kQuad]) {
  const StepPart& part = reader.part;
  window += part.window;
  for (int row = 0; row < part.rows; row += kAhead) {
    QuadWeights<Weight> now[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) now[i] = reader.ahead[i];
    reader.load_from(row + kAhead);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (row + i < part.rows)
        add_row<C, Weight, SAMPLES>(now[i], window + (row + i) * part.window_stride, sample_stride,
                                    sums);
  }
}

}  // namespace convlm::cuda
