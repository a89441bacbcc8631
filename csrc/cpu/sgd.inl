// parameter -= lr * gradient.

template <class S>
struct Sgd {
  static void run(const SgdArguments& a) {
    PutGradient<S>(true, a.lr)
        .row(static_cast<const S*>(a.gradient), a.gradient_stride, a.count,
             static_cast<S*>(a.parameter), a.parameter_stride);
  }
};

void sgd(const SgdArguments& arguments) { for_dtype<Sgd>(arguments, &Kernels::sgd); }
