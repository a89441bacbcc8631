// Layers of two taps, filtered fast: F(2, 2) on rows (fast_filter.inl tells of the scheme). A tile
// is two rows of the result, a dilation apart, whose middle input is one row:
//
//   y0 = w0 x0 + w1 x1 = w0 (x0 - x1) + (w0 + w1) x1
//   y1 = w0 x1 + w1 x2 = (w0 + w1) x1 + w1 (x2 - x1)
//
// so three products of rows make both. Gradients take the same way back: those of the three
// products are g0, g0 + g1 and g1, and their sums are those of the weights w0, w0 + w1 and w1.
//
// Of an infinite row a filter makes NaN, where the direct sum may be infinite and end at a closed
// unit. So where a result is not finite all layers are summed directly, which then decides. Numbers
// of which two add up to more than float32 holds are not looked for.

constexpr int64_t kFilterComponents = StackFilter::kComponents;

inline bool is_filtered(const StackArguments& a) {
  for (int64_t i = 0; i < a.depth; ++i)
    if (a.layers[i].is_filtered()) return true;
  return false;
}

// run(): whether what it wrote stands, which it does without filters.
template <class Run>
void run_filtered(const StackArguments& a, const Run& run) {
  if (run()) return;
  for (int64_t i = 0; i < a.depth; ++i) a.layers[i].filter = {};
  run();
}

// Rows of some components of all tiles, [component][tile].
template <class T>
struct FilterRows {
  T* data;
  int64_t pitch, component_pitch;

  FilterRows(T* to, const StackLayer& layer, int64_t channels)
      : data(to), pitch(row_pitch<T>(channels)), component_pitch(layer.filter.pitch * pitch) {}
  T* at(int64_t component, int64_t tile) const {
    return data + component * component_pitch + tile * pitch;
  }
  LinkedRows<T> component(int64_t j, const T* zeros) const {
    return {at(j, 0), pitch, 0, zeros, nullptr, 0};
  }
};

// How much room they take. Products of rows overwrite up to a tile of rows after the last.
template <class T>
int64_t filter_size(const StackLayer& layer, int64_t channels, int64_t components) {
  if (!layer.is_filtered()) return 0;
  return (components * layer.filter.pitch + kTileRows) * row_pitch<T>(channels);
}

// What is multiplied: rows of each component, found as those that a tap reads.
template <class T>
struct FilterOperand {
  const T* zeros;
  LinkedRows<T> components[kFilterComponents];

  const T* at(int64_t component, int64_t tile) const { return components[component].at(0, tile); }
};

// The rows that all tiles have at one place.
template <class T>
LinkedRows<T> rows_of_tiles(const LinkedRows<T>& rows, const StackFilter& filter,
                            const int32_t* links, int64_t place) {
  return {rows.data, rows.pitch, 0, rows.zeros, links + place * filter.pitch, 0};
}

// Calls body(tile) for each tile of a layer.
template <class Body>
CONVLM_INLINE void for_filter_tiles(const StackLayer& layer, int64_t channels, const Body& body) {
  parallel_jobs(layer.filter.tiles, kMemoryOperation * kFilterComponents * channels,
                [&](int64_t begin, int64_t end) {
                  for (int64_t tile = begin; tile < end; ++tile) body(tile);
                });
}

// x0 - x1, x1 and x2 - x1; the differences in `room`.
template <class T>
FilterOperand<T> filter_inputs(const StackLayer& layer, const LinkedRows<T>& in, T* room) {
  const StackFilter& filter = layer.filter;
  const LinkedRows<T> first = rows_of_tiles(in, filter, filter.inputs, 0);
  const LinkedRows<T> middle = rows_of_tiles(in, filter, filter.inputs, 1);
  const LinkedRows<T> last = rows_of_tiles(in, filter, filter.inputs, 2);
  const FilterRows<T> differences(room, layer, layer.in_channels);
  for_filter_tiles(layer, layer.in_channels, [&](int64_t tile) {
    const T *x0 = first.at(0, tile), *x1 = middle.at(0, tile), *x2 = last.at(0, tile);
    T *before = differences.at(0, tile), *after = differences.at(1, tile);
    for (int64_t c = 0; c < layer.in_channels; c += kLanes<T>) {
      const Vector<T> x = load(x1 + c);
      store(before + c, load(x0 + c) - x);
      store(after + c, load(x2 + c) - x);
    }
  });
  return {in.zeros,
          {differences.component(0, in.zeros), middle, differences.component(1, in.zeros)}};
}

// g0, g0 + g1 and g1; the sums in `room`.
template <class T>
FilterOperand<T> filter_gradients(const StackLayer& layer, const LinkedRows<T>& gradient, T* room) {
  const StackFilter& filter = layer.filter;
  const LinkedRows<T> first = rows_of_tiles(gradient, filter, filter.outputs, 0);
  const LinkedRows<T> second = rows_of_tiles(gradient, filter, filter.outputs, 1);
  const FilterRows<T> sums(room, layer, layer.columns);
  for_filter_tiles(layer, layer.columns, [&](int64_t tile) {
    const T *g0 = first.at(0, tile), *g1 = second.at(0, tile);
    T* sum = sums.at(0, tile);
    for (int64_t c = 0; c < layer.columns; c += kLanes<T>)
      store(sum + c, load(g0 + c) + load(g1 + c));
  });
  return {gradient.zeros, {first, sums.component(0, gradient.zeros), second}};
}

// Each component times its weight.
template <class T>
void multiply_components(const StackLayer& layer, const FilterOperand<T>& operand,
                         const PackedWeight<T>& weight, const FilterRows<T>& products) {
  for (int64_t j = 0; j < kFilterComponents; ++j)
    multiply_rows_into(operand.components[j], layer.filter.tiles, weight, j, products.at(j, 0),
                       products.pitch);
}

// Calls finish(tile of rows, pitch, first, count) for the rows of the result.
template <class T, class Finish>
void multiply_filtered(const StackLayer& layer, const LinkedRows<T>& in,
                       const PackedWeight<T>& weight, T* differences, T* products,
                       const Finish& finish) {
  const FilterRows<T> to(products, layer, layer.columns);
  multiply_components(layer, filter_inputs(layer, in, differences), weight, to);
  gather_products<T>({products, to.pitch, 0, in.zeros, layer.filter.components, layer.link_pitch},
                     StackFilter::kOutputs, layer.out_rows, weight.panels.columns(), finish);
}

template <class T>
bool products_are_finite(const StackLayer& layer, const FilterRows<T>& products) {
  Vector<T> poison{};  // NaN once a value is not finite
  for (int64_t j = 0; j < kFilterComponents; ++j)
    for (int64_t tile = 0; tile < layer.filter.tiles; ++tile)
      for (int64_t c = 0; c < layer.in_channels; c += kLanes<T>)
        poison += first_lanes<T>(load(products.at(j, tile) + c), layer.in_channels - c) * 0;
  return !any_nan<T>(poison);
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

// The sums of the three weights become those of the two taps, [channel][tap], in their place.
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
