// Weights and biases of a stack's layers, packed for the row products in both directions.

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

template <class S>
void pack_weight(const StackLayer& layer, const PackedWeight<Compute<S>>& packed, Compute<S>* out) {
  constexpr int W = kLanes<Compute<S>>;
  int64_t* taps = static_cast<int64_t*>(scratch(Slot::taps, sizeof(int64_t) * layer.kernel_size));
  for (int64_t k = 0; k < layer.kernel_size; ++k) taps[k] = k;
  const Correlation<S> p = weight_of<S>(layer, taps);
  const Panels<Compute<S>>& panels = packed.panels;
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.first(panel) * W, last = panels.first(panel + 1) * W;
    pack_rows(p, {0, p.taps}, 0, first, smaller(last, p.rows) - first, last - first, panels.pitch,
              out + (packed.panel(panel) - packed.data));
  }
}

// The weight that takes gradients of the result to those of the input: rows of input channels,
// which are cut into the panels.
template <class S>
void pack_turned_weight(const StackLayer& layer, const PackedWeight<Compute<S>>& packed,
                        Compute<S>* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const Panels<T>& panels = packed.panels;
  T* row = static_cast<T*>(scratch(Slot::panel, sizeof(T) * panels.columns()));
  const S* weight = static_cast<const S*>(layer.weight.data);
  for (int64_t o = 0; o < layer.columns; ++o)
    for (int64_t k = 0; k < layer.kernel_size; ++k) {
      stage_row(weight + o * layer.weight.stride[0] + k * layer.weight.stride[2],
                layer.weight.stride[1], layer.in_channels, 0, 1, row, panels.columns());
      for (int64_t panel = 0; panel < panels.count; ++panel) {
        T* to =
            out + (packed.panel(panel) - packed.data) + (o * layer.kernel_size + k) * panels.pitch;
        for (int64_t v = panels.first(panel); v < panels.first(panel + 1); ++v)
          store(to + (v - panels.first(panel)) * W, load(row + v * W));
      }
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
  pack_weight<S>(layer, p.weight, p.weight_data);
  if (with_turned) pack_turned_weight<S>(layer, p.turned, p.turned_data);
  const S* bias = static_cast<const S*>(layer.bias.data);
  for (int64_t c = 0; c < p.weight.panels.columns() + kLanes<Compute<S>>; ++c)
    p.bias[c] =
        bias != nullptr && c < layer.columns ? to_compute(bias[c * layer.bias.stride[0]]) : 0;
}
