// The operators of fused stacks on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/links.h"
#include "cpu/take_steps.h"
#include "cpu/tokens.h"
#include "stack_call.h"

namespace convlm::cpu {
namespace {

// Samples that go through the layers together: their rows, and the gradients of these, stay in an
// L2 cache.
constexpr int64_t kGroupBytes = 256 * 1024;

// A call on the CPU: its tokens are read at once, and its rows linked before each kernel.
class LinkedCall : public StackCall {
 public:
  LinkedCall(const char* function, const Tensor& x, const OptionalTensor& tokens,
             const Tensors& weights, const Tensors& biases, const std::vector<int64_t>& settings,
             const OptionalTensor& rows = std::nullopt)
      : StackCall(function, x, tokens, weights, biases, settings, rows, true),
        function_(function),
        x_(x) {
    if (rows) selection_ = select_rows(function, *tokens, *rows);
    if (tokens)
      tokens_ =
          read_tokens(function, "tokens", *tokens, "vocab", x.size(0), Slot::tokens, selected());
  }

  void take_target(const Tensor& tokens, const Tensor& target) {
    check_target(function_, x_, tokens, target);
    target_ = read_tokens(function_, "target", target, "out_channels", last().out_channels(),
                          Slot::target, selected());
  }

  // Layers whose results no step of a stream has to equal are filtered fast: a loss, and gradients.
  void filter() { filter_ = arguments_.dtype == ScalarType::float32; }

  // Before a kernel: the rows of all samples.
  void link(bool share, bool in_groups) { link(0, arguments_.batch, share, in_groups); }

  // Of some samples, which are the batch then.
  void link(int64_t first, int64_t batch, bool share, bool in_groups) {
    arguments_.batch = batch;
    if (target_ != nullptr) arguments_.target = target_ + first * arguments_.out_length;
    arguments_.group = in_groups ? samples_of_group() : batch;
    take_links(arguments_.input_is_rows ? batch : arguments_.group);
    if (arguments_.input_is_rows)
      arguments_.group = link_tokens(tokens_ + first * arguments_.length, batch, arguments_.group,
                                     x_.size(0), taps(), share, arguments_.layers);
    else
      for (int64_t i = 0; i < arguments_.depth; ++i)
        link_positions(taps()[i], batch, arguments_.group, arguments_.layers[i]);
  }

 private:
  const Selection* selected() const { return selection_ ? &*selection_ : nullptr; }

  int64_t samples_of_group() {
    int64_t bytes = 0;
    for (size_t i = 0; i < layers().size(); ++i)
      bytes += taps()[i].out_length * row_bytes(layers()[i].columns, x_);
    return std::min(arguments_.batch, std::max<int64_t>(1, kGroupBytes / bytes));
  }

  int64_t filter_size(size_t i, int64_t samples) {
    return filter_ ? filter_links_size(taps()[i], layers()[i], samples) : 0;
  }

  void take_links(int64_t samples) {
    int64_t size = 0;
    for (size_t i = 0; i < taps().size(); ++i) {
      const LayerTaps& layer = taps()[i];
      const int64_t positions = samples * std::max(layer.in_length, layer.out_length);
      STD_TORCH_CHECK(positions <= INT32_MAX, function_, ": rows are counted in 32 bits, got ",
                      positions, " positions");
      size += samples * layer.kernel_size * (layer.in_length + layer.out_length);
      size += filter_size(i, samples);
    }
    int32_t* at = static_cast<int32_t*>(scratch(Slot::links, sizeof(int32_t) * size));
    for (size_t i = 0; i < taps().size(); ++i) {
      const LayerTaps& positions = taps()[i];
      layers()[i].links = at;
      at += samples * positions.kernel_size * positions.out_length;
      layers()[i].readers = at;
      at += samples * positions.kernel_size * positions.in_length;
      layers()[i].filter = {};
      const int64_t room = filter_size(i, samples);
      if (room > 0) take_filter_links(positions, samples, at, layers()[i].filter);
      at += room;
    }
  }

  const char* function_;
  const Tensor& x_;
  bool filter_ = false;
  std::optional<Selection> selection_;
  const int64_t *tokens_ = nullptr, *target_ = nullptr;  // null where there are none
};

void clear(Tensor& t) {
  if (t.numel() > 0) std::memset(t.mutable_data_ptr(), 0, t.numel() * t.element_size());
}

std::tuple<Tensor, Tensor> stack_forward(const Tensor& x, const OptionalTensor& tokens,
                                         Tensors weights, Tensors biases,
                                         std::vector<int64_t> settings, bool share, bool save) {
  LinkedCall call("stack_forward", x, tokens, weights, biases, settings);
  call.link(share, true);
  StackArguments& a = call.arguments();
  Tensor y = empty(x, {a.batch, call.last().out_channels(), a.out_length});
  Tensor saved = bytes_like(x, save ? call.saved_size(x) : 0);
  a.output = y.mutable_data_ptr();
  a.saved = save ? saved.mutable_data_ptr() : nullptr;
  if (a.batch > 0) kernels().stack_forward(a);
  return {y, saved};
}

// The gradients of x (empty where it is not wanted), of the weights, and of the biases.
Tensors stack_backward(const Tensor& grad_output, const Tensor& saved, const Tensor& x,
                       const OptionalTensor& tokens, Tensors weights, Tensors biases,
                       std::vector<int64_t> settings, bool share, bool with_x) {
  LinkedCall call("stack_backward", x, tokens, weights, biases, settings);
  call.filter();
  call.link(share, !tokens.has_value());  // an embedding's gradient is that of the whole batch
  StackArguments& a = call.arguments();
  call.check_gradient(grad_output, saved, x);
  a.grad_output = operand(grad_output);
  a.saved = const_cast<void*>(saved.const_data_ptr());
  Tensors results = call.allocate_gradients(x, weights, biases, with_x);
  if (a.batch > 0)
    kernels().stack_backward(a);
  else
    for (Tensor& result : results) clear(result);
  return results;
}

// A call whose result is compared with a target.
LinkedCall loss_call(const char* function, const Tensor& x, const Tensor& tokens,
                     const Tensor& target, const OptionalTensor& rows, const Tensors& weights,
                     const Tensors& biases, const std::vector<int64_t>& settings) {
  LinkedCall call(function, x, tokens, weights, biases, settings, rows);
  call.take_target(tokens, target);
  call.filter();
  return call;
}

// Where there are no samples the mean of nothing, NaN, is the loss, and gradients are zero.
void run_loss(LinkedCall& call, const Tensor& x, Tensor& loss, Tensors& gradients) {
  StackArguments& a = call.arguments();
  a.losses = scratch(Slot::losses, a.batch * a.out_length * x.element_size());
  a.gradient.mean = loss.mutable_data_ptr();
  if (a.batch > 0) return kernels().stack_loss(a);
  torch::stable::fill_(loss, std::numeric_limits<double>::quiet_NaN());
  for (Tensor& gradient : gradients) clear(gradient);
}

std::tuple<Tensor, Tensors> stack_cross_entropy(const Tensor& x, const Tensor& tokens,
                                                const Tensor& target, Tensors weights,
                                                Tensors biases, std::vector<int64_t> settings,
                                                bool share) {
  LinkedCall call =
      loss_call("stack_cross_entropy", x, tokens, target, std::nullopt, weights, biases, settings);
  call.link(share, false);
  Tensor loss = empty(x, {});
  Tensors gradients = call.allocate_gradients(x, weights, biases, true);
  run_loss(call, x, loss, gradients);
  return {loss, gradients};
}

Tensor stack_sgd(const Tensor& x, const Tensor& tokens, const Tensor& target,
                 const OptionalTensor& rows, Tensors weights, Tensors biases,
                 std::vector<int64_t> settings, bool share, double lr) {
  constexpr const char* kName = "stack_sgd_";
  LinkedCall call = loss_call(kName, x, tokens, target, rows, weights, biases, settings);
  call.take_parameters(kName, x, weights, biases);
  call.arguments().gradient = {nullptr, true, lr};
  return take_steps(x, rows, call.arguments().batch, [&](int64_t first, int64_t count) {
    call.link(first, count, share, false);
    Tensor loss = empty(x, {});
    Tensors none;
    run_loss(call, x, loss, none);
    return loss;
  });
}

Tensor stack_losses(const Tensor& x, const Tensor& tokens, const Tensor& target, Tensors weights,
                    Tensors biases, std::vector<int64_t> settings, bool share) {
  LinkedCall call =
      loss_call("stack_losses", x, tokens, target, std::nullopt, weights, biases, settings);
  call.link(share, true);
  StackArguments& a = call.arguments();
  Tensor losses = empty(x, {a.batch, a.out_length});
  a.losses = losses.mutable_data_ptr();
  if (a.batch > 0) kernels().stack_loss(a);
  return losses;
}

// How many rows each layer of a stack over tokens has, as forward and backward number them.
Tensor stack_rows(const Tensor& x, const Tensor& tokens, Tensors weights, Tensors biases,
                  std::vector<int64_t> settings, bool share) {
  LinkedCall call("stack_rows", x, tokens, weights, biases, settings);
  call.link(share, false);
  Tensor rows = empty(tokens, {call.arguments().depth}, aoti_torch_dtype_int64());
  int64_t* out = static_cast<int64_t*>(rows.mutable_data_ptr());
  for (const StackLayer& layer : call.layers()) *out++ = layer.out_rows;
  return rows;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convlm, CPU, m) {
  m.impl("stack_forward", TORCH_BOX(&stack_forward));
  m.impl("stack_backward", TORCH_BOX(&stack_backward));
  m.impl("stack_cross_entropy", TORCH_BOX(&stack_cross_entropy));
  m.impl("stack_sgd_", TORCH_BOX(&stack_sgd));
  m.impl("stack_losses", TORCH_BOX(&stack_losses));
  m.impl("stack_rows", TORCH_BOX(&stack_rows));
}

}  // namespace convlm::cpu
