// Layers of two taps, filtered fast: F(2, 2) on rows (fast_filter.inl tells of the scheme). A tile is
// two rows of the result, a dilation apart, whose middle input is one row:
//
//   y0 = w0 x0 + w1 x1 = w0 (x0 - x1) + (w0 + w1) x1
//   y1 = w0 x1 + w1 x2 = (w0 + w1) x1 + w1 (x2 - x1)
//
// so three products of rows make both. Gradients take the same way back: those of the three
// products are g0, g0 + g1 and g1, and their sums are those of the weights w0, w0 + w1 and w1.

constexpr int64_t kFilterComponents = StackFilter::kComponents;

// Rows of each component of all tiles, [component][tile].
template <class T>
struct FilterRows {
  T* data;
  int64_t pitch, component_pitch;

  T* at(int64_t component, int64_t tile) const {
    return data + component * component_pitch + tile * pitch;
  }
  LinkedRows<T> linked(const T* zeros) const {
    return {data, pitch, component_pitch, zeros, nullptr, 0};
  }
};

template <class T>
FilterRows<T> filter_rows(T* data, const StackLayer& layer, int64_t channels) {
  const int64_t pitch = row_pitch<T>(channels);
  return {data, pitch, layer.filter.pitch * pitch};
}

// How much room they take. Products of rows overwrite up to a tile of rows after the last.
template <class T>
int64_t filter_size(const StackLayer& layer, int64_t channels) {
  if (!layer.is_filtered()) return 0;
  return (kFilterComponents * layer.filter.pitch + kTileRows) * row_pitch<T>(channels);
}

template <class T>
const T* row_or_zeros(const LinkedRows<T>& rows, int64_t row) {
  return row < 0 ? rows.zeros : rows.data + row * rows.pitch;
}

// Calls body(tile) for each tile of a layer.
template <class Body>
CONVLM_INLINE void for_filter_tiles(const StackLayer& layer, int64_t channels, const Body& body) {
  parallel_jobs(layer.filter.tiles, kFilterComponents * channels, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) body(tile);
  });
}

// x0 - x1, x1 and x2 - x1.
template <class T>
void filter_inputs(const StackLayer& layer, const LinkedRows<T>& in, const FilterRows<T>& out) {
  const int32_t* inputs = layer.filter.inputs;
  for_filter_tiles(layer, layer.in_channels, [&](int64_t tile) {
    const T* first = row_or_zeros(in, inputs[tile]);
    const T* middle = row_or_zeros(in, inputs[layer.filter.pitch + tile]);
    const T* last = row_or_zeros(in, inputs[2 * layer.filter.pitch + tile]);
    T *to[kFilterComponents] = {out.at(0, tile), out.at(1, tile), out.at(2, tile)};
    for (int64_t c = 0; c < layer.in_channels; c += kLanes<T>) {
      const Vector<T> x = load(middle + c);
      store(to[0] + c, load(first + c) - x);
      store(to[1] + c, x);
      store(to[2] + c, load(last + c) - x);
    }
  });
}

// g0, g0 + g1 and g1.
template <class T>
void filter_gradients(const StackLayer& layer, const LinkedRows<T>& gradient,
                      const FilterRows<T>& out) {
  const int32_t* outputs = layer.filter.outputs;
  for_filter_tiles(layer, layer.columns, [&](int64_t tile) {
    const T* first = row_or_zeros(gradient, outputs[tile]);
    const T* second = row_or_zeros(gradient, outputs[layer.filter.pitch + tile]);
    T *to[kFilterComponents] = {out.at(0, tile), out.at(1, tile), out.at(2, tile)};
    for (int64_t c = 0; c < layer.columns; c += kLanes<T>) {
      const Vector<T> g0 = load(first + c), g1 = load(second + c);
      store(to[0] + c, g0);
      store(to[1] + c, g0 + g1);
      store(to[2] + c, g1);
    }
  });
}

// Each component times its weight.
template <class T>
void multiply_components(const StackLayer& layer, const FilterRows<T>& rows, const T* zeros,
                         const PackedWeight<T>& weight, const FilterRows<T>& products) {
  for (int64_t j = 0; j < kFilterComponents; ++j) {
    LinkedRows<T> component = rows.linked(zeros);
    component.data = rows.at(j, 0);
    multiply_rows_into(component, layer.filter.tiles, weight, j, products.at(j, 0),
                       products.pitch);
  }
}

// Calls finish(tile of rows, pitch, first, count) for the rows of the result.
template <class T, class Finish>
void multiply_filtered(const StackLayer& layer, const LinkedRows<T>& in,
                       const PackedWeight<T>& weight, T* inputs, T* products,
                       const Finish& finish) {
  const FilterRows<T> to = filter_rows(products, layer, layer.columns);
  const FilterRows<T> rows = filter_rows(inputs, layer, layer.in_channels);
  filter_inputs(layer, in, rows);
  multiply_components(layer, rows, in.zeros, weight, to);
  const LinkedRows<T> linked{products, to.pitch, 0, in.zeros, layer.filter.components,
                             layer.link_pitch};
  gather_products(linked, StackFilter::kOutputs, layer.out_rows, weight.panels.columns(), finish);
}

// A row of the input's gradient, from the products of those of a tile's result: what is the middle
// of a tile is no other tile's first or last.
template <class T>
CONVLM_INLINE void add_filtered_gradient(const StackLayer& layer, const FilterRows<T>& products,
                                         const T* zeros, int64_t row, T* out) {
  const int32_t* readers = layer.filter.readers + row;
  const int32_t first = readers[0], middle = readers[layer.reader_pitch],
                last = readers[2 * layer.reader_pitch];
  if (middle >= 0) {
    const T *p0 = products.at(0, middle), *p1 = products.at(1, middle),
            *p2 = products.at(2, middle);
    for (int64_t c = 0; c < layer.in_channels; c += kLanes<T>)
      store(out + c, load(p1 + c) - (load(p0 + c) + load(p2 + c)));
  } else {
    const T* p0 = first < 0 ? zeros : products.at(0, first);
    const T* p2 = last < 0 ? zeros : products.at(2, last);
    for (int64_t c = 0; c < layer.in_channels; c += kLanes<T>)
      store(out + c, load(p0 + c) + load(p2 + c));
  }
}

// The sums of the three weights become those of the two taps, [channel][tap].
template <class T>
WeightSums<T> filtered_sums(WeightSums<T> sums) {
  WeightSums<T> taps = sums;
  taps.taps = StackFilter::kOutputs;
  for (int64_t c = 0; c < sums.channels; ++c)
    for (int64_t i = 0; i < sums.pitch(); i += kLanes<T>) {
      const Vector<T> both = load(sums.row(c, 1) + i);
      const Vector<T> first = load(sums.row(c, 0) + i) + both;
      const Vector<T> second = load(sums.row(c, 2) + i) + both;
      store(taps.row(c, 0) + i, first);
      store(taps.row(c, 1) + i, second);
    }
  return taps;
}
