// From tensors to what a step is told. The plan is checked against the tensors that it describes,
// so that no number in it is trusted.
#pragma once
#include "operators.h"
#include "step.h"

namespace convlm {

class StepChecks {
 public:
  using Dtype = torch::headeronly::ScalarType;

  // Of tensors on a GPU the values cannot be looked at without waiting for it: there the kernels
  // themselves see to what does not fit.
  StepChecks(const char* function, bool values) : function_(function), values_(values) {}

  // Words that take time to make belong in STD_TORCH_CHECK, which makes them only where it fails.
  template <class... Words>
  void require(bool condition, const Words&... words) const {
    STD_TORCH_CHECK(condition, function_, ": ", words...);
  }

  void dense(const char* argument, const Tensor& t, int64_t dimensions) const {
    STD_TORCH_CHECK(t.dim() == dimensions && t.is_contiguous(), function_, ": ", argument,
                    " must be contiguous and have ", dimensions, " dimension(s), got shape ",
                    shape_of(t));
  }

  void dtype(const char* argument, const Tensor& t, Dtype expected) const {
    require(t.scalar_type() == expected, argument, " must have the dtype ",
            torch::headeronly::toString(expected), ", got ",
            torch::headeronly::toString(t.scalar_type()));
  }

  void integers(const char* argument, const Tensor& t, int64_t dimensions) const {
    dtype(argument, t, Dtype::Long);
    dense(argument, t, dimensions);
  }

  void size(const char* argument, const Tensor& t, int64_t dimension, int64_t expected) const {
    STD_TORCH_CHECK(t.size(dimension) == expected, function_, ": ", argument,
                    " must have the size ", expected, " in dimension ", dimension, ", got shape ",
                    shape_of(t));
  }

  void plan(const Tensor& plan, StepArguments& a) const {
    constexpr int64_t kFields = sizeof(StepLayer) / sizeof(int64_t);
    require(values_ || plan.is_cpu(), "plan must be on the CPU");
    integers("plan", plan, 2);
    size("plan", plan, 1, kFields);
    require(plan.size(0) >= 1, "plan must have at least one layer");
    a.layers = static_cast<const StepLayer*>(plan.const_data_ptr());
    a.layer_count = plan.size(0);
    for (int64_t i = 0; i < a.layer_count; ++i) layer(i, a.layers[i]);
    for (int64_t i = 1; i < a.layer_count; ++i)
      require(a.layers[i].in_channels == a.layers[i - 1].results(), "plan: layer ", i, " takes ",
              a.layers[i].in_channels, " channels, but the one before gives ",
              a.layers[i - 1].results());
  }

  void layer(int64_t i, const StepLayer& l) const {
    constexpr int64_t kLargest = int64_t{1} << 20;  // products of three stay far from overflow
    const auto within = [&](const char* field, int64_t value, int64_t least, int64_t most) {
      require(value >= least && value <= most, "plan: layer ", i, ": ", field, " must be between ",
              least, " and ", most, ", got ", value);
    };
    within("in_channels", l.in_channels, 1, kLargest);
    within("out_channels", l.out_channels, 1, kLargest);
    within("groups", l.groups, 1, kLargest);
    within("kernel_size", l.kernel_size, 1, kLargest);
    within("dilation", l.dilation, 1, kLargest);
    within("pad_left", l.pad_left, 0, l.slots());
    within("activation", l.activation, 0, static_cast<int64_t>(Activation::sigmoid));
    within("gated", l.gated, 0, 1);
    within("residual", l.residual, 0, 1);
    require(l.in_channels % l.groups == 0 && l.out_channels % l.groups == 0, "plan: layer ", i,
            ": groups (", l.groups, ") must divide in_channels and out_channels");
    require(!l.gated || l.out_channels % 2 == 0, "plan: layer ", i,
            ": a gate needs an even number of out_channels");
    require(!l.residual || l.results() == l.in_channels, "plan: layer ", i,
            ": a residual needs as many outputs as in_channels");
  }

  // What belongs to the network: the ring of each sample, and the weights.
  void network(const Tensor& rings, const Tensor& position, const Tensor& weights,
               const Tensor& biases, StepArguments& a) const {
    int64_t ring_row = 0, weight_size = 0, bias_size = 0;
    for (int64_t i = 0; i < a.layer_count; ++i) {
      ring_row += a.layers[i].slots() * a.layers[i].in_channels;
      weight_size += a.layers[i].weight_size();
      bias_size += a.layers[i].bias_size();
    }
    dense("rings", rings, 2);
    size("rings", rings, 1, ring_row);
    integers("position", position, 1);
    size("position", position, 0, rings.size(0));
    a.dtype = dtype_of(rings);
    a.weight_dtype = dtype_of(weights);
    require(a.weight_dtype == a.dtype ||
                (a.dtype == ScalarType::float32 && a.weight_dtype == ScalarType::bfloat16),
            "weights must have the dtype of rings, or bfloat16 beside float32, got ",
            torch::headeronly::toString(weights.scalar_type()), " beside ",
            torch::headeronly::toString(rings.scalar_type()));
    dense("weights", weights, 1);
    size("weights", weights, 0, weight_size);
    dtype("biases", biases, a.dtype == ScalarType::float64 ? Dtype::Double : Dtype::Float);
    dense("biases", biases, 1);
    size("biases", biases, 0, bias_size);
    device("position", position, rings);
    device("weights", weights, rings);
    device("biases", biases, rings);
    a.batch = rings.size(0);
    a.rings = rings.mutable_data_ptr();
    a.ring_row = ring_row;
    a.position = static_cast<int64_t*>(position.mutable_data_ptr());
    a.weights = weights.const_data_ptr();
    a.biases = biases.const_data_ptr();
    for (int64_t n = 0; values_ && n < a.batch; ++n)
      require(a.position[n] >= 0, "position must not be negative, got ", a.position[n]);
  }

  void features(const Tensor& x, const Tensor& rings, StepArguments& a) const {
    STD_TORCH_CHECK(x.dim() == 2, function_,
                    ": x must be (batch, in_channels) or tokens (batch), got shape ", shape_of(x));
    dtype("x", x, rings.scalar_type());
    size("x", x, 0, a.batch);
    size("x", x, 1, a.layers[0].in_channels);
    device("x", x, rings);
    a.x = operand(x);
  }

  void tokens(const Tensor& tokens, const Tensor& embedding, const Tensor& rings,
              StepArguments& a) const {
    dtype("tokens", tokens, Dtype::Long);
    STD_TORCH_CHECK(tokens.dim() == 1, function_, ": tokens must be (batch), got shape ",
                    shape_of(tokens));
    size("tokens", tokens, 0, a.batch);
    STD_TORCH_CHECK(embedding.dim() == 2, function_,
                    ": embedding must be (vocab, in_channels), got shape ", shape_of(embedding));
    dtype("embedding", embedding, rings.scalar_type());
    size("embedding", embedding, 1, a.layers[0].in_channels);
    device("tokens", tokens, rings);
    device("embedding", embedding, rings);
    a.embedding = operand(embedding);
    a.tokens = operand(tokens);
    for (int64_t n = 0; values_ && n < a.batch; ++n)
      require(token_of(a, n) >= 0 && token_of(a, n) < embedding.size(0),
              "tokens must be from 0 to ", embedding.size(0) - 1, ", got ", token_of(a, n));
  }

  // A call on the CPU has no tensor elsewhere, or it would not be there.
  void device(const char* argument, const Tensor& t, const Tensor& rings) const {
    require(values_ || same_device(t, rings), argument, " and rings must be on one device");
  }

 private:
  const char* function_;
  bool values_;
};

inline StepArguments step_call(const Tensor& x, const std::optional<Tensor>& embedding,
                               const Tensor& rings, const Tensor& position, const Tensor& weights,
                               const Tensor& biases, const Tensor& plan, int64_t out_channels,
                               bool values = true) {
  const StepChecks checks("step", values);
  StepArguments a{};
  checks.plan(plan, a);
  checks.network(rings, position, weights, biases, a);
  if (embedding)
    checks.tokens(x, *embedding, rings, a);
  else
    checks.features(x, rings, a);
  checks.require(out_channels == a.layers[a.layer_count - 1].results(),
                 "out_channels must be that of the last layer, ",
                 a.layers[a.layer_count - 1].results(), ", got ", out_channels);
  return a;
}

struct Sampling {
  double temperature;
  int64_t top_k;
  double top_p;
  int64_t stop;
};

inline GenerateArguments generate_call(const Tensor& tokens, const Tensor& embedding,
                                       const Tensor& rings, const Tensor& position,
                                       const Tensor& weights, const Tensor& biases,
                                       const Tensor& plan, const std::optional<Tensor>& logit_bias,
                                       const Tensor& uniform, const Sampling& sampling,
                                       bool values = true) {
  const StepChecks checks("generate", values);
  GenerateArguments a{};
  checks.plan(plan, a.step);
  checks.network(rings, position, weights, biases, a.step);
  checks.tokens(tokens, embedding, rings, a.step);
  a.vocab = a.step.layers[a.step.layer_count - 1].results();
  checks.require(a.vocab == embedding.size(0), "the last layer must have one output for each of ",
                 embedding.size(0), " tokens, got ", a.vocab);
  if (logit_bias) {
    checks.dtype("logit_bias", *logit_bias, biases.scalar_type());
    checks.dense("logit_bias", *logit_bias, 1);
    checks.size("logit_bias", *logit_bias, 0, a.vocab);
    checks.device("logit_bias", *logit_bias, rings);
    a.logit_bias = logit_bias->const_data_ptr();
  }
  checks.dtype("uniform", uniform, StepChecks::Dtype::Double);
  checks.dense("uniform", uniform, 2);
  checks.size("uniform", uniform, 0, a.step.batch);
  checks.device("uniform", uniform, rings);
  // float32 logits are divided by it.
  checks.require(sampling.temperature >= 0 && sampling.temperature <= 1e38,
                 "temperature must be at least 0 and at most 1e38, got ", sampling.temperature);
  checks.require(sampling.top_k >= 1, "top_k must be at least 1, got ", sampling.top_k);
  checks.require(sampling.top_p > 0 && sampling.top_p <= 1,
                 "top_p must be above 0 and at most 1, got ", sampling.top_p);
  const int64_t lag = lag_of(a.step);
  for (int64_t n = 0; values && n < a.step.batch; ++n)
    checks.require(a.step.position[n] >= lag, "position must be at least ", lag,
                   ", the steps before the first output, got ", a.step.position[n]);
  a.steps = uniform.size(1);
  a.uniform = static_cast<const double*>(uniform.const_data_ptr());
  a.temperature = sampling.temperature;
  a.top_k = sampling.top_k;
  a.top_p = sampling.top_p;
  a.stop = sampling.stop;
  return a;
}

}  // namespace convlm
