// Where gradients go: out, or, as a step of gradient descent, to the parameter itself.

template <class S>
struct PutGradient {
  using T = Compute<S>;
  bool as_step;
  T rate;  // of a step: minus the learning rate

  PutGradient(bool step, double lr) : as_step(step), rate(static_cast<T>(-lr)) {}

  // A gradient in the compute type, as it was summed, or in that of tensors.
  template <class Gradient>
  void row(const Gradient* gradient, int64_t gradient_stride, int64_t count, S* out,
           int64_t out_stride) const {
    constexpr int W = kLanes<T>;
    int64_t i = 0;
    for (; gradient_stride == 1 && out_stride == 1 && i + W <= count; i += W) {
      const Vector<T> g = load(gradient + i);
      store(out + i, as_step ? multiply_add(load(out + i), rate, g) : g);
    }
    for (; i < count; ++i) {
      const T g = to_compute(gradient[i * gradient_stride]);
      S& to = out[i * out_stride];
      from_compute(as_step ? to_compute(to) + rate * g : g, to);
    }
  }

  // out[c * out_pitch + r] from sums[r][c].
  void turned(const T* sums, int64_t pitch, int64_t rows, int64_t columns, S* out,
              int64_t out_pitch) const {
    constexpr int W = kLanes<T>;
    parallel_jobs(divide_up(columns, W), kMemoryOperation * W * rows,
                  [&](int64_t begin, int64_t end) {
                    T* strip = static_cast<T*>(scratch(Slot::panel, sizeof(T) * W * rows));
                    for (int64_t first = begin * W; first < smaller(columns, end * W); first += W) {
                      const int64_t count = smaller(W, columns - first);
                      transpose(sums + first, pitch, rows, count, strip, rows);
                      for (int64_t i = 0; i < count; ++i)
                        row(strip + i * rows, 1, rows, out + (first + i) * out_pitch, 1);
                    }
                  });
  }
};
