// A network of causal convolutions that runs one position at a time. No torch header: kernels see
// this.
//
// Each layer keeps the inputs that later outputs will read in a ring of dilation * (kernel_size -
// 1) slots of in_channels elements; a row of the state, `rings`, holds those of one sample, layer
// after layer. Input t lies in slot t modulo the number of slots.
#pragma once
#include "arguments.h"

namespace convlm {

// Outputs are packed in panels of so many, and the last one is filled up to a multiple of kFill, so
// that vectors of every width may be loaded and a panel is read from front to back.
constexpr int64_t kPanel = 64;
constexpr int64_t kFill = 16;

// One layer: a row of the operators' argument `plan`, in this order.
struct StepLayer {
  int64_t in_channels, out_channels;  // of the convolution; a gate gives half of the latter
  int64_t groups, kernel_size, dilation, pad_left;
  int64_t activation;       // an Activation
  int64_t gated, residual;  // 0 or 1

  int64_t taps_per_output() const { return in_channels / groups * kernel_size; }
  int64_t slots() const { return dilation * (kernel_size - 1); }
  // With less padding than it reaches back, a layer has no output for its first inputs.
  int64_t lag() const { return slots() - pad_left; }
  int64_t results() const { return gated ? out_channels / 2 : out_channels; }
  bool depthwise() const { return groups == in_channels && groups == out_channels; }
  // The longer of channels and taps is the inner loop of the reduction, as in the full forward.
  bool channels_outside() const { return kernel_size > in_channels / groups; }

  CONVLM_HOST_DEVICE static int64_t filled(int64_t count) {
    return (count + kFill - 1) / kFill * kFill;
  }
  // A gate reads vectors that begin at any channel.
  int64_t bias_size() const { return filled(out_channels) + kFill; }
  // [group][panel][step of the reduction][output]; depthwise [tap][channel]. An odd number of steps
  // is followed by one of zeros, because weights of bfloat16 go in pairs: the two of steps 2i and
  // 2i + 1 are the halves of a word, [2i / 2][output][2].
  int64_t packed_steps() const { return (taps_per_output() + 1) / 2 * 2; }
  int64_t weight_size() const {
    return depthwise() ? kernel_size * filled(out_channels)
                       : groups * packed_steps() * filled(out_channels / groups);
  }
};

struct StepArguments {
  const StepLayer* layers;
  int64_t layer_count;
  ScalarType dtype;         // of all but the weights
  ScalarType weight_dtype;  // the same, or bfloat16
  int64_t batch;
  ConstTensor x;          // (batch, in_channels), where there are no tokens
  ConstTensor tokens;     // (batch), int64: rows of the embedding (vocab, in_channels)
  ConstTensor embedding;  // data is null where x is not
  const void* weights;
  const void* biases;
  void* rings;
  int64_t ring_row;   // elements of one sample
  int64_t* position;  // (batch): steps taken
  void* y;            // (batch, results of the last layer), contiguous
};

// Steps before the first output of the last layer.
inline int64_t lag_of(const StepArguments& a) {
  int64_t lag = 0;
  for (int64_t i = 0; i < a.layer_count; ++i) lag += a.layers[i].lag();
  return lag;
}

inline int64_t token_of(const StepArguments& a, int64_t sample) {
  return static_cast<const int64_t*>(a.tokens.data)[sample * a.tokens.stride[0]];
}

struct GenerateArguments {
  StepArguments step;
  int64_t steps;
  int64_t vocab;
  int64_t stop;  // the token that ends a sample; none if negative
  double temperature;
  int64_t top_k;
  double top_p;
  const void* logit_bias;  // (vocab), contiguous, or null
  const double* uniform;   // (batch, steps)
  // (batch, steps). After a stop token a sample has no other; from where its logits give nothing to
  // draw from, a NaN for one, it has -1.
  int64_t* generated;
};

}  // namespace convlm
