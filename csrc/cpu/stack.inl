// A stack in one call, forward: the rows of one layer after the other, a group of samples at a time
// so that they stay in cache.

// Hands out pieces of one allocation. Laid out twice: the first time only to learn the size.
struct Arena {
  char* data;
  int64_t size = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = data == nullptr ? nullptr : reinterpret_cast<T*>(data + size);
    size += divide_up(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return piece;
  }
};

template <class Layout>
CONVLM_INLINE void lay_out(Slot slot, Layout&& layout) {
  Arena counted{nullptr};
  layout(counted);
  Arena real{static_cast<char*>(scratch(slot, counted.size))};
  layout(real);
}

// A tile of channels may read past the end of the last row.
constexpr int64_t kRowSlack = kTileRows;

// Where a slope, the derivative of the activation, is not a simple function of the layer's result
// it is kept beside it.
inline bool keeps_slope(const StackLayer& layer, bool is_last) {
  if (layer.gated) return true;
  switch (layer.activation) {
    case Activation::none:
      return false;
    case Activation::tanh:
    case Activation::sigmoid:
    case Activation::relu:
      return layer.residual || is_last;
    default:
      return true;
  }
}

// What forward leaves behind for the gradients.
template <class T>
struct LayerRows {
  T* rows;
  T* slopes;  // null where they follow from the rows
  int64_t pitch, slope_pitch;
};

template <class T>
LayerRows<T> take_layer_rows(Arena& arena, const StackLayer& layer, int64_t count, bool is_last) {
  LayerRows<T> result{nullptr, nullptr, row_pitch<T>(layer.out_channels()),
                      row_pitch<T>(layer.columns)};
  if (!is_last) result.rows = arena.take<T>(count * result.pitch + kRowSlack);
  if (keeps_slope(layer, is_last))
    result.slopes = arena.take<T>(count * result.slope_pitch + kRowSlack);
  return result;
}

template <class T>
struct Activated {
  Vector<T> value, slope;
};

template <class T>
CONVLM_INLINE Activated<T> activate_with_slope(Vector<T> z, Activation activation) {
  const Vector<T> one = broadcast(T(1));
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return {activate(z, activation), choose<T>(z > T(0), one, Vector<T>{})};
    case Activation::tanh: {
      const Vector<T> y = tanh_of<T>(z);
      return {y, one - y * y};
    }
    case Activation::sigmoid: {
      const Vector<T> y = activate(z, activation);
      return {y, y * (one - y)};
    }
    case Activation::silu: {
      const Vector<T> s = activate(z, Activation::sigmoid);
      return {activate(z, activation), s * (one + z * (one - s))};
    }
    case Activation::gelu: {
      const Vector<T> cdf = normal_cdf(z);
      return {activate(z, activation),
              cdf + z * T(0.39894228040143268) * exponential<T>(z * z * T(-0.5))};
    }
  }
  return {z, one};
}

template <class T>
CONVLM_INLINE void store_lanes(T* out, Vector<T> v, int64_t count) {
  if (count >= kLanes<T>)
    store(out, v);
  else
    store_partial(out, v, static_cast<int>(count));
}

// Bias, activation or gate, and residual: from sums to rows of the layer's result.
template <class T>
struct FinishRows {
  const StackLayer& layer;
  LinkedRows<T> in;
  const T* bias;  // as long as a tile's row
  LayerRows<T> out;

  CONVLM_INLINE void operator()(T* tile, int64_t pitch, int64_t first, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      T* row = out.rows + (first + i) * out.pitch;
      T* slopes = out.slopes ? out.slopes + (first + i) * out.slope_pitch : nullptr;
      if (layer.gated)
        gate(tile + i * pitch, row, slopes);
      else
        activate_row(tile + i * pitch, row, slopes);
      if (layer.residual) add_row(row, in.at(layer.kernel_size - 1, first + i));
    }
  }

  CONVLM_INLINE void activate_row(const T* z, T* row, T* slopes) const {
    constexpr int W = kLanes<T>;
    const int64_t channels = layer.columns;
    if (slopes == nullptr) {
      for (int64_t c = 0; c < channels; c += W)
        store(row + c, activate(load(z + c) + load(bias + c), layer.activation));
      return;
    }
    for (int64_t c = 0; c < channels; c += W) {
      const Activated<T> a = activate_with_slope<T>(load(z + c) + load(bias + c), layer.activation);
      store(row + c, a.value);
      store(slopes + c, a.slope);
    }
  }

  CONVLM_INLINE void gate(const T* z, T* row, T* slopes) const {
    constexpr int W = kLanes<T>;
    const int64_t channels = layer.out_channels();
    for (int64_t c = 0; c < channels; c += W) {
      const Vector<T> t = tanh_of<T>(load(z + c) + load(bias + c));
      const Vector<T> s =
          activate(load(z + channels + c) + load(bias + channels + c), Activation::sigmoid);
      const int64_t lanes = channels - c;  // past them lies what is no channel of either half
      store_lanes(row + c, t * s, lanes);
      if (slopes == nullptr) continue;
      store_lanes(slopes + c, (T(1) - t * t) * s, lanes);
      store_lanes(slopes + channels + c, t * s * (T(1) - s), lanes);
    }
  }

  CONVLM_INLINE void add_row(T* row, const T* other) const {
    for (int64_t c = 0; c < layer.out_channels(); c += kLanes<T>)
      store(row + c, load(row + c) + load(other + c));
  }
};

// ---- weights and biases ----

template <class S>
Correlation<S> weight_of(const StackLayer& layer, const int64_t* tap_index) {
  Correlation<S> p{};
  p.rows = layer.columns;
  p.channels = layer.in_channels;
  p.taps = layer.kernel_size;
  p.tap_index = tap_index;
  p.weight = static_cast<const S*>(layer.weight.data);
  p.weight_row = layer.weight.stride[0];
  p.weight_channel = layer.weight.stride[1];
  p.weight_tap = layer.weight.stride[2];
  return p;
}

// The weight, or with `turned` the one that takes gradients of the result to those of the input.
template <class S>
void pack_weight(const StackLayer& layer, bool turned, const PackedWeight<Compute<S>>& packed,
                 Compute<S>* out) {
  constexpr int W = kLanes<Compute<S>>;
  int64_t* taps = static_cast<int64_t*>(scratch(Slot::taps, sizeof(int64_t) * layer.kernel_size));
  for (int64_t k = 0; k < layer.kernel_size; ++k) taps[k] = k;
  Correlation<S> p = weight_of<S>(layer, taps);
  if (turned) {
    p.rows = layer.in_channels;
    p.channels = layer.columns;
    p.weight_row = layer.weight.stride[1];
    p.weight_channel = layer.weight.stride[0];
  }
  const Panels<Compute<S>>& panels = packed.panels;
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.first(panel) * W, last = panels.first(panel + 1) * W;
    pack_rows(p, 0, first, smaller(last, p.rows) - first, last - first, panels.pitch,
              out + (packed.panel(panel) - packed.data));
  }
}

template <class T>
struct PackedLayer {
  PackedWeight<T> weight, turned;
  T *weight_data, *turned_data;
  T* bias;
};

template <class T>
PackedLayer<T> take_packed(Arena& arena, const StackLayer& layer, bool with_turned) {
  PackedLayer<T> p{{Panels<T>(layer.columns), layer.in_channels, layer.kernel_size, nullptr},
                   {Panels<T>(layer.in_channels), layer.columns, layer.kernel_size, nullptr},
                   nullptr,
                   nullptr,
                   nullptr};
  p.weight.data = p.weight_data = arena.take<T>(p.weight.size());
  if (with_turned) p.turned.data = p.turned_data = arena.take<T>(p.turned.size());
  p.bias = arena.take<T>(p.weight.panels.columns() + kLanes<T>);
  return p;
}

template <class S>
void pack_layer(const StackLayer& layer, const PackedLayer<Compute<S>>& p, bool with_turned) {
  pack_weight<S>(layer, false, p.weight, p.weight_data);
  if (with_turned) pack_weight<S>(layer, true, p.turned, p.turned_data);
  const S* bias = static_cast<const S*>(layer.bias.data);
  for (int64_t c = 0; c < p.weight.panels.columns() + kLanes<Compute<S>>; ++c)
    p.bias[c] =
        bias != nullptr && c < layer.columns ? to_compute(bias[c * layer.bias.stride[0]]) : 0;
}

// ---- between tensors and rows ----

// rows[n * length + t][c] = in[n][c][t] for some samples.
template <class S>
void rows_from(const ConstTensor& t, int64_t first, int64_t samples, int64_t channels,
               int64_t length, Compute<S>* rows) {
  const int64_t pitch = row_pitch<Compute<S>>(channels);
  const S* in = static_cast<const S*>(t.data) + first * t.stride[0];
  parallel_jobs(samples, length * channels, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const S* sample = in + n * t.stride[0];
      Compute<S>* out = rows + n * length * pitch;
      if (t.stride[2] == 1)
        transpose(sample, t.stride[1], channels, length, out, pitch);
      else
        for (int64_t i = 0; i < length; ++i)
          stage_row(sample + i * t.stride[2], t.stride[1], channels, 0, 1, out + i * pitch,
                    channels);
    }
  });
}

// The other way round, to a contiguous tensor.
template <class S>
void rows_to(const Compute<S>* rows, int64_t first, int64_t samples, int64_t channels,
             int64_t length, S* out) {
  const int64_t pitch = row_pitch<Compute<S>>(channels);
  parallel_jobs(samples, length * channels, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      transpose(rows + n * length * pitch, pitch, length, channels,
                out + (first + n) * channels * length, length);
  });
}

// ---- the layers ----

// Products of every input row with each tap, [tap][row].
template <class T>
struct TapProducts {
  T* data;
  int64_t pitch, tap_pitch;
};

template <class T>
TapProducts<T> take_tap_products(Arena& arena, const StackArguments& a) {
  int64_t size = 0;
  for (int64_t i = 0; i < a.depth; ++i) {
    const StackLayer& layer = a.layers[i];
    if (layer.multiply_first())
      size = larger(size, layer.kernel_size * layer.in_rows * row_pitch<T>(layer.columns));
  }
  return {arena.take<T>(size + kLanes<T>), 0, 0};
}

template <class T, class Finish>
void multiply_then_gather(const StackLayer& layer, const LinkedRows<T>& in,
                          const PackedLayer<T>& packed, TapProducts<T> products,
                          const Finish& finish) {
  constexpr int W = kLanes<T>;
  const int64_t columns = packed.weight.panels.columns();
  products.pitch = row_pitch<T>(layer.columns);
  products.tap_pitch = layer.in_rows * products.pitch;
  LinkedRows<T> every = in;
  every.links = nullptr;
  for (int64_t k = 0; k < layer.kernel_size; ++k)
    multiply_rows(
        every, layer.in_rows, packed.weight, k, 1,
        [&](const T* tile, int64_t pitch, int64_t first, int64_t count) {
          for (int64_t i = 0; i < count; ++i)
            for (int64_t c = 0; c < columns; c += W)
              store(products.data + k * products.tap_pitch + (first + i) * products.pitch + c,
                    load(tile + i * pitch + c));
        });
  const LinkedRows<T> linked{products.data, products.pitch, 0, in.zeros, in.links, in.link_pitch};
  parallel_jobs(
      divide_up(layer.out_rows, kTileRows), kTileRows * columns * layer.kernel_size,
      [&](int64_t begin, int64_t end) {
        const int64_t pitch = columns + W;
        T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kTileRows * pitch));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t first = job * kTileRows;
          const int64_t count = smaller(kTileRows, layer.out_rows - first);
          for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < layer.kernel_size; ++k) {
              const T* product = linked.at(k, first + i);
              if (product != in.zeros) product += k * products.tap_pitch;
              for (int64_t c = 0; c < columns; c += W)
                store(tile + i * pitch + c,
                      k == 0 ? load(product + c) : load(tile + i * pitch + c) + load(product + c));
            }
          finish(tile, pitch, first, count);
        }
      });
}

// What all groups share.
template <class T>
struct StackPlan {
  PackedLayer<T>* packed;
  const T* zeros;
};

template <class S>
StackPlan<Compute<S>> plan_stack(const StackArguments& a, bool with_turned) {
  using T = Compute<S>;
  StackPlan<T> plan{};
  T* zeros = nullptr;
  int64_t widest = 0;
  for (int64_t i = 0; i < a.depth; ++i)
    widest = larger(widest, larger(a.layers[i].in_channels, a.layers[i].columns));
  widest += 2 * kRowSlack;
  lay_out(Slot::stack, [&](Arena& arena) {
    plan.packed = arena.take<PackedLayer<T>>(a.depth);
    for (int64_t i = 0; i < a.depth; ++i) {
      const PackedLayer<T> packed = take_packed<T>(arena, a.layers[i], with_turned);
      if (plan.packed != nullptr) plan.packed[i] = packed;
    }
    zeros = arena.take<T>(widest);
  });
  for (int64_t c = 0; c < widest; ++c) zeros[c] = 0;
  plan.zeros = zeros;
  constexpr int64_t kWork = 1 << 20;  // always worth a thread
  parallel_jobs(a.depth, kWork, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_layer<S>(a.layers[i], plan.packed[i], with_turned);
  });
  return plan;
}

// Some samples on their way through the layers.
template <class S>
struct StackGroup {
  using T = Compute<S>;
  const StackArguments& a;
  const StackPlan<T>& plan;
  int64_t first, samples;
  T *input, *output;  // rows before the first layer and after the last one
  T* passing[2];      // rows in between, in turn, where nothing is kept
  TapProducts<T> products;

  StackGroup(const StackArguments& arguments, const StackPlan<T>& shared, int64_t index)
      : a(arguments),
        plan(shared),
        first(index * a.group),
        samples(smaller(a.group, a.batch - first)) {}

  // A layer with the rows of this group.
  StackLayer layer(int64_t i) const {
    StackLayer result = a.layers[i];
    if (samples == a.batch) return result;
    result.in_rows = result.in_rows / a.batch * samples;
    result.out_rows = result.out_rows / a.batch * samples;
    return result;
  }
  const StackLayer& last() const { return a.layers[a.depth - 1]; }

  void take(Arena& arena) {
    input = arena.take<T>(layer(0).in_rows * row_pitch<T>(a.layers[0].in_channels) + kRowSlack);
    output = arena.take<T>(layer(a.depth - 1).out_rows * row_pitch<T>(last().out_channels()) +
                           kRowSlack);
    int64_t largest = 0;
    for (int64_t i = 0; a.saved == nullptr && i + 1 < a.depth; ++i)
      largest = larger(largest, layer(i).out_rows * row_pitch<T>(a.layers[i].out_channels()));
    for (T*& rows : passing) rows = arena.take<T>(largest + kRowSlack);
    products = take_tap_products<T>(arena, a);
  }

  // Where the result of a layer goes.
  LayerRows<T> rows_of(int64_t wanted) const {
    const bool is_last = wanted == a.depth - 1;
    LayerRows<T> result{};
    if (a.saved == nullptr) {
      result.rows = passing[wanted % 2];
      result.pitch = row_pitch<T>(a.layers[wanted].out_channels());
    } else {
      Arena saved{static_cast<char*>(a.saved)};
      for (int64_t i = 0; i <= wanted; ++i)
        result = take_layer_rows<T>(saved, a.layers[i], a.layers[i].out_rows, i == a.depth - 1);
      const int64_t first_row =
          samples == a.batch ? 0 : first * (a.layers[wanted].out_rows / a.batch);
      result.rows += first_row * result.pitch;
      if (result.slopes != nullptr) result.slopes += first_row * result.slope_pitch;
    }
    if (is_last) result.rows = output;
    return result;
  }

  LinkedRows<T> input_of(int64_t i) const {
    const StackLayer& layer = a.layers[i];
    return {i == 0 ? input : rows_of(i - 1).rows,
            row_pitch<T>(layer.in_channels),
            0,
            plan.zeros,
            layer.links,
            layer.link_pitch};
  }

  void stage_input() const {
    const int64_t channels = a.layers[0].in_channels;
    if (a.input_is_rows) {
      const ConstTensor as_sample{a.input.data, {0, a.input.stride[1], a.input.stride[0]}};
      rows_from<S>(as_sample, 0, 1, channels, a.layers[0].in_rows, input);
    } else {
      rows_from<S>(a.input, first, samples, channels, a.length, input);
    }
  }

  // To the rows of a layer's result.
  FinishRows<T> finish(int64_t i) const {
    return {a.layers[i], input_of(i), plan.packed[i].bias, rows_of(i)};
  }

  template <class Finish>
  void run_layer(int64_t i, const Finish& finish_tile) const {
    const StackLayer current = layer(i);
    const PackedLayer<T>& packed = plan.packed[i];
    if (current.multiply_first())
      multiply_then_gather(current, input_of(i), packed, products, finish_tile);
    else
      multiply_rows(input_of(i), current.out_rows, packed.weight, 0, current.kernel_size,
                    finish_tile);
  }

  void forward_before_last() const {
    stage_input();
    for (int64_t i = 0; i + 1 < a.depth; ++i) run_layer(i, finish(i));
  }

  void forward() const {
    forward_before_last();
    run_layer(a.depth - 1, finish(a.depth - 1));
  }
};

// Calls body(group) for each group. With one group its layers are cut for the threads instead.
template <class S, class Body>
CONVLM_INLINE void for_groups(const StackArguments& a, const Body& body) {
  constexpr int64_t kWork = 1 << 20;  // always worth a thread
  parallel_jobs(divide_up(a.batch, larger(1, a.group)), kWork, body);
}

template <class S>
struct StackForward {
  static void run(const StackArguments& a) {
    const StackPlan<Compute<S>> plan = plan_stack<S>(a, false);
    for_groups<S>(a, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        StackGroup<S> group(a, plan, g);
        lay_out(Slot::stack_group, [&](Arena& arena) { group.take(arena); });
        group.forward();
        rows_to(group.output, group.first, group.samples, group.last().out_channels(), a.out_length,
                static_cast<S*>(a.output));
      }
    });
  }
};
