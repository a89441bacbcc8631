// A stack over tokens whose layers compute one row for each distinct context: a layer is a launch,
// and a tile of its rows a sample of a convolution whose taps lie a tile apart.
#pragma once
#include "cuda/contexts.h"
#include "cuda/fused_stack.h"

namespace convlm::cuda {

template <class S>
struct LayerOfRows {
  FusedLayer<S> layer;  // of tiles: what it keeps is [tile][channel][row of the tile]
  LayerContexts contexts;
  bool forward, backward;
  int activations, products;  // elements of the buffers in shared memory
  // The rows of the input: words, or [row][in_channels].
  Input<S> words;
  int64_t vocab;
  const Compute<S>* in;
  Compute<S>* out;  // [row][out_channels]; null for the last layer
  // Of the last layer:
  S* output;           // (batch, channels, length), or null
  Indices target;      // data is null without a loss
  Compute<S>* losses;  // (batch, length)
  Compute<S> scale;    // of the gradients of losses
  Input<S> grad_output;
  // Backward:
  const Compute<S>* grad_out;  // [row][out_channels]; null for the last layer
  S* input;                    // [tile][channel][tap, row of the tile], for the weight's gradient
  int32_t* words_read;         // of the first layer: [tile][tap, row of the tile]
  Compute<S>* grad_words;      // of the first layer, as `input`; null where it is not wanted
  Compute<S>* grad_read;       // of others: [row][tap][in_channels]
};

template <class S>
cudaError_t run_rows(const LayerOfRows<S>& l, int shared_bytes, cudaStream_t stream);

// Rows of a layer's result, each the sum of what its readers have as gradient, in their order.
template <class S>
struct ReaderSums {
  Readers readers;
  const int64_t* row_count;
  int64_t most_rows, channels;
  const Compute<S>* grad_read;  // [reader][channels]
  Compute<S>* grad_out;         // [row][channels]
};

template <class S>
cudaError_t add_up_readers(const ReaderSums<S>& sums, cudaStream_t stream);

}  // namespace convlm::cuda
