// When a stack over tokens computes each distinct context of a layer once, from sizes alone: how
// many there are only the device will know. No CUDA header: introspection asks too.
#pragma once
#include <string>
#include <vector>

#include "cuda/stack_fits.h"

namespace convlm::cuda {

// With a block to a sample as many are made before the launches that sharing takes are over: so it
// was counted, for a large GPU and three layers.
constexpr int64_t kLeastProductsToShare = int64_t{1} << 29;
constexpr int64_t kMostPositionsToShare = int64_t{1} << 30;  // and taps of them, in 32 bits

// A tile of rows is a sample whose taps lie a tile apart.
inline std::vector<LayerTaps> taps_of_tiles(const std::vector<LayerTaps>& taps, int64_t tile) {
  std::vector<LayerTaps> result;
  for (const LayerTaps& layer : taps)
    result.push_back({layer.kernel_size, tile, 0, layer.kernel_size * tile, tile});
  return result;
}

constexpr int64_t kLeastTile = 7;

// The rows of a tile, or 0 where not even the smallest fits. An odd number, so that neighbouring
// channels are in different banks.
inline int64_t tile_of_rows(const std::vector<StackLayer>& layers,
                            const std::vector<LayerTaps>& taps, int64_t vocab, ScalarType dtype,
                            int capability) {
  for (const int64_t tile : {int64_t{31}, int64_t{15}, kLeastTile}) {
    const std::vector<LayerTaps> tiled = taps_of_tiles(taps, tile);
    bool fits = reason_stack_does_not_fit(layers, tiled, vocab, dtype, capability).empty();
    for (const LayerTaps& layer : tiled) fits = fits && layer.in_length <= kStackThreads;
    if (fits) return tile;
  }
  return 0;
}

// Positions of the result to a tile.
inline int64_t tile_of_result(int64_t channels, ScalarType dtype) {
  int64_t tile = 127;
  while (tile > 1 && channels * tile * bytes_of_compute(dtype) > kWeightBytes) tile /= 2;
  return tile;
}

// At most so many distinct contexts each layer has: a tap reads a row of the layer before, or
// padding. Below the first layer are the words, and what is none.
inline std::vector<int64_t> most_rows(const std::vector<LayerTaps>& taps, int64_t vocab,
                                      int64_t batch) {
  std::vector<int64_t> result;
  int64_t below = vocab + 1;
  for (const LayerTaps& layer : taps) {
    const int64_t positions = batch * layer.out_length;
    int64_t rows = 1;
    for (int64_t tap = 0; tap < layer.kernel_size && rows < positions; ++tap)
      rows *= below + (layer.pad_left > 0 ? 1 : 0);
    result.push_back(below = rows < positions ? rows : positions);
  }
  return result;
}

// Why each position is computed for itself, or nothing. `vocab` is 0 without tokens; of a stack
// that fits.
inline std::string reason_contexts_not_shared(const std::vector<StackLayer>& layers,
                                              const std::vector<LayerTaps>& taps, int64_t vocab,
                                              int64_t batch, ScalarType dtype, int capability,
                                              int64_t least_products) {
  const auto text = [](int64_t number) { return std::to_string(number); };
  if (vocab == 0) return "the input is a signal, not tokens";
  int64_t products = 0, most = batch * taps[0].in_length;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t read = batch * taps[i].out_length * taps[i].kernel_size;
    products += read * layers[i].in_channels * layers[i].columns;
    if (read > most) most = read;
  }
  if (products < least_products)
    return "there are " + text(products) + " products, and from " + text(least_products) +
           " on contexts are numbered";
  if (most > kMostPositionsToShare)
    return "there are " + text(most) + " positions, and " + text(kMostPositionsToShare) +
           " can be numbered";
  const int64_t positions = batch * taps[0].out_length, rows = most_rows(taps, vocab, batch)[0];
  if (2 * rows > positions)
    return "the first layer has " + text(positions) + " positions, of which " + text(rows) +
           " may be distinct";
  if (tile_of_rows(layers, taps, vocab, dtype, capability) == 0)
    return "not even " + text(kLeastTile) + " contexts fit the shared memory of a block";
  return "";
}

}  // namespace convlm::cuda
