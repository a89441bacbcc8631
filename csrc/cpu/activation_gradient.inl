// grad_output times an activation's derivative, told by the activation's output y.

template <class T>
CONVLM_INLINE Vector<T> times_derivative(Vector<T> gradient, Vector<T> y, Activation activation) {
  switch (activation) {
    case Activation::tanh:
      return gradient * (T(1) - y * y);
    case Activation::sigmoid:
      return gradient * (y * (T(1) - y));
    case Activation::relu:
      return choose<T>(y <= T(0), Vector<T>{}, gradient);
    default:
      return gradient;
  }
}

template <class S>
CONVLM_INLINE Vector<Compute<S>> load_positions(const S* p, int64_t step, int count) {
  if (step == 1) return load_partial(p, count);
  Compute<S> lanes[kLanes<Compute<S>>] = {};
  for (int i = 0; i < count; ++i) lanes[i] = to_compute(p[i * step]);
  return load(lanes);
}

template <class S>
struct ActivationGradient {
  static void run(const ActivationGradientArguments& a) {
    using T = Compute<S>;
    constexpr int W = kLanes<T>;
    const int64_t *g = a.grad_output.stride, *h = a.activated.y.stride;
    parallel_jobs(
        a.batch * a.channels, kMemoryOperation * a.length, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            const int64_t sample = row / a.channels, channel = row % a.channels;
            const S* gradient =
                static_cast<const S*>(a.grad_output.data) + sample * g[0] + channel * g[1];
            const S* y = static_cast<const S*>(a.activated.y.data) + sample * h[0] + channel * h[1];
            S* result = static_cast<S*>(a.result) + row * a.length;
            for (int64_t q = 0; q < a.length; q += W) {
              const int count = static_cast<int>(smaller(W, a.length - q));
              const Vector<T> product = times_derivative<T>(
                  load_positions(gradient + q * g[2], g[2], count),
                  load_positions(y + q * h[2], h[2], count), a.activated.activation);
              store_partial(result + q, product, count);
            }
          }
        });
  }
};

void activation_gradient(const ActivationGradientArguments& arguments) {
  for_dtype<ActivationGradient>(arguments, &Kernels::activation_gradient);
}
