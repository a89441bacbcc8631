// A chain of convolutions of stride 1 and one group, as the kernels that run it in one call see it.
// No torch header here.
#pragma once
#include "arguments.h"

namespace convlm {

// The positions of a layer: stride 1.
struct LayerTaps {
  int64_t kernel_size, dilation, pad_left, in_length, out_length;
};

// Two taps of a layer filtered fast: a tile is two rows of the result, and takes three products in
// place of four.
struct StackFilter {
  static constexpr int64_t kInputs = 3, kOutputs = 2, kComponents = 3;

  int64_t tiles;                    // 0: the layer is summed directly
  int64_t pitch;                    // of tiles, and of components of a kind
  const int32_t *inputs, *outputs;  // [kInputs][pitch] and [kOutputs][pitch]: the rows of a tile
  // [kInputs][reader_pitch]: the tile that reads an input row as its first, second and third
  const int32_t* readers;
  const int32_t* components;  // [kOutputs][link_pitch]: what a row of the result is the sum of
};

// A layer works on rows: a row holds the channels of one position, or of all positions that see the
// same tokens. Row r of the result is made of the rows links[tap][r] of the input; none stands for
// a zero, where a tap reads padding.
struct StackLayer {
  static constexpr int32_t kNone = -1;

  int64_t in_channels, columns, kernel_size;  // columns: the convolution's own output channels
  bool gated;                                 // tanh of the first half times sigmoid of the second
  bool residual;                              // adds the input row of the last tap
  Activation activation;
  ConstTensor weight, bias;  // bias.data is null without one
  MutableTensor grad_weight, grad_bias;

  int64_t in_rows, out_rows;
  // [kernel_size][link_pitch]: the input row of each row of the result
  const int32_t* links;
  int64_t link_pitch;
  // [kernel_size][reader_pitch]: the row of the result that a tap reads each input row for
  const int32_t* readers;
  int64_t reader_pitch;
  // Whether each input row is multiplied with every tap first, and the products are gathered then:
  // less work where several rows of the result share an input row. Else rows are gathered first.
  bool multiply_first() const { return readers == nullptr; }
  StackFilter filter;
  bool is_filtered() const { return filter.tiles > 0; }
  // Of the weight as it is multiplied.
  int64_t multiplied_taps() const { return is_filtered() ? StackFilter::kComponents : kernel_size; }
  int64_t out_channels() const { return gated ? columns / 2 : columns; }
};

struct StackArguments {
  ScalarType dtype;
  StackLayer* layers;
  int64_t depth;
  // (batch, channels, length), or the rows themselves: an embedding of (vocab, channels).
  ConstTensor input;
  bool input_is_rows;
  int64_t batch, length, out_length;  // of positions, whatever the rows are
  // Samples that go through all layers together. Links count rows from the first one's.
  int64_t group;
  // The rows of all layers but the last, and slopes; where null, nothing is kept for gradients.
  void* saved;

  // Of the softmax cross-entropy of each position of the result, (batch, out_length), contiguous.
  const int64_t* target;
  void* losses;
  LossGradient gradient;

  void* output;              // contiguous (batch, channels, out_length); null where there is a loss
  ConstTensor grad_output;   // of that shape
  MutableTensor grad_input;  // as `input`; data is null where it is not wanted
};

}  // namespace convlm
