// What a fused stack needs of a GPU, from sizes alone: a sample's activations lie in the shared
// memory of one block. No CUDA header: introspection asks too.
#pragma once
#include <string>
#include <vector>

#include "cuda/fits.h"
#include "stack.h"

namespace convlm::cuda {

constexpr int64_t kMostLayers = 32;   // all are parameters of one kernel
constexpr int64_t kMostWords = 1024;  // each looks through all tokens for its gradient
constexpr int64_t kStackThreads = 512;
constexpr int64_t kWeightBytes = 48 * 1024;  // of a layer's weights in shared memory at a time

using Capability = int;  // 10 * major + minor

// What a block may ask for, which is nearly all that a multiprocessor has.
inline int64_t most_shared_bytes(Capability capability) {
  switch (capability) {
    case 80:
    case 87:
      return 163 * 1024;
    case 90:
    case 100:
    case 103:
      return 227 * 1024;
    default:
      return 99 * 1024;
  }
}

// From one channel's staged weights to the next: whole vectors of four rows, an odd number of them,
// so that neighbouring channels are in other banks.
CONVLM_HOST_DEVICE constexpr int64_t weight_pitch(int64_t rows) { return ((rows + 3) / 4 | 1) * 4; }

// Channels whose weights are staged at a time.
inline int64_t chunk_of(int64_t rows, int64_t channels, int64_t taps, int64_t element_bytes) {
  const int64_t most = kWeightBytes / element_bytes / (taps * weight_pitch(rows));
  return most < 1 ? 1 : most < channels ? most : channels;
}

// Shared memory in elements of the type that is computed with: two buffers of activations that
// layers alternate between, what convolutions give before their activation, and weights.
struct StackRoom {
  int64_t activations, products, weights;

  int64_t elements() const { return 2 * activations + products + weights; }
};

inline StackRoom stack_room(const std::vector<StackLayer>& layers,
                            const std::vector<LayerTaps>& taps, int64_t element_bytes) {
  constexpr int64_t kFour = 4;  // buffers begin at whole vectors
  StackRoom room{0, 0, kStackThreads};
  const auto grow = [](int64_t& size, int64_t needed) {
    if (needed > size) size = (needed + kFour - 1) / kFour * kFour;
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t in = layers[i].in_channels, columns = layers[i].columns;
    const int64_t kernel_size = layers[i].kernel_size;
    grow(room.activations, in * taps[i].in_length);
    grow(room.activations, layers[i].out_channels() * taps[i].out_length);
    grow(room.products, columns * taps[i].out_length);
    const int64_t forward = chunk_of(columns, in, kernel_size, element_bytes);
    const int64_t backward = chunk_of(in, columns, kernel_size, element_bytes);
    grow(room.weights, forward * kernel_size * weight_pitch(columns));
    grow(room.weights, backward * kernel_size * weight_pitch(in));
  }
  return room;
}

// Why a stack does not fit, or nothing. `vocab` is 0 without tokens.
inline std::string reason_stack_does_not_fit(const std::vector<StackLayer>& layers,
                                             const std::vector<LayerTaps>& taps, int64_t vocab,
                                             ScalarType dtype, Capability capability) {
  const auto text = [](int64_t number) { return std::to_string(number); };
  const int64_t depth = static_cast<int64_t>(layers.size()), bytes = bytes_of_compute(dtype);
  if (depth > kMostLayers)
    return "it has " + text(depth) + " layers, and one kernel takes " + text(kMostLayers);
  if (vocab > kMostWords)
    return "its vocabulary has " + text(vocab) + " words, and the kernel takes " + text(kMostWords);
  const int64_t needed = stack_room(layers, taps, bytes).elements() * bytes;
  const int64_t most = most_shared_bytes(capability);
  if (needed > most)
    return "a sample needs " + text(needed) + " bytes of shared memory, and a block has " +
           text(most);
  for (size_t i = 0; i < layers.size(); ++i)
    if (!fits_small_gradient(taps[i].out_length, taps[i].in_length + taps[i].pad_left, dtype))
      return "layer " + text(static_cast<int64_t>(i)) +
             " has more positions than its weight's gradient can take";
  return "";
}

}  // namespace convlm::cuda
