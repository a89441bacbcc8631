#include <vector>

#include "cuda/dtypes.h"
#include "cuda/shared_fits.h"
#include "cuda/shared_stack.h"
#include "cuda/stack_layout.h"
#include "cuda/stack_rows.h"

namespace convlm::cuda {
namespace {

template <class S>
struct SharedStack {
  Contexts contexts{};
  StackReaders readers{};
  std::vector<LayerOfRows<S>> layers;
  std::vector<Compute<S>*> grad_out;  // of each layer but the last
  Compute<S>* losses = nullptr;
};

// Without `share` every position of every layer is a row.
Contexts take_contexts(const StackProblem& p, bool share, Pieces& workspace) {
  const int64_t batch = p.arguments.batch;
  const std::vector<int64_t> rows = most_rows(p.taps, p.vocab, batch);
  Contexts c{};
  c.depth = static_cast<int>(p.layers.size());
  c.tokens = p.tokens;
  c.vocab = p.vocab;
  c.words = workspace.take<int32_t>(batch * p.taps[0].in_length);
  int64_t* counts = workspace.take<int64_t>(c.depth);
  for (int i = 0; i < c.depth; ++i) {
    const LayerTaps& taps = p.taps[i];
    LayerContexts& l = c.layers[i];
    l.batch = static_cast<int>(batch);
    l.taps = static_cast<int>(taps.kernel_size);
    l.dilation = static_cast<int>(taps.dilation);
    l.pad = static_cast<int>(taps.pad_left);
    l.in_length = static_cast<int>(taps.in_length);
    l.out_length = static_cast<int>(taps.out_length);
    l.in_fields = i == 0 ? c.words : c.layers[i - 1].fields;
    l.in_rows = i == 0 ? nullptr : c.layers[i - 1].rows;
    l.row_count = (p.row_counts == nullptr ? counts : p.row_counts) + i;
    l.most_rows = rows[i];
    if (!share || i + 1 == c.depth) continue;
    l.slots = 2;
    while (l.slots < 2 * l.most_rows) l.slots *= 2;
    l.fields = workspace.take<int32_t>(l.positions());
    l.first = workspace.take<int32_t>(l.slots);
    l.rows = workspace.take<int32_t>(l.slots);
    l.position_of = workspace.take<int32_t>(l.most_rows);
    l.chunk_rows = workspace.take<int32_t>(divide_up(l.positions(), kContextChunk));
  }
  return c;
}

StackReaders take_readers(const Contexts& c, Pieces& workspace) {
  StackReaders r{};
  for (int i = 0; i + 1 < c.depth; ++i) {
    const int64_t readers = c.layers[i + 1].most_rows * c.layers[i + 1].taps;
    r.layers[i].count = workspace.take<int32_t>(c.layers[i].most_rows);
    r.layers[i].begin = workspace.take<int32_t>(c.layers[i].most_rows);
    r.layers[i].found = workspace.take<int32_t>(readers);
    r.layers[i].readers = workspace.take<int32_t>(readers);
    r.layers[i].used = workspace.take<int32_t>(1);
  }
  return r;
}

template <class S>
LayerOfRows<S> layer_of_rows(const StackProblem& p, int i, const LayerTaps& tiled,
                             const LayerContexts& contexts) {
  LayerOfRows<S> l{};
  l.layer = fused_layer<S>(p.layers[i], tiled);
  l.contexts = contexts;
  const StackRoom room = stack_room({p.layers[i]}, {tiled}, sizeof(Compute<S>));
  l.activations = static_cast<int>(room.activations);
  l.products = static_cast<int>(room.products);
  if (i == 0) {
    l.words = input<S>(p.arguments.input);
    l.vocab = p.vocab;
  }
  return l;
}

// What a layer takes of the workspace to go back; tiles are whole.
template <class S>
void take_gradients(LayerOfRows<S>& l, bool is_first, bool with_words, Pieces& workspace) {
  const int64_t tiles = divide_up(l.contexts.most_rows, l.layer.out_length);
  const int64_t inputs = tiles * l.layer.in_length * l.layer.in_channels;
  l.layer.gradient = workspace.take<S>(tiles * l.layer.columns * l.layer.out_length);
  l.input = workspace.take<S>(inputs);
  if (!is_first) {
    l.grad_read = workspace.take<Compute<S>>(inputs);
    return;
  }
  l.words_read = workspace.take<int32_t>(tiles * l.layer.in_length);
  if (with_words) l.grad_words = workspace.take<Compute<S>>(inputs);
}

template <class S>
void describe_last(const StackProblem& p, SharedStack<S>& s, Pieces& workspace) {
  const StackArguments& a = p.arguments;
  LayerOfRows<S>& last = s.layers.back();
  last.output = static_cast<S*>(a.output);
  last.target = p.target;
  last.losses = static_cast<Compute<S>*>(a.losses);
  if (p.loss != nullptr) last.losses = workspace.take<Compute<S>>(a.batch * a.out_length);
  if (p.backward) last.scale = Compute<S>(1) / (Compute<S>(a.batch) * Compute<S>(a.out_length));
  last.grad_output = input<S>(a.grad_output);
}

template <class S>
SharedStack<S> shared_stack(const StackProblem& p, Pieces& workspace) {
  using C = Compute<S>;
  SharedStack<S> s;
  s.contexts = take_contexts(p, p.tile > 0, workspace);
  if (p.row_counts != nullptr) return s;
  const std::vector<LayerTaps> tiled = taps_of_tiles(p.taps, p.tile);
  Pieces saved(p.arguments.saved);
  Pieces& kept = p.arguments.saved != nullptr ? saved : workspace;
  const bool keeps_slopes = p.arguments.saved != nullptr || p.loss != nullptr;
  if (p.backward) s.readers = take_readers(s.contexts, workspace);
  for (int i = 0; i < s.contexts.depth; ++i) {
    const LayerContexts& contexts = s.contexts.layers[i];
    LayerOfRows<S> l = layer_of_rows<S>(p, i, tiled[i], contexts);
    const bool is_last = i + 1 == s.contexts.depth;
    if (i > 0) l.in = s.layers.back().out;
    if (!is_last) l.out = kept.take<C>(contexts.most_rows * l.layer.out_channels);
    if (keeps_slopes && (l.layer.gated || l.layer.activation != Activation::none))
      l.layer.slope =
          kept.take<S>(divide_up(contexts.most_rows, p.tile) * p.tile * l.layer.columns);
    if (p.backward) take_gradients(l, i == 0, p.arguments.grad_input.data != nullptr, workspace);
    if (p.backward && !is_last) {
      s.grad_out.push_back(workspace.take<C>(contexts.most_rows * l.layer.out_channels));
      l.grad_out = s.grad_out.back();
    }
    s.layers.push_back(l);
  }
  describe_last(p, s, workspace);
  return s;
}

// Tiles are the samples.
template <class S>
SharedGradients<S> gradients_of_rows(const SharedStack<S>& s, const StackProblem& p) {
  SharedGradients<S> g = shared_gradients<S>(p);
  for (int i = 0; i < g.depth; ++i) {
    const LayerOfRows<S>& l = s.layers[i];
    const int64_t tiles = divide_up(l.contexts.most_rows, p.tile);
    const Input<S> x = contiguous<S>(l.input, l.layer.in_channels, l.layer.in_length);
    g.layers[i] = weight_of_layer(l.layer, p.layers[i], tiles, x, g.use);
  }
  const LayerOfRows<S>& first = s.layers[0];
  g.row_counts = first.contexts.row_count;
  g.tile = static_cast<int>(p.tile);
  g.length = first.layer.in_length;
  g.tokens = {first.words_read, false, g.length, 1, divide_up(first.contexts.most_rows, p.tile),
              nullptr,          0};
  g.grad_words = first.grad_words;
  g.losses = p.loss == nullptr ? nullptr : s.layers.back().losses;
  return g;
}

template <class S>
cudaError_t run_layer(const StackProblem& p, const SharedStack<S>& s, int i, bool forward,
                      bool backward, cudaStream_t stream) {
  LayerOfRows<S> l = s.layers[i];
  l.forward = forward;
  l.backward = backward;
  if (!backward) {
    l.input = nullptr;
    l.words_read = nullptr;
  }
  const std::vector<LayerTaps> tiled = taps_of_tiles({p.taps[i]}, p.tile);
  const int64_t elements = stack_room({p.layers[i]}, tiled, sizeof(Compute<S>)).elements();
  return run_rows(l, static_cast<int>(elements * sizeof(Compute<S>)), stream);
}

// The last layer goes back in the launch that came forward.
template <class S>
cudaError_t run(const StackProblem& p, void* workspace, cudaStream_t stream) {
  Pieces pieces(workspace);
  const SharedStack<S> s = shared_stack<S>(p, pieces);
  const int last = s.contexts.depth - 1;
  cudaError_t error = number_contexts(s.contexts, stream);
  if (p.row_counts != nullptr) return error;
  if (error == cudaSuccess && p.backward) error = list_readers(s.contexts, s.readers, stream);
  for (int i = 0; p.forward && i < last && error == cudaSuccess; ++i)
    error = run_layer(p, s, i, true, false, stream);
  if (error == cudaSuccess) error = run_layer(p, s, last, p.forward, p.backward, stream);
  for (int i = last - 1; p.backward && i >= 0; --i) {
    const LayerContexts& contexts = s.contexts.layers[i];
    if (error == cudaSuccess)
      error = add_up_readers<S>(
          {s.readers.layers[i], contexts.row_count, contexts.most_rows,
           s.layers[i].layer.out_channels, s.layers[i + 1].grad_read, s.grad_out[i]},
          stream);
    if (error == cudaSuccess) error = run_layer(p, s, i, false, true, stream);
  }
  if (error != cudaSuccess || !p.backward) return error;
  return add_up_samples(gradients_of_rows(s, p), stream);
}

}  // namespace

int64_t shared_stack_workspace_bytes(const StackProblem& p) {
  return for_dtype(p.arguments.dtype, [&](auto s) {
    Pieces pieces(nullptr);
    shared_stack<decltype(s)>(p, pieces);
    return pieces.used;
  });
}

cudaError_t run_shared_stack(const StackProblem& p, void* workspace, cudaStream_t stream) {
  return for_dtype(p.arguments.dtype,
                   [&](auto s) { return run<decltype(s)>(p, workspace, stream); });
}

}  // namespace convlm::cuda
