// A stack over tokens whose layers compute one row for each distinct context: a layer is a launch,
// and a tile of its rows a sample of a convolution whose taps lie a tile apart.
#pragma once
#include "cuda/contexts.h"
#include "cuda/fused_stack.h"

namespace convlm::cuda {

// What the taps of a level read: words, or rows of the layer before.
template <class S>
struct RowsRead {
  LayerContexts contexts;
  int channels, tile;  // rows that read to a tile
  Input<S> words;
  int64_t vocab;
  const Compute<S>* in;  // [row][channels]; null where they are words
};

template <class S>
struct LayerOfRows {
  FusedLayer<S> layer;  // of tiles: what it keeps is [tile][channel][row of the tile]
  RowsRead<S> read;
  bool backward;              // or forward
  int activations, products;  // elements of the buffers in shared memory
  Compute<S>* out;            // [row][out_channels]
  // Backward:
  Compute<S>* grad_out;    // as `out`
  S* input;                // [tile][channel][tap, row of the tile], for the weight's gradient
  int32_t* words_read;     // of the first layer: [tile][tap, row of the tile]
  Compute<S>* grad_words;  // of the first layer, as `input`; null where it is not wanted
  Compute<S>* grad_read;   // of others: [reader][in_channels]
};

template <class S>
cudaError_t run_rows(const LayerOfRows<S>& l, int shared_bytes, cudaStream_t stream);

// From the rows of the last layer to the positions of the result, and back.
template <class S>
struct ResultOfRows {
  RowsRead<S> read;
  S* output;           // (batch, channels, length), or null
  Indices target;      // data is null without a loss
  Compute<S>* losses;  // (batch, length)
  Compute<S> scale;    // of the gradients of losses
  Input<S> grad_output;
  Compute<S>* grad_read;  // [reader][channels], of those that are listed; null if not wanted
};

template <class S>
cudaError_t run_result(const ResultOfRows<S>& r, cudaStream_t stream);

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
