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
  ResultOfRows<S> result{};
};

LayerContexts contexts_of(const LayerTaps& taps, int64_t batch, int64_t* row_count) {
  LayerContexts l{};
  l.batch = batch;
  l.taps = static_cast<int>(taps.kernel_size);
  l.dilation = static_cast<int>(taps.dilation);
  l.pad = static_cast<int>(taps.pad_left);
  l.in_length = static_cast<int>(taps.in_length);
  l.out_length = static_cast<int>(taps.out_length);
  l.row_count = row_count;
  l.together = 1;
  return l;
}

// Without `share` every position of every layer is a row.
Contexts take_contexts(const StackProblem& p, bool share, Pieces& workspace) {
  const int64_t batch = p.arguments.batch, length = p.arguments.out_length;
  const std::vector<int64_t> rows = most_rows(p.taps, p.vocab, batch);
  const int depth = static_cast<int>(p.layers.size());
  Contexts c{};
  c.count = depth + 1;
  c.tokens = p.tokens;
  c.vocab = p.vocab;
  c.words = workspace.take<int32_t>(batch * p.taps[0].in_length);
  int64_t* counts = workspace.take<int64_t>(c.count);
  int64_t* layer_counts = p.row_counts == nullptr ? counts : p.row_counts;
  for (int i = 0; i < depth; ++i) {
    LayerContexts& l = c.levels[i];
    l = contexts_of(p.taps[i], batch, layer_counts + i);
    l.in_fields = i == 0 ? c.words : c.levels[i - 1].fields;
    l.in_rows = i == 0 ? nullptr : c.levels[i - 1].rows;
    l.most_rows = rows[i];
    if (!share) continue;
    l.slots = 2;
    while (l.slots < 2 * l.most_rows) l.slots *= 2;
    l.fields = workspace.take<int32_t>(l.positions());
    l.first = workspace.take<int32_t>(l.slots);
    l.rows = workspace.take<int32_t>(l.slots);
    l.position_of = workspace.take<int32_t>(l.most_rows);
    l.chunk_rows = workspace.take<int32_t>(divide_up(l.positions(), kContextChunk));
  }
  LayerContexts& result = c.levels[depth];
  result = contexts_of({1, 1, 0, length, length}, batch, counts + depth);
  result.in_fields = c.levels[depth - 1].fields;
  result.in_rows = c.levels[depth - 1].rows;
  result.most_rows = batch * length;
  const int64_t channels = p.layers.back().out_channels();
  result.together = static_cast<int>(tile_of_result(channels, p.arguments.dtype));
  return c;
}

StackReaders take_readers(const Contexts& c, Pieces& workspace) {
  StackReaders r{};
  for (int i = 0; i + 1 < c.count; ++i) {
    const int64_t readers = c.levels[i + 1].most_rows * c.levels[i + 1].taps;
    r.layers[i].count = workspace.take<int32_t>(c.levels[i].most_rows);
    r.layers[i].begin = workspace.take<int32_t>(c.levels[i].most_rows);
    r.layers[i].found = workspace.take<int32_t>(readers);
    r.layers[i].readers = workspace.take<int32_t>(readers);
    r.layers[i].used = workspace.take<int32_t>(1);
  }
  return r;
}

template <class S>
LayerOfRows<S> layer_of_rows(const StackProblem& p, int i, const LayerContexts& contexts) {
  LayerOfRows<S> l{};
  const LayerTaps tiled = taps_of_tiles({p.taps[i]}, p.tile)[0];
  l.layer = fused_layer<S>(p.layers[i], tiled);
  l.read.contexts = contexts;
  l.read.channels = l.layer.in_channels;
  l.read.tile = static_cast<int>(p.tile);
  const StackRoom room = stack_room({p.layers[i]}, {tiled}, sizeof(Compute<S>));
  l.activations = static_cast<int>(room.activations);
  l.products = static_cast<int>(room.products);
  if (i == 0) {
    l.read.words = input<S>(p.arguments.input);
    l.read.vocab = p.vocab;
  }
  return l;
}

// What a layer takes of the workspace to go back; tiles are whole.
template <class S>
void take_gradients(LayerOfRows<S>& l, bool is_first, bool with_words, Pieces& workspace) {
  const int64_t tiles = divide_up(l.read.contexts.most_rows, l.read.tile);
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
ResultOfRows<S> result_of_rows(const StackProblem& p, const LayerContexts& contexts,
                               Pieces& workspace) {
  using C = Compute<S>;
  const StackArguments& a = p.arguments;
  ResultOfRows<S> r{};
  r.read.contexts = contexts;
  r.read.channels = static_cast<int>(p.layers.back().out_channels());
  r.read.tile = contexts.together;
  r.output = static_cast<S*>(a.output);
  r.target = p.target;
  r.losses = static_cast<C*>(a.losses);
  r.grad_output = input<S>(a.grad_output);
  if (p.loss != nullptr) r.losses = workspace.take<C>(contexts.positions());
  if (!p.backward) return r;
  r.scale = C(1) / (C(a.batch) * C(a.out_length));
  r.grad_read = workspace.take<C>(contexts.positions() * r.read.channels);
  return r;
}

template <class S>
SharedStack<S> shared_stack(const StackProblem& p, Pieces& workspace) {
  using C = Compute<S>;
  SharedStack<S> s;
  s.contexts = take_contexts(p, p.tile > 0, workspace);
  if (p.row_counts != nullptr) return s;
  const int depth = static_cast<int>(p.layers.size());
  Pieces saved(p.arguments.saved);
  Pieces& kept = p.arguments.saved != nullptr ? saved : workspace;
  const bool keeps_slopes = p.arguments.saved != nullptr || p.loss != nullptr;
  if (p.backward) s.readers = take_readers(s.contexts, workspace);
  s.result = result_of_rows<S>(p, s.contexts.levels[depth], workspace);
  const C* in = nullptr;
  for (int i = 0; i < depth; ++i) {
    LayerOfRows<S> l = layer_of_rows<S>(p, i, s.contexts.levels[i]);
    const int64_t rows = l.read.contexts.most_rows, outputs = rows * l.layer.out_channels;
    l.read.in = in;
    if (i + 1 < depth)
      l.out = kept.take<C>(outputs);
    else if (p.forward)
      l.out = workspace.take<C>(outputs);
    in = l.out;
    if (keeps_slopes && (l.layer.gated || l.layer.activation != Activation::none))
      l.layer.slope = kept.take<S>(divide_up(rows, p.tile) * p.tile * l.layer.columns);
    if (p.backward) {
      take_gradients(l, i == 0, p.arguments.grad_input.data != nullptr, workspace);
      l.grad_out = workspace.take<C>(outputs);
    }
    s.layers.push_back(l);
  }
  s.result.read.in = in;
  return s;
}

// Tiles are the samples.
template <class S>
SharedGradients<S> gradients_of_rows(const SharedStack<S>& s, const StackProblem& p) {
  SharedGradients<S> g = shared_gradients<S>(p);
  for (int i = 0; i < g.depth; ++i) {
    const LayerOfRows<S>& l = s.layers[i];
    const int64_t tiles = divide_up(l.read.contexts.most_rows, p.tile);
    const Input<S> x = contiguous<S>(l.input, l.layer.in_channels, l.layer.in_length);
    g.layers[i] = weight_of_layer(l.layer, p.layers[i], tiles, x, g.use);
  }
  const LayerOfRows<S>& first = s.layers[0];
  g.row_counts = first.read.contexts.row_count;
  g.tile = static_cast<int>(p.tile);
  g.length = first.layer.in_length;
  g.tokens = {
      first.words_read, false, g.length, 1, divide_up(first.read.contexts.most_rows, p.tile),
      nullptr,          0};
  g.grad_words = first.grad_words;
  g.losses = p.loss == nullptr ? nullptr : s.result.losses;
  return g;
}

template <class S>
cudaError_t run_layer(const StackProblem& p, const SharedStack<S>& s, int i, bool backward,
                      cudaStream_t stream) {
  LayerOfRows<S> l = s.layers[i];
  l.backward = backward;
  const std::vector<LayerTaps> tiled = taps_of_tiles({p.taps[i]}, p.tile);
  const int64_t elements = stack_room({p.layers[i]}, tiled, sizeof(Compute<S>)).elements();
  return run_rows(l, static_cast<int>(elements * sizeof(Compute<S>)), stream);
}

template <class S>
cudaError_t run(const StackProblem& p, void* workspace, cudaStream_t stream) {
  Pieces pieces(workspace);
  const SharedStack<S> s = shared_stack<S>(p, pieces);
  const int depth = s.contexts.count - 1;
  cudaError_t error = number_contexts(s.contexts, stream);
  if (p.row_counts != nullptr) return error;
  if (error == cudaSuccess && p.backward) error = list_readers(s.contexts, s.readers, stream);
  for (int i = 0; p.forward && i < depth && error == cudaSuccess; ++i)
    error = run_layer(p, s, i, false, stream);
  if (error == cudaSuccess) error = run_result(s.result, stream);
  for (int i = depth - 1; p.backward && i >= 0 && error == cudaSuccess; --i) {
    const LayerContexts& contexts = s.contexts.levels[i];
    const Compute<S>* grad_read = i + 1 < depth ? s.layers[i + 1].grad_read : s.result.grad_read;
    error = add_up_readers<S>({s.readers.layers[i], contexts.row_count, contexts.most_rows,
                               s.layers[i].layer.out_channels, grad_read, s.layers[i].grad_out},
                              stream);
    if (error == cudaSuccess) error = run_layer(p, s, i, true, stream);
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
