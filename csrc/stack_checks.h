// From the arguments of the stack operators to layers: checked before anything is computed.
#pragma once
#include <string>
#include <vector>

#include "checks.h"
#include "operators.h"
#include "stack.h"

namespace convlm {

// The settings of a stack, one entry for each layer.
struct StackSettings {
  std::vector<int64_t> dilations, pads;
  std::vector<std::string> activations;  // as of a convolution, or "gate"
  std::vector<int64_t> residuals;        // 0 or 1
};

class StackChecks {
 public:
  StackChecks(const char* function, const std::vector<Tensor>& weights,
              const std::vector<Tensor>& biases, const StackSettings& settings)
      : function_(function), weights_(weights), biases_(biases), settings_(settings) {
    STD_TORCH_CHECK(!weights.empty(), function_, ": weights must have at least one entry");
    same_depth("biases", biases.size());
    same_depth("dilations", settings.dilations.size());
    same_depth("pads", settings.pads.size());
    same_depth("activations", settings.activations.size());
    same_depth("residuals", settings.residuals.size());
  }

  // Fills layers_ and taps_; `input` has the dtype and device that all must have.
  void layers(const char* input_name, const Tensor& input, int64_t channels, int64_t length) {
    layers_.resize(weights_.size());
    for (size_t i = 0; i < layers_.size(); ++i) {
      const std::string name = "weights[" + std::to_string(i) + "]";
      GeometryChecks checks(function_, 1, settings_.pads[i], 0, settings_.dilations[i], 1);
      checks.same_kind(name.c_str(), weights_[i], input_name, input);
      STD_TORCH_CHECK(weights_[i].dim() == 3 && weights_[i].size(1) == channels, function_, ": ",
                      name, " must have the shape (out_channels, ", channels,
                      ", kernel_size), got ", shape_of(weights_[i]));
      checks.weight(weights_[i]);
      checks.geometry_.length = length;
      checks.outputs();
      const Conv1dGeometry& g = checks.geometry_;
      taps_.push_back({g.kernel_size, g.dilation, g.pad_left, g.length, g.out_length});
      layer(i, g, input_name, input);
      channels = layers_[i].out_channels();
      length = g.out_length;
    }
  }

  std::vector<StackLayer> layers_;
  std::vector<LayerTaps> taps_;

 private:
  void same_depth(const char* argument, size_t size) const {
    STD_TORCH_CHECK(size == weights_.size(), function_, ": ", argument,
                    " must have one entry for each of the ", weights_.size(), " weights, got ",
                    size);
  }

  void layer(size_t i, const Conv1dGeometry& g, const char* input_name, const Tensor& input) {
    StackLayer& layer = layers_[i];
    layer = StackLayer{};
    layer.in_channels = g.in_channels;
    layer.columns = g.out_channels;
    layer.kernel_size = g.kernel_size;
    layer.gated = settings_.activations[i] == "gate";
    layer.residual = settings_.residuals[i] != 0;
    layer.activation =
        layer.gated ? Activation::none : activation_of(function_, settings_.activations[i]);
    STD_TORCH_CHECK(!layer.gated || layer.columns % 2 == 0, function_, ": weights[", i,
                    "] of a gated layer must have an even number of out_channels, got ",
                    layer.columns);
    STD_TORCH_CHECK(!layer.residual || layer.out_channels() == layer.in_channels, function_,
                    ": residual layer ", i, " must have as many channels as its input, ",
                    layer.in_channels, ", got ", layer.out_channels());
    STD_TORCH_CHECK(!layer.residual || g.pad_left <= g.dilation * (g.kernel_size - 1), function_,
                    ": residual layer ", i, " must not be padded by more than its reach, ",
                    g.dilation * (g.kernel_size - 1), ", got ", g.pad_left);
    layer.weight = operand(weights_[i]);
    if (biases_[i].numel() == 0) return;
    const std::string name = "biases[" + std::to_string(i) + "]";
    GeometryChecks(function_, 1, 0, 0, 1, 1).same_kind(name.c_str(), biases_[i], input_name, input);
    STD_TORCH_CHECK(biases_[i].dim() == 1 && biases_[i].size(0) == layer.columns, function_, ": ",
                    name, " must have the shape (", layer.columns, ") or be empty, got ",
                    shape_of(biases_[i]));
    layer.bias = operand(biases_[i]);
  }

  const char* function_;
  const std::vector<Tensor>& weights_;
  const std::vector<Tensor>& biases_;
  const StackSettings& settings_;
};

}  // namespace convlm
