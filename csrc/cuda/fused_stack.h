// A fused stack as its kernels see it. The first kernel takes samples through all layers, and back;
// the second adds up the gradients of what all samples share.
#pragma once
#include <cstdint>

#include "cuda/indices.h"
#include "cuda/launch.h"
#include "cuda/problem.h"
#include "cuda/small_gradient.h"
#include "cuda/stack_fits.h"

namespace convlm::cuda {

// What is kept of all samples is (batch, channels, length), contiguous, and null if not needed.
template <class S>
struct FusedLayer {
  int in_channels, columns, out_channels, taps, dilation, pad, in_length, out_length;
  bool gated, residual;
  Activation activation;
  const S* weight;
  int64_t weight_column, weight_channel, weight_tap;
  int chunk, chunk_back;  // channels whose weights are staged at a time, forward and backward
  const S* bias;
  int64_t bias_step;
  S* result;    // kept for the gradient of the next layer's weight
  S* slope;     // of `columns` channels: what the gradient of the result is multiplied by
  S* gradient;  // of `columns` channels: that of what the convolution gives

  __device__ bool has_slope() const { return gated || activation != Activation::none; }
};

template <class S>
struct FusedStack {
  FusedLayer<S> layers[kMostLayers];
  int depth;
  int64_t batch;
  Input<S> x;  // with tokens: its batch and channel are the strides of the embedding
  Indices tokens, target;
  int64_t vocab;
  bool forward, backward;
  S* output;                  // of the last layer, or null
  Compute<S>* losses;         // (batch, out_length), or null
  Input<S> grad_output;       // data is null where the loss has it
  S* input;                   // with tokens: their embeddings, for the first weight's gradient
  S* grad_input;              // without tokens, or null
  Compute<S>* grad_words;     // with tokens: of their embeddings, or null
  int activations, products;  // elements of the buffers in shared memory
};

template <class S>
cudaError_t run_samples(const FusedStack<S>& s, int shared_bytes, cudaStream_t stream);

// Of a stack that goes backward: the gradients of all weights and biases, of the words where
// there are tokens, and the mean loss.
template <class S>
struct SharedGradients {
  SmallGradient<S> layers[kMostLayers];
  int depth;
  // Where samples are tiles of rows: how many rows each layer has, and a tile.
  const int64_t* row_counts;  // or null
  int tile;
  Indices tokens;
  int64_t batch, length, channels, vocab;  // of the tokens and their embedding
  const Compute<S>* grad_words;            // of each position; null where it is not wanted
  S* grad_embedding;
  int64_t word_stride, channel_stride;  // of grad_embedding
  const Compute<S>* losses;             // or null
  int64_t loss_count;
  S* loss;
  Use<S> use;  // a step is left out where the loss is not finite

  __device__ int64_t samples(int layer) const {
    return row_counts == nullptr ? batch : divide_up(row_counts[layer], tile);
  }
};

template <class S>
cudaError_t add_up_samples(const SharedGradients<S>& g, cudaStream_t stream);

}  // namespace convlm::cuda
