// The products of a step: windows of past inputs with packed weights, which a block reads from
// front to back. A thread has a quad of outputs and a slice of the rows that they sum over. As soon
// as it has multiplied a row it asks for the one kAhead rows further on, also across layers:
// weights do not depend on what is being computed, so those of a layer arrive while the one before
// is finished.
#pragma once
#include <type_traits>

#include "cuda/numbers.h"
#include "cuda/step_plan.h"

namespace convlm::cuda {

constexpr int kAhead = 8;  // rows: 32 KB of a block under way

template <class Weight>
constexpr int kRowSteps = std::is_same_v<Weight, bfloat16> ? 2 : 1;

// The weights of a quad's outputs in one row: [output][step of the row]. Those of 16 bits stay two
// to a register until they are multiplied.
template <class Weight>
constexpr int kQuadWeights = kQuad * kRowSteps<Weight>;
template <class Weight>
struct alignas(kQuadWeights<Weight> * sizeof(Weight) < 16 ? 8 : 16) QuadWeights {
  static constexpr bool kPairs = sizeof(Weight) == 2;
  using Word = std::conditional_t<kPairs, uint32_t, Weight>;
  Word words[kQuadWeights<Weight> * sizeof(Weight) / sizeof(Word)];

  __device__ __forceinline__ Compute<Weight> lane(int i) const {
    if constexpr (kPairs)
      return to_compute(Weight{static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2))});
    else
      return words[i];
  }
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
  const int64_t pitch = StepLayer::filled(width < kPanel ? width : kPanel);
  const int steps = layer.packed_steps();
  part.weight = (group * StepLayer::filled(layer.outputs) + panel) * steps +
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
  struct Source {
    const Weight* first;
    StepPart part;

    __device__ __forceinline__ QuadWeights<Weight> row(int r) const {
      return load_quad(first + r * part.weight_stride);
    }
  };

  const Weight* weights;  // of the network
  Source now, next;
  QuadWeights<Weight> ahead[kAhead];  // row r is number r % kAhead

  __device__ __forceinline__ void start(const PlannedLayer& layer, int item) {
    look_ahead(layer, item, false);
    load_next();
    now = next;
  }

  // What comes behind the part that is being multiplied.
  __device__ __forceinline__ void look_ahead(const PlannedLayer& layer, int item,
                                             bool like_the_last) {
    next.part = like_the_last ? now.part : part_of(layer, item, kRowSteps<Weight>);
    next.first = weights + layer.weight + next.part.weight;
  }
  __device__ __forceinline__ void look_at_nothing() { next.part = {}; }

  __device__ __forceinline__ void load_next() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i < next.part.rows) ahead[i] = next.row(i);
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
        sums[i][j] += weights.lane(j * kRowSteps<Weight> + step) * value;
    }
}

// Adds up the part that the reader has now; `window` is that of the layer, of the first sample.
// Then the reader has the next one.
template <class C, class Weight, int SAMPLES>
__device__ __forceinline__ void multiply_part(WeightReader<Weight>& reader, const C* window,
                                              int sample_stride, C (&sums)[SAMPLES][kQuad]) {
  const StepPart& part = reader.now.part;
  window += part.window;
  int row = 0;
  for (; row + kAhead < part.rows; row += kAhead)
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      add_row<C, Weight, SAMPLES>(reader.ahead[i], window, sample_stride, sums);
      window += part.window_stride;
      if (row + kAhead + i < part.rows) reader.ahead[i] = reader.now.row(row + kAhead + i);
    }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (row + i < part.rows) {
      add_row<C, Weight, SAMPLES>(reader.ahead[i], window, sample_stride, sums);
      window += part.window_stride;
    }
    if (i < reader.next.part.rows) reader.ahead[i] = reader.next.row(i);
  }
  reader.now = reader.next;
}

}  // namespace convlm::cuda
