// The three functions, for each type of the tensors.

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
  static void run(const ForwardArguments& a) { correlate(forward_problem<S>(a)); }
};

template <class S>
struct ForwardKernel {
  static Kernel run(const ForwardArguments& a) { return correlation_kernel(forward_problem<S>(a)); }
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
      for_each_class<S>(a, true, [&](const Correlation<S>& p) {
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
    for_each_class<S>(a, true, [&](const Correlation<S>& all) {
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
      for_each_class<S>(a, with_patches, [&](const Correlation<S>& p) {
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
    for_each_class<S>(a, true, [&](const Correlation<S>& all) {
      const Correlation<S> p = of_taps_inside(all);
      if (p.taps > 0) kernel = correlation_kernel(p);
      return p.taps == 0;
    });
    return kernel;
  }
};

template <class S>
struct GradWeight {
  static void run(const GradWeightArguments& a) { weight_gradient(weight_gradient_problem<S>(a)); }
};

template <class S>
struct GradWeightKernel {
  static Kernel run(const GradWeightArguments& a) {
    return grad_weight_kernel(of_taps_inside(weight_gradient_problem<S>(a)));
  }
};

template <class S>
struct Gradients {
  static void run(const GradientsArguments& a) {
    if (a.input.geometry.stride == 1) {
      const WeightGradient<S> weight = weight_gradient_problem<S>(a.weight, Slot::parts);
      bool done = false;
      for_each_class<S>(a.input, true, [&](const Correlation<S>& p) {
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
