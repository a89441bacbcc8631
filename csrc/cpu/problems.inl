// The three functions as products: which taps read which positions, and whose strides are whose.

template <class S>
Correlation<S> forward_problem(const ForwardArguments& a) {
  const Conv1dGeometry& g = a.geometry;
  int64_t* taps = static_cast<int64_t*>(scratch(Slot::taps, sizeof(int64_t) * 2 * g.kernel_size));
  for (int64_t k = 0; k < g.kernel_size; ++k) {
    taps[k] = k;
    taps[g.kernel_size + k] = input_position(0, k, g.stride, g.dilation, g.pad_left);
  }
  Correlation<S> p{};
  p.batch = g.batch;
  p.precision = a.precision;
  p.groups = g.groups;
  p.rows = g.out_channels_per_group();
  p.channels = g.in_channels_per_group();
  p.outputs = g.out_length;
  p.length = g.length;
  p.in_step = g.stride;
  p.taps = g.kernel_size;
  p.tap_index = taps;
  p.tap_offset = taps + g.kernel_size;
  p.in = static_cast<const S*>(a.x.data);
  p.in_batch = a.x.stride[0];
  p.in_channel = a.x.stride[1];
  p.in_position = a.x.stride[2];
  p.weight = static_cast<const S*>(a.weight.data);
  p.weight_group = p.rows * a.weight.stride[0];
  p.weight_row = a.weight.stride[0];
  p.weight_channel = a.weight.stride[1];
  p.weight_tap = a.weight.stride[2];
  p.bias = static_cast<const S*>(a.bias.data);
  p.bias_stride = a.bias.stride[0];
  p.activation = a.activation;
  p.out = static_cast<S*>(a.y);
  p.out_batch = g.out_channels * g.out_length;
  p.out_group = p.rows * g.out_length;
  p.out_row = g.out_length;
  p.out_step = 1;
  return p;
}

// ---- grad_input ----

// With one channel per group and no dilation, classes that are alike differ only by which tap
// they start with: they are rows of one product, as if the input had been cut into patches.
inline bool has_patches(const Conv1dGeometry& g) {
  return g.in_channels_per_group() == 1 && g.dilation == 1;
}

// Calls body with the correlation of each class of positions while that returns true.
template <class S, class Body>
void for_each_class(const GradInputArguments& a, bool with_patches, const Body& body) {
  const Conv1dGeometry& g = a.geometry;
  int64_t* taps = static_cast<int64_t*>(
      scratch(Slot::taps, sizeof(int64_t) * (2 * g.kernel_size + smaller(g.stride, g.length))));
  const PositionClasses classes(g, taps + 2 * g.kernel_size);
  Correlation<S> p{};
  p.batch = g.batch;
  p.precision = a.precision;
  p.groups = g.groups;
  p.channels = g.out_channels_per_group();
  p.length = g.out_length;
  p.in_step = 1;
  int64_t *tap_index = taps, *tap_offset = taps + g.kernel_size;  // of the next class
  p.in = static_cast<const S*>(a.grad_output.data);
  p.in_batch = a.grad_output.stride[0];
  p.in_channel = a.grad_output.stride[1];
  p.in_position = a.grad_output.stride[2];
  p.weight = static_cast<const S*>(a.weight.data);
  p.weight_group = p.channels * a.weight.stride[0];
  p.weight_channel = a.weight.stride[0];
  p.weight_tap = a.weight.stride[2];
  p.out_batch = g.in_channels * g.length;
  p.out_group = g.in_channels_per_group() * g.length;
  p.out_step = g.stride;
  const bool patches = with_patches && has_patches(g);
  for (int64_t first = 0, alike; first < classes.count; first += alike) {
    const PositionClass c = classes.at(first);
    classes.list_taps(c, tap_index, tap_offset);
    for (alike = 1; patches && first + alike < classes.count; ++alike)
      if (!c.like(classes.at(first + alike))) break;
    p.rows = patches ? alike : g.in_channels_per_group();
    p.weight_row = patches ? a.weight.stride[2] : a.weight.stride[1];
    p.out_row = patches ? 1 : g.length;
    p.out = static_cast<S*>(a.grad_input) + first;
    p.outputs = c.outputs;
    p.taps = c.taps;
    p.tap_index = tap_index;
    p.tap_offset = tap_offset;
    tap_index += c.taps;
    tap_offset += c.taps;
    if (!body(p)) return;
  }
}

// No output has read these positions.
template <class S>
void clear(const Correlation<S>& p) {
  parallel_jobs(p.batch * p.groups, p.rows * p.outputs, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      S* out = p.out + job / p.groups * p.out_batch + job % p.groups * p.out_group;
      for (int64_t row = 0; row < p.rows; ++row, out += p.out_row)
        for (int64_t q = 0; q < p.outputs; ++q) from_compute(Compute<S>(0), out[q * p.out_step]);
    }
  });
}

// ---- grad_weight ----

template <class S>
WeightGradient<S> weight_gradient_problem(const GradWeightArguments& a, Slot slot = Slot::taps) {
  const Conv1dGeometry& g = a.geometry;
  int64_t* offsets = static_cast<int64_t*>(scratch(slot, sizeof(int64_t) * g.kernel_size));
  for (int64_t k = 0; k < g.kernel_size; ++k)
    offsets[k] = input_position(0, k, g.stride, g.dilation, g.pad_left);
  WeightGradient<S> p{};
  p.batch = g.batch;
  p.precision = a.precision;
  p.groups = g.groups;
  p.rows = g.out_channels_per_group();
  p.channels = g.in_channels_per_group();
  p.outputs = g.out_length;
  p.length = g.length;
  p.stride = g.stride;
  p.taps = g.kernel_size;
  p.tap_offset = offsets;
  p.grad_output = static_cast<const S*>(a.grad_output.data);
  p.grad_batch = a.grad_output.stride[0];
  p.grad_row = a.grad_output.stride[1];
  p.grad_position = a.grad_output.stride[2];
  p.x = static_cast<const S*>(a.x.data);
  p.x_batch = a.x.stride[0];
  p.x_channel = a.x.stride[1];
  p.x_position = a.x.stride[2];
  p.grad_weight = static_cast<S*>(a.grad_weight);
  p.grad_bias = static_cast<S*>(a.grad_bias);
  return p;
}
