// The slopes of activations, backward: from the gradient of rows to that of the sums that they
// were.

// Rows of the gradient of a layer's result on their way to that of its sums, by the activation.
template <class T>
struct SlopedRows {
  const T* gradient;
  int64_t gradient_pitch, count, channels;  // channels: of the result
  LayerRows<T> kept;
  T* out;
  int64_t out_pitch;
  int64_t first;   // of the rows
  RowOrder order;  // of what is kept and of `out`

  int64_t row(int64_t i) const { return order[first + i]; }
};

// KEPT: by the slopes that were kept, else by the result.
template <class T, Activation ACTIVATION, bool KEPT>
void slope_rows(const SlopedRows<T>& r) {
  constexpr int W = kLanes<T>;
  // An infinite gradient ends at a closed unit, which the slope tells apart as the result does.
  constexpr bool kMultiplies = KEPT && ACTIVATION != Activation::relu;
  const SlopedRows<T> rows = r;  // in locals, which no store writes to
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* gradient = rows.gradient + i * rows.gradient_pitch;
    const int64_t row = rows.row(i);
    T* out = rows.out + row * rows.out_pitch;
    if constexpr (ACTIVATION == Activation::none) {  // the last layer's rows are not kept
      for (int64_t c = 0; c < rows.channels; c += W) store(out + c, load(gradient + c));
      continue;
    }
    const T* slopes = KEPT ? rows.kept.slopes + row * rows.kept.slope_pitch
                           : rows.kept.rows + row * rows.kept.pitch;
    for (int64_t c = 0; c < rows.channels; c += W) {
      const Vector<T> g = load(gradient + c);
      store(out + c, kMultiplies ? g * load(slopes + c)
                                 : times_derivative<T>(g, load(slopes + c), ACTIVATION));
    }
  }
}

template <class T>
void slope_gated_rows(const SlopedRows<T>& r) {
  constexpr int W = kLanes<T>;
  const SlopedRows<T> rows = r;
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* gradient = rows.gradient + i * rows.gradient_pitch;
    const T* slopes = rows.kept.slopes + rows.row(i) * rows.kept.slope_pitch;
    T* out = rows.out + rows.row(i) * rows.out_pitch;
    for (int64_t c = 0; c < rows.channels; c += W) {
      const Vector<T> g = load(gradient + c);
      const int64_t lanes = rows.channels - c;
      store_lanes(out + c, g * load(slopes + c), lanes);
      store_lanes(out + rows.channels + c, g * load(slopes + rows.channels + c), lanes);
    }
  }
}

template <class T>
void apply_slopes(const StackLayer& layer, const SlopedRows<T>& rows) {
  if (layer.gated) return slope_gated_rows<T>(rows);
  const bool kept = rows.kept.slopes != nullptr;
  switch (layer.activation) {
    case Activation::none:
      return slope_rows<T, Activation::none, false>(rows);
    case Activation::tanh:
      if (!kept) return slope_rows<T, Activation::tanh, false>(rows);
      break;
    case Activation::sigmoid:
      if (!kept) return slope_rows<T, Activation::sigmoid, false>(rows);
      break;
    case Activation::relu:
      return (kept ? slope_rows<T, Activation::relu, true>
                   : slope_rows<T, Activation::relu, false>)(rows);
    default:
      break;
  }
  slope_rows<T, Activation::tanh, true>(rows);  // any one whose slopes are multiplied by
}
