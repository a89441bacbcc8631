// Pieces of the batch, each with sums of weight gradients of its own. How many is a matter of
// geometry alone, and they are added up in order: any number of threads gives the same bits.

template <class T>
struct StackSums {
  static constexpr int64_t kMaxPieces = 8;
  int64_t pieces, depth, piece_size;
  WeightSums<T>* layers;  // [piece][layer]
  T* data;

  void take(Arena& arena, const StackArguments& a, int64_t groups) {
    pieces = larger(1, smaller(groups, kMaxPieces));
    depth = a.depth;
    piece_size = 0;
    for (int64_t i = 0; i < depth; ++i) piece_size += size_with_total(empty(a.layers[i]));
    layers = static_cast<WeightSums<T>*>(
        scratch(Slot::stack_pieces, sizeof(WeightSums<T>) * pieces * depth));
    data = arena.take<T>(pieces * piece_size);
  }

  void start(const StackArguments& a) {
    T* at = data;
    for (int64_t j = 0; j < pieces * depth; ++j) {
      layers[j] = empty(a.layers[j % depth]);
      layers[j].data = at;
      const int64_t size = size_with_total(layers[j]);
      // The first rows of a gradient write the weight's sums, they do not add to them.
      T* from = layers[j].total > 0 ? at : layers[j].row(layers[j].channels, 0);
      clear(from, at + size - from);
      at += size;
    }
  }

  // What will be read of them.
  bool are_finite() const {
    Vector<T> poison{};  // NaN once a value is not finite
    for (int64_t j = 0; j < pieces * depth; ++j) {
      const WeightSums<T>& s = layers[j];
      for (int64_t i = 0; i < s.columns; i += kLanes<T>) {
        const auto add = [&](const T* row) {
          poison += first_lanes<T>(load(row + i), s.columns - i) * 0;
        };
        for (int64_t total = 0; total <= s.total; total += larger(1, s.total)) {
          add(s.bias() + total);
          for (int64_t c = 0; c < s.channels; ++c)
            for (int64_t k = 0; k < s.taps; ++k) add(s.row(c, k) + total);
        }
      }
    }
    return !any_nan<T>(poison);
  }

  // Without data.
  WeightSums<T> empty(const StackLayer& layer) const {
    WeightSums<T> sums{layer.in_channels, layer.multiplied_taps(),
                       layer.columns,     Panels<T>(layer.columns),
                       nullptr,           0};
    if (larger(layer.in_rows, layer.out_rows) > pieces * kRowsOfSum) sums.total = sums.size();
    return sums;
  }
  static int64_t size_with_total(const WeightSums<T>& sums) { return sums.size() + sums.total; }
};

template <class S>
void put_weight_gradient(const StackLayer& layer, const WeightSums<Compute<S>>& of_weights,
                         const PutGradient<S>& put) {
  // Before filtered_sums(), which may overwrite it.
  if (layer.grad_bias.data != nullptr)
    put.row(of_weights.bias(), 1, layer.columns, static_cast<S*>(layer.grad_bias.data),
            layer.grad_bias.stride[0]);
  const WeightSums<Compute<S>> sums = layer.is_filtered() ? filtered_sums(of_weights) : of_weights;
  S* out = static_cast<S*>(layer.grad_weight.data);
  const int64_t* stride = layer.grad_weight.stride;
  const int64_t taps = layer.kernel_size, pitch = sums.pitch();
  if (stride[2] == 1 && stride[1] == taps)
    put.turned(sums.data, pitch, layer.in_channels * taps, layer.columns, out, stride[0]);
  else if (stride[1] == 1)
    for (int64_t k = 0; k < taps; ++k)
      put.turned(sums.row(0, k), taps * pitch, layer.in_channels, layer.columns,
                 out + k * stride[2], stride[0]);
  else
    for (int64_t c = 0; c < layer.in_channels; ++c)
      for (int64_t k = 0; k < taps; ++k)
        put.row(sums.row(c, k), 1, layer.columns, out + c * stride[1] + k * stride[2], stride[0]);
}

template <class S>
void finish_sums(const StackArguments& a, const StackSums<Compute<S>>& sums) {
  const PutGradient<S> put(a.gradient.as_step, a.gradient.lr);
  const auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      WeightSums<Compute<S>> all{sums.layers[i]};
      for (int64_t piece = 0; piece < sums.pieces; ++piece) {
        const WeightSums<Compute<S>>& more = sums.layers[piece * a.depth + i];
        more.add_to_total(more.data, more.size());
        for (int64_t j = 0; piece > 0 && j < all.size(); ++j)
          all.data[all.total + j] += more.data[more.total + j];
      }
      all.data += all.total;
      put_weight_gradient<S>(a.layers[i], all, put);
    }
  };
  constexpr int64_t kWork = 1 << 20;  // always worth a thread
  if (a.gradient.as_step)
    finish(0, a.depth);  // weights of two layers may share memory
  else
    parallel_jobs(a.depth, kWork, finish);
}
