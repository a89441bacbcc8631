// From the arguments of the stack operators to layers: checked before anything is computed.
#pragma once
#include <string>
#include <vector>

#include "checks.h"
#include "operators.h"
#include "stack.h"

namespace convlm {

// Of one layer: so many entries of the operators' argument `settings`, in this order.
struct StackSettings {
  static constexpr int64_t kGate = static_cast<int64_t>(Activation::sigmoid) + 1;

  int64_t dilation, pad_left;
  int64_t activation;  // an Activation, or kGate
  int64_t residual;    // 0 or 1
};

class StackChecks {
 public:
  StackChecks(const char* function, const std::vector<Tensor>& weights,
              const std::vector<Tensor>& biases, const std::vector<int64_t>& settings)
      : function_(function), weights_(weights), biases_(biases) {
    constexpr size_t kFields = sizeof(StackSettings) / sizeof(int64_t);
    STD_TORCH_CHECK(!weights.empty(), function_, ": weights must have at least one entry");
    STD_TORCH_CHECK(biases.size() == weights.size(), function_,
                    ": biases must have one entry for each of the ", weights.size(),
                    " weights, got ", biases.size());
    STD_TORCH_CHECK(settings.size() == kFields * weights.size(), function_, ": settings must have ",
                    kFields, " entries for each of the ", weights.size(), " weights, got ",
                    settings.size());
    for (auto s = settings.begin(); s != settings.end(); s += kFields)
      settings_.push_back({s[0], s[1], s[2], s[3]});
  }

  // Fills layers_ and taps_; `input` has the dtype and device that all must have.
  void layers(const char* input_name, const Tensor& input, int64_t channels, int64_t length) {
    layers_.resize(weights_.size());
    for (size_t i = 0; i < layers_.size(); ++i) {
      const std::string name = "weights[" + std::to_string(i) + "]";
      GeometryChecks checks(function_, 1, settings_[i].pad_left, 0, settings_[i].dilation, 1);
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
  void layer(size_t i, const Conv1dGeometry& g, const char* input_name, const Tensor& input) {
    StackLayer& layer = layers_[i];
    layer = StackLayer{};
    layer.in_channels = g.in_channels;
    layer.columns = g.out_channels;
    layer.kernel_size = g.kernel_size;
    const int64_t activation = settings_[i].activation;
    STD_TORCH_CHECK(activation >= 0 && activation <= StackSettings::kGate, function_,
                    ": the activation of layer ", i, " must be from 0 to ", StackSettings::kGate,
                    ", got ", activation);
    layer.gated = activation == StackSettings::kGate;
    layer.residual = settings_[i].residual != 0;
    layer.activation = layer.gated ? Activation::none : static_cast<Activation>(activation);
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
  std::vector<StackSettings> settings_;
};

}  // namespace convlm
