// Weights and biases of a stack's layers, packed for the row products in both directions.

// Some rows, from the row `first` on of one tap, cut into the panels of a weight.
template <class T>
void copy_to_panels(const T* rows, int64_t pitch, int64_t tap, int64_t first, int64_t count,
                    const PackedWeight<T>& packed, T* out) {
  constexpr int W = kLanes<T>;
  for (int64_t panel = 0; panel < packed.panels.count; ++panel) {
    const int64_t width = packed.pitch(panel);
    const T* in = rows + packed.panels.first(panel) * W;
    T* to = out + packed.start(panel, tap) + first * width;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < width; c += W) store(to + i * width + c, load(in + i * pitch + c));
  }
}

// The weight for products with rows of the input, and, where it is wanted, turned: for products of
// rows of a gradient, back to those of the input. A few output channels at a time, by taps.
template <class S>
void pack_weight(const StackLayer& layer, const PackedWeight<Compute<S>>& packed,
                 const PackedWeight<Compute<S>>& turned, Compute<S>* out, Compute<S>* turned_out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const int64_t pitch = turned.panels.columns();
  T* rows = static_cast<T*>(scratch(Slot::panel, sizeof(T) * W * pitch));
  for (int64_t panel = 0; panel < packed.panels.count; ++panel)
    for (int64_t v = 0; v < packed.panels.width(panel); ++v) {
      const int64_t first = (packed.panels.first(panel) + v) * W;
      const int64_t count = smaller(W, layer.columns - first);
      for (int64_t k = 0; k < layer.kernel_size; ++k) {
        const S* weight = static_cast<const S*>(layer.weight.data) +
                          first * layer.weight.stride[0] + k * layer.weight.stride[2];
        stage_rows([&](int64_t i) { return Row<S>{weight + i * layer.weight.stride[0]}; }, count,
                   layer.weight.stride[1], layer.in_channels, 0, 1, rows, pitch, pitch);
        const int64_t place = layer.is_filtered() ? 2 * k : k;
        transpose_strip(rows, pitch, count, layer.in_channels,
                        out + packed.start(panel, place) + v * W, packed.pitch(panel), W);
        if (turned_out != nullptr)
          copy_to_panels(rows, pitch, place, first, count, turned, turned_out);
      }
    }
}

// Of two taps, the first and the last of the three weights of a filter: the middle one is their
// sum.
template <class T>
void add_middle_weight(const PackedWeight<T>& packed, T* out) {
  for (int64_t panel = 0; panel < packed.panels.count; ++panel) {
    const T *first = out + packed.start(panel, 0), *last = out + packed.start(panel, 2);
    T* middle = out + packed.start(panel, 1);
    for (int64_t i = 0; i < packed.channels * packed.pitch(panel); i += kLanes<T>)
      store(middle + i, load(first + i) + load(last + i));
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
  PackedLayer<T> p{{Panels<T>(layer.columns), layer.in_channels, layer.multiplied_taps(), nullptr},
                   {Panels<T>(layer.in_channels), layer.columns, layer.multiplied_taps(), nullptr},
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
  pack_weight<S>(layer, p.weight, p.turned, p.weight_data, with_turned ? p.turned_data : nullptr);
  if (layer.is_filtered()) {
    add_middle_weight(p.weight, p.weight_data);
    if (with_turned) add_middle_weight(p.turned, p.turned_data);
  }
  const S* bias = static_cast<const S*>(layer.bias.data);
  for (int64_t c = 0; c < p.weight.panels.columns() + kLanes<Compute<S>>; ++c)
    p.bias[c] =
        bias != nullptr && c < layer.columns ? to_compute(bias[c * layer.bias.stride[0]]) : 0;
}
