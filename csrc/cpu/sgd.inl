// parameter -= lr * gradient.

template <class S>
struct Sgd {
  static void run(const SgdArguments& a) {
    using T = Compute<S>;
    constexpr int W = kLanes<T>;
    S* parameter = static_cast<S*>(a.parameter);
    const S* gradient = static_cast<const S*>(a.gradient);
    const T rate = static_cast<T>(-a.lr);
    int64_t i = 0;
    if (a.parameter_stride == 1 && a.gradient_stride == 1)
      for (; i + W <= a.count; i += W)
        store(parameter + i, multiply_add(load(parameter + i), rate, load(gradient + i)));
    for (; i < a.count; ++i) {
      S& p = parameter[i * a.parameter_stride];
      from_compute(to_compute(p) + rate * to_compute(gradient[i * a.gradient_stride]), p);
    }
  }
};

void sgd(const SgdArguments& arguments) { for_dtype<Sgd>(arguments, &Kernels::sgd); }
