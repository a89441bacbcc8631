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

// A row of sums on its way to the result, by the activation: the loop over channels must not hold
// the choice between them.
template <class T>
struct ActivatedRow {
  const T *sums, *bias;
  int64_t channels;  // of the result
  T* row;
  T* slopes;  // null where they are not kept
};

template <class T, Activation ACTIVATION>
void activate_row(const ActivatedRow<T>& r) {
  constexpr int W = kLanes<T>;
  if (r.slopes == nullptr) {
    for (int64_t c = 0; c < r.channels; c += W)
      store(r.row + c, activate(load(r.sums + c) + load(r.bias + c), ACTIVATION));
    return;
  }
  for (int64_t c = 0; c < r.channels; c += W) {
    const ValueAndSlope<T> a =
        activate_with_slope<T>(load(r.sums + c) + load(r.bias + c), ACTIVATION);
    store(r.row + c, a.value);
    store(r.slopes + c, a.slope);
  }
}

template <class T>
void gate_row(const ActivatedRow<T>& r) {
  constexpr int W = kLanes<T>;
  const T *second = r.sums + r.channels, *second_bias = r.bias + r.channels;
  for (int64_t c = 0; c < r.channels; c += W) {
    const Vector<T> t = tanh_of<T>(load(r.sums + c) + load(r.bias + c));
    const Vector<T> s = sigmoid_of<T>(load(second + c) + load(second_bias + c));
    const int64_t lanes = r.channels - c;  // past them lies what is no channel of either half
    store_lanes(r.row + c, t * s, lanes);
    if (r.slopes == nullptr) continue;
    store_lanes(r.slopes + c, (T(1) - t * t) * s, lanes);
    store_lanes(r.slopes + r.channels + c, t * s * (T(1) - s), lanes);
  }
}

template <class T>
using RowActivation = void (*)(const ActivatedRow<T>&);

template <class T>
RowActivation<T> row_activation(const StackLayer& layer) {
  if (layer.gated) return &gate_row<T>;
  switch (layer.activation) {
    case Activation::none:
      break;
    case Activation::tanh:
      return &activate_row<T, Activation::tanh>;
    case Activation::relu:
      return &activate_row<T, Activation::relu>;
    case Activation::silu:
      return &activate_row<T, Activation::silu>;
    case Activation::gelu:
      return &activate_row<T, Activation::gelu>;
    case Activation::sigmoid:
      return &activate_row<T, Activation::sigmoid>;
  }
  return &activate_row<T, Activation::none>;
}

// Bias, activation or gate, and residual: from a tile of sums to rows of the layer's result.
template <class T>
struct FinishRows {
  const StackLayer& layer;
  LinkedRows<T> in;
  const T* bias;  // as long as a tile's row
  LayerRows<T> out;

  void operator()(T* tile, int64_t pitch, int64_t first, int64_t count) const {
    const RowActivation<T> activate = row_activation<T>(layer);
    for (int64_t i = 0; i < count; ++i) {
      T* row = out.rows + (first + i) * out.pitch;
      T* slopes = out.slopes ? out.slopes + (first + i) * out.slope_pitch : nullptr;
      activate({tile + i * pitch, bias, layer.out_channels(), row, slopes});
      if (layer.residual) add_row(row, in.at(layer.kernel_size - 1, first + i));
    }
  }

  CONVLM_INLINE void add_row(T* row, const T* other) const {
    for (int64_t c = 0; c < layer.out_channels(); c += kLanes<T>)
      store(row + c, load(row + c) + load(other + c));
  }
};
