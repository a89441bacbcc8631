// A step: each sample's new position goes through all layers before the next block of samples does.
// The samples of a block share the weights that are read.

constexpr int64_t kStepSamples = 16;  // of a block: enough to hide the reading of weights

// What a sample needs beside its rings, in the compute type.
template <class T>
struct StepBuffers {
  T* x[kStepSamples];  // the layer's input, then its output
  T* window[kStepSamples];
  T* sums[kStepSamples];
};

template <class T>
StepBuffers<T> step_buffers(const StepArguments& a) {
  int64_t channels = 0, window = 0, sums = 0;
  for (int64_t l = 0; l < a.layer_count; ++l) {
    const StepLayer& layer = a.layers[l];
    channels = larger(channels, larger(layer.in_channels, layer.results()));
    window = larger(window, layer.kernel_size * StepLayer::filled(layer.in_channels));
    // Each group's sums end with a vector that is written whole.
    sums = larger(sums, layer.out_channels + kFill);
  }
  // A vector that ends a row may be read and written whole.
  channels = StepLayer::filled(channels);
  window = StepLayer::filled(window);
  sums = StepLayer::filled(sums);
  const int64_t size = channels + window + sums;
  T* memory = static_cast<T*>(scratch(Slot::staged, sizeof(T) * kStepSamples * size));
  StepBuffers<T> buffers;
  for (int64_t i = 0; i < kStepSamples; ++i) {
    buffers.x[i] = memory + i * size;
    buffers.window[i] = buffers.x[i] + channels;
    buffers.sums[i] = buffers.window[i] + window;
  }
  return buffers;
}

template <class S, class T>
CONVLM_INLINE void convert_row(const S* in, int64_t step, int64_t count, T* out, int64_t out_step) {
  if (step == 1 && out_step == 1) {
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(out + i, load(in + i));
    for (; i < count; ++i) out[i] = to_compute(in[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i * out_step] = to_compute(in[i * step]);
}

// The inputs of one tap, in the order of the packed weights.
template <class S, class T>
void place_tap(const StepLayer& layer, const S* in, int64_t tap, T* window) {
  if (layer.depthwise())
    return convert_row(in, 1, layer.in_channels,
                       window + tap * StepLayer::filled(layer.in_channels), 1);
  const int64_t channels = layer.in_channels / layer.groups, taps = layer.kernel_size;
  const bool outside = layer.channels_outside();
  for (int64_t group = 0; group < layer.groups; ++group)
    convert_row(in + group * channels, 1, channels,
                window + group * channels * taps + (outside ? tap : tap * channels),
                outside ? taps : 1);
}

// Makes the window of output `position`, and keeps its newest input for later ones.
template <class S, class T>
void take_input(const StepLayer& layer, const T* x, int64_t position, S* ring, T* window) {
  const int64_t slots = layer.slots(), newest = layer.kernel_size - 1;
  const int64_t own_slot = slots > 0 ? position % slots : 0;
  int64_t slot = own_slot;  // the oldest input, which the newest one replaces
  for (int64_t tap = 0; tap < newest; ++tap) {
    place_tap(layer, ring + slot * layer.in_channels, tap, window);
    slot += layer.dilation;
    if (slot >= slots) slot -= slots;
  }
  place_tap(layer, x, newest, window);
  if (slots == 0) return;
  S* kept = ring + own_slot * layer.in_channels;
  for (int64_t c = 0; c < layer.in_channels; ++c) from_compute(x[c], kept[c]);
}

// The value that a tensor of S would hold.
template <class S>
CONVLM_INLINE Vector<Compute<S>> as_stored(Vector<Compute<S>> v) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) return v;
  S stored[kLanes<Compute<S>>];
  store(stored, v);
  return load(stored);
}

template <class S, class T>
void finish_layer(const StepLayer& layer, const T* sums, const T* bias, T* x) {
  const int64_t results = layer.results();
  for (int64_t c = 0; c < results; c += kLanes<T>) {
    Vector<T> y = load(sums + c) + load(bias + c);
    if (layer.gated)
      y = activate(y, Activation::tanh) *
          activate(load(sums + results + c) + load(bias + results + c), Activation::sigmoid);
    else
      y = activate(y, static_cast<Activation>(layer.activation));
    y = as_stored<S>(y);
    if (layer.residual) y = as_stored<S>(y + load(x + c));
    store(x + c, y);
  }
}

template <class T, class Weight>
void multiply_layer(const StepLayer& layer, const Weight* weight, const StepBuffers<T>& buffers,
                    int64_t count) {
  if (layer.depthwise()) {
    const int64_t pitch = StepLayer::filled(layer.in_channels);
    for (int64_t i = 0; i < count; ++i)
      multiply_depthwise(buffers.window[i], weight, layer.kernel_size, layer.in_channels, pitch,
                         pitch, buffers.sums[i]);
    return;
  }
  const int64_t outputs = layer.out_channels / layer.groups, steps = layer.taps_per_output();
  const int64_t outer = layer.channels_outside() ? steps / layer.kernel_size : layer.kernel_size;
  for (int64_t group = 0; group < layer.groups; ++group)
    for (int64_t first = 0; first < outputs; first += kPanel) {
      const int64_t width = smaller(kPanel, outputs - first);
      const int64_t pitch = StepLayer::filled(width);
      const T* windows[kStepSamples];
      T* sums[kStepSamples];
      for (int64_t i = 0; i < count; ++i) {
        windows[i] = buffers.window[i] + group * steps;
        sums[i] = buffers.sums[i] + group * outputs + first;
      }
      multiply_panel<T, Weight>({windows, weight, pitch, outer, steps / outer, sums}, width, count);
      weight += layer.packed_steps() * pitch;
    }
}

// Runs the inputs in buffers.x through the network, for the samples of these numbers, and leaves
// the outputs there.
template <class S, class Weight>
void step_block(const StepArguments& a, const StepBuffers<Compute<S>>& buffers,
                const int64_t* samples, int64_t count) {
  using T = Compute<S>;
  const Weight* weight = static_cast<const Weight*>(a.weights);
  const T* bias = static_cast<const T*>(a.biases);
  S* rings = static_cast<S*>(a.rings);
  int64_t lag = 0;
  for (int64_t l = 0; l < a.layer_count; ++l) {
    const StepLayer& layer = a.layers[l];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = a.position[samples[i]];
      // Before its first input a layer sees the zeros that it is padded with.
      if (position < lag)
        for (int64_t c = 0; c < layer.in_channels; ++c) buffers.x[i][c] = 0;
      take_input(layer, buffers.x[i], position, rings + samples[i] * a.ring_row, buffers.window[i]);
    }
    multiply_layer(layer, weight, buffers, count);
    for (int64_t i = 0; i < count; ++i) finish_layer<S>(layer, buffers.sums[i], bias, buffers.x[i]);
    weight += layer.weight_size();
    bias += layer.bias_size();
    rings += layer.slots() * layer.in_channels;
    lag += layer.lag();
  }
  for (int64_t i = 0; i < count; ++i) ++a.position[samples[i]];
}

template <class S>
CONVLM_INLINE void embed(const StepArguments& a, int64_t token, Compute<S>* x) {
  const S* row = static_cast<const S*>(a.embedding.data) + token * a.embedding.stride[0];
  convert_row(row, a.embedding.stride[1], a.layers[0].in_channels, x, 1);
}

inline int64_t multiply_adds(const StepArguments& a) {
  int64_t total = 0;
  for (int64_t l = 0; l < a.layer_count; ++l) total += a.layers[l].weight_size();
  return total;
}

template <class S, class Weight>
void step_all(const StepArguments& a) {
  using T = Compute<S>;
  const int64_t results = a.layers[a.layer_count - 1].results(), lag = lag_of(a);
  parallel_jobs(a.batch, multiply_adds(a), [&](int64_t begin, int64_t end) {
    const StepBuffers<T> buffers = step_buffers<T>(a);
    for (int64_t first = begin; first < end; first += kStepSamples) {
      const int64_t count = smaller(kStepSamples, end - first);
      int64_t samples[kStepSamples];
      for (int64_t i = 0; i < count; ++i) {
        samples[i] = first + i;
        const S* x = static_cast<const S*>(a.x.data) + (first + i) * a.x.stride[0];
        if (a.tokens.data != nullptr)
          embed<S>(a, token_of(a, first + i), buffers.x[i]);
        else
          convert_row(x, a.x.stride[1], a.layers[0].in_channels, buffers.x[i], 1);
      }
      step_block<S, Weight>(a, buffers, samples, count);
      for (int64_t i = 0; i < count; ++i) {
        S* y = static_cast<S*>(a.y) + (first + i) * results;
        const bool early = a.position[first + i] <= lag;
        for (int64_t c = 0; c < results; ++c)
          from_compute(early ? T(__builtin_nan("")) : buffers.x[i][c], y[c]);
      }
    }
  });
}

template <class S, class Weight>
struct StepAll {
  static void run(const StepArguments& a) { step_all<S, Weight>(a); }
};

template <template <class, class> class Function, class Arguments>
CONVLM_INLINE void for_step_dtypes(const StepArguments& step, const Arguments& arguments) {
  switch (step.dtype) {
    case ScalarType::float32:
      if (step.weight_dtype == ScalarType::bfloat16)
        return Function<float, bfloat16>::run(arguments);
      return Function<float, float>::run(arguments);
    case ScalarType::float64:
      return Function<double, double>::run(arguments);
    case ScalarType::bfloat16:
      return Function<bfloat16, bfloat16>::run(arguments);
    case ScalarType::float16:
      return Function<float16, float16>::run(arguments);
  }
}

void step(const StepArguments& arguments) { for_step_dtypes<StepAll>(arguments, arguments); }
