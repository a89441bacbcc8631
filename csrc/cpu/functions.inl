// The three functions as products: which taps read which positions, and whose strides are whose.

template <template <class> class Function, class Arguments, class Result>
CONVLM_INLINE Result for_dtype(const Arguments& arguments,
                               Result (*Kernels::*function)(const Arguments&)) {
#if defined(CONVLM_DOT_BFLOAT16)
  if (arguments.dtype == ScalarType::bfloat16) return Function<bfloat16>::run(arguments);
  return (CONVLM_DOT_BFLOAT16.*function)(arguments);
#else
  (void)function;
  switch (arguments.dtype) {
    case ScalarType::float32:
      return Function<float>::run(arguments);
    case ScalarType::float64:
      return Function<double>::run(arguments);
    case ScalarType::bfloat16:
      return Function<bfloat16>::run(arguments);
    default:
      return Function<float16>::run(arguments);
  }
#endif
}

template <class S>
struct Forward {
  static void run(const ForwardArguments& a) { correlate(problem(a)); }

  static Correlation<S> problem(const ForwardArguments& a) {
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
};

template <class S>
struct ForwardKernel {
  static Kernel run(const ForwardArguments& a) {
    return correlation_kernel(Forward<S>::problem(a));
  }
};

template <class S>
struct GradInput {
  static void run(const GradInputArguments& a) {
    const Conv1dGeometry& g = a.geometry;
    Correlation<S>* parts = static_cast<Correlation<S>*>(
        scratch(Slot::parts, sizeof(Correlation<S>) * smaller(g.stride, g.length)));
    const bool by_groups = is_by_groups<S>(g);
    const bool interleaved = !by_groups && is_interleaved(g);
    if (by_groups || interleaved) {
      int64_t count = 0;
      for_each_class(a, true, [&](const Correlation<S>& p) {
        if (p.taps > 0 || by_groups) parts[count++] = p;
        return true;
      });
      S* const out = static_cast<S*>(a.grad_input);
      return by_groups ? correlate_groups(parts, count, out)
                       : correlate_interleaved(parts, count, out);
    }
    int64_t count = 0;
    const Kernel kernel = kernel_of_all(a, parts, count);
    if (kernel != Kernel::rows) return correlate_together(parts, count, kernel);
    for_each_class(a, true, [&](const Correlation<S>& all) {
      const Correlation<S> p = of_taps_inside(all);
      p.taps == 0 ? clear(p) : correlate(p);
      return true;
    });
  }

  // How all classes of positions go together, which become `parts`: see kernel_of_classes.
  static Kernel kernel_of_all(const GradInputArguments& a, Correlation<S>* parts, int64_t& count) {
    const Conv1dGeometry& g = a.geometry;
    if (g.batch == 0 || g.length == 0 || g.stride == 1) return Kernel::rows;
    const auto list_classes = [&](bool with_patches) {
      count = 0;
      for_each_class(a, with_patches, [&](const Correlation<S>& p) {
        parts[count++] = p;
        return true;
      });
    };
    const bool patches = has_patches(g);
    list_classes(patches);
    CostOfClasses direct = cost_of_classes(parts, count);
    if (patches) {  // which go apart only; what goes together has none
      direct.together = kNever;
      list_classes(false);
    }
    return kernel_of_classes(parts, count, direct);
  }

  // With one channel per group and no dilation, classes that are alike differ only by which tap
  // they start with: they are rows of one product, as if the input had been cut into patches.
  static bool has_patches(const Conv1dGeometry& g) {
    return g.in_channels_per_group() == 1 && g.dilation == 1;
  }

  // Calls body with the correlation of each class of positions while that returns true.
  template <class Body>
  static void for_each_class(const GradInputArguments& a, bool with_patches, const Body& body) {
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
  static void clear(const Correlation<S>& p) {
    parallel_jobs(p.batch * p.groups, p.rows * p.outputs, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        S* out = p.out + job / p.groups * p.out_batch + job % p.groups * p.out_group;
        for (int64_t row = 0; row < p.rows; ++row, out += p.out_row)
          for (int64_t q = 0; q < p.outputs; ++q) from_compute(Compute<S>(0), out[q * p.out_step]);
      }
    });
  }
};

template <class S>
struct GradInputKernel {
  static Kernel run(const GradInputArguments& a) {
    if (is_by_groups<S>(a.geometry) || is_interleaved(a.geometry)) return Kernel::depthwise;
    const Conv1dGeometry& g = a.geometry;
    Correlation<S>* parts = static_cast<Correlation<S>*>(
        scratch(Slot::parts, sizeof(Correlation<S>) * smaller(g.stride, g.length)));
    int64_t count = 0;
    Kernel kernel = GradInput<S>::kernel_of_all(a, parts, count);
    if (kernel != Kernel::rows) return kernel;
    GradInput<S>::for_each_class(a, true, [&](const Correlation<S>& all) {
      const Correlation<S> p = of_taps_inside(all);
      if (p.taps > 0) kernel = correlation_kernel(p);
      return p.taps == 0;
    });
    return kernel;
  }
};

template <class S>
struct GradWeight {
  static void run(const GradWeightArguments& a) { weight_gradient(problem(a)); }

  static WeightGradient<S> problem(const GradWeightArguments& a, Slot slot = Slot::taps) {
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
};

template <class S>
struct GradWeightKernel {
  static Kernel run(const GradWeightArguments& a) {
    return grad_weight_kernel(of_taps_inside(GradWeight<S>::problem(a)));
  }
};

template <class S>
struct Gradients {
  static void run(const GradientsArguments& a) {
    if (a.input.geometry.stride == 1) {
      const WeightGradient<S> weight = GradWeight<S>::problem(a.weight, Slot::parts);
      bool done = false;
      GradInput<S>::for_each_class(a.input, true, [&](const Correlation<S>& p) {
        done = gradients_share_a_pass(p, weight);
        if (done) gradients_depthwise(p, weight);
        return false;
      });
      if (done) return;
    }
    GradInput<S>::run(a.input);
    GradWeight<S>::run(a.weight);
  }
};

void forward(const ForwardArguments& arguments) {
  for_dtype<Forward>(arguments, &Kernels::forward);
}
void grad_input(const GradInputArguments& arguments) {
  for_dtype<GradInput>(arguments, &Kernels::grad_input);
}
void grad_weight(const GradWeightArguments& arguments) {
  for_dtype<GradWeight>(arguments, &Kernels::grad_weight);
}

void gradients(const GradientsArguments& arguments) {
  for_dtype<Gradients>(arguments, &Kernels::gradients);
}

Kernel forward_kernel_of(const ForwardArguments& arguments) {
  return for_dtype<ForwardKernel>(arguments, &Kernels::forward_kernel);
}
Kernel grad_input_kernel_of(const GradInputArguments& arguments) {
  return for_dtype<GradInputKernel>(arguments, &Kernels::grad_input_kernel);
}
Kernel grad_weight_kernel_of(const GradWeightArguments& arguments) {
  return for_dtype<GradWeightKernel>(arguments, &Kernels::grad_weight_kernel);
}
