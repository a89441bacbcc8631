// The rows of a stack's layers: what forward keeps of them, and the way from sums to them.

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

  // What begins with this row.
  LayerRows from(int64_t row) const {
    return {rows + row * pitch, slopes == nullptr ? nullptr : slopes + row * slope_pitch, pitch,
            slope_pitch};
  }
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
struct ValueAndSlope {
  Vector<T> value, slope;
};

template <class T>
CONVLM_INLINE ValueAndSlope<T> activate_with_slope(Vector<T> z, Activation activation) {
  const Vector<T> one = broadcast(T(1));
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return {activate(z, activation), choose<T>(z <= T(0), Vector<T>{}, one)};
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

// Rows of sums on their way to the result, by the activation: the loops must not hold the choice
// between them, nor load its constants anew for each row.
template <class T>
struct ActivatedRows {
  const T *sums, *bias;
  int64_t sums_pitch, count, channels;  // channels: of the result
  LayerRows<T> out;
};

template <class T, Activation ACTIVATION>
void activate_rows(const ActivatedRows<T>& r) {
  constexpr int W = kLanes<T>;
  const ActivatedRows<T> rows = r;  // in locals, which no store writes to
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* sums = rows.sums + i * rows.sums_pitch;
    T* row = rows.out.rows + i * rows.out.pitch;
    // Rows end with a cache line, and are read to there.
    if constexpr (W * sizeof(T) < LinesAhead::kLine) {
      const int64_t written = divide_up(rows.channels, W) * W;
      clear(row + written, rows.out.pitch - written);
    }
    if (rows.out.slopes == nullptr) {
      for (int64_t c = 0; c < rows.channels; c += W)
        store(row + c, activate(load(sums + c) + load(rows.bias + c), ACTIVATION));
      continue;
    }
    T* slopes = rows.out.slopes + i * rows.out.slope_pitch;
    for (int64_t c = 0; c < rows.channels; c += W) {
      const ValueAndSlope<T> a =
          activate_with_slope<T>(load(sums + c) + load(rows.bias + c), ACTIVATION);
      store(row + c, a.value);
      store(slopes + c, a.slope);
    }
  }
}

template <class T>
void gate_rows(const ActivatedRows<T>& r) {
  constexpr int W = kLanes<T>;
  const ActivatedRows<T> rows = r;
  const T* second_bias = rows.bias + rows.channels;
  for (int64_t i = 0; i < rows.count; ++i) {
    const T *first = rows.sums + i * rows.sums_pitch, *second = first + rows.channels;
    T* row = rows.out.rows + i * rows.out.pitch;
    T* slopes = rows.out.slopes == nullptr ? nullptr : rows.out.slopes + i * rows.out.slope_pitch;
    for (int64_t c = 0; c < rows.channels; c += W) {
      const Vector<T> t = tanh_of<T>(load(first + c) + load(rows.bias + c));
      const int64_t lanes = rows.channels - c;  // past them lies what is no channel of either half
      const Vector<T> z =
          lanes < W ? load_partial(second + c, static_cast<int>(lanes)) : load(second + c);
      const Vector<T> s = sigmoid_of<T>(z + load(second_bias + c));
      store_lanes(row + c, t * s, lanes);
      if (slopes == nullptr) continue;
      store_lanes(slopes + c, (T(1) - t * t) * s, lanes);
      store_lanes(slopes + rows.channels + c, t * s * (T(1) - s), lanes);
    }
    // The rest is read in whole vectors as well, and memory for what is kept is new.
    clear(row + rows.channels, rows.out.pitch - rows.channels);
    if (slopes != nullptr)
      clear(slopes + 2 * rows.channels, rows.out.slope_pitch - 2 * rows.channels);
  }
}

template <class T>
using RowActivation = void (*)(const ActivatedRows<T>&);

template <class T>
RowActivation<T> row_activation(const StackLayer& layer) {
  if (layer.gated) return &gate_rows<T>;
  switch (layer.activation) {
    case Activation::none:
      break;
    case Activation::tanh:
      return &activate_rows<T, Activation::tanh>;
    case Activation::relu:
      return &activate_rows<T, Activation::relu>;
    case Activation::silu:
      return &activate_rows<T, Activation::silu>;
    case Activation::gelu:
      return &activate_rows<T, Activation::gelu>;
    case Activation::sigmoid:
      return &activate_rows<T, Activation::sigmoid>;
  }
  return &activate_rows<T, Activation::none>;
}

// Bias, activation or gate, and residual: from a tile of sums to rows of the layer's result.
template <class T>
struct FinishRows {
  const StackLayer& layer;
  LinkedRows<T> in;
  const T* bias;  // as long as a tile's row
  LayerRows<T> out;

  void operator()(T* tile, int64_t pitch, int64_t first, int64_t count) const {
    const LayerRows<T> to = out.from(first);
    row_activation<T>(layer)({tile, bias, pitch, count, layer.out_channels(), to});
    for (int64_t i = 0; layer.residual && i < count; ++i)
      add_row(to.rows + i * to.pitch, in.at(layer.kernel_size - 1, first + i));
  }

  CONVLM_INLINE void add_row(T* row, const T* other) const {
    for (int64_t c = 0; c < layer.out_channels(); c += kLanes<T>)
      store(row + c, load(row + c) + load(other + c));
  }
};
