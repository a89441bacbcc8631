// grad_weight of few positions: an outer product of grad_output and windows, written once and where
// it belongs.

template <class S>
Windows<S> windows_of(const WeightGradient<S>& p, int64_t group) {
  return {p.x + group * p.channels * p.x_channel,
          p.x_batch,
          p.x_channel,
          p.x_position,
          p.channels,
          p.length,
          p.outputs,
          p.stride,
          p.taps,
          p.tap_offset};
}

template <class S>
void grad_weight_windows(const WeightGradient<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;

  const int64_t positions = p.batch * p.outputs, products = p.products();
  const int64_t pitch = staged_pitch(products, W);
  T* windows = static_cast<T*>(scratch(Slot::staged, sizeof(T) * p.groups * positions * pitch));
  const int64_t parts = divide_up(positions, W);
  parallel_jobs(p.groups * parts, W * products, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t group = job / parts, first = job % parts * W;
      windows_of(p, group).stage(first, smaller(W, positions - first),
                                 windows + (group * positions + first) * pitch, pitch);
    }
  });

  const int64_t zero = 0, blocks = divide_up(p.rows, kMaxRows);
  constexpr auto shapes = std::make_integer_sequence<int, kMaxRows * kMaxVectors>{};
  parallel_jobs(p.groups * blocks, positions * products * kMaxRows,
                [&](int64_t begin, int64_t end) {
                  T* grad = static_cast<T*>(scratch(Slot::panel, sizeof(T) * positions * kMaxRows));
                  T* converted = static_cast<T*>(
                      scratch(Slot::tile, std::is_same_v<S, T> ? 0 : sizeof(T) * kMaxRows * pitch));
                  for (int64_t job = begin; job < end; ++job) {
                    const int64_t group = job / blocks, first = job % blocks * kMaxRows;
                    const int rows = static_cast<int>(smaller(kMaxRows, p.rows - first));
                    const int64_t row = group * p.rows + first;
                    for (int i = 0; i < rows; ++i) {
                      T sum = 0;
                      T* scalar = grad + i;
                      for (int64_t n = 0; n < p.batch; ++n) {
                        const S* source = p.grad_output + n * p.grad_batch + (row + i) * p.grad_row;
                        for (int64_t q = 0; q < p.outputs; ++q, scalar += kMaxRows) {
                          *scalar = to_compute(source[q * p.grad_position]);
                          sum += *scalar;
                        }
                      }
                      if (p.grad_bias != nullptr) from_compute(sum, p.grad_bias[row + i]);
                    }
                    T* out = if_same<T>(p.grad_weight + row * products);
                    const int64_t out_pitch = out == nullptr ? pitch : products;
                    if (out == nullptr) out = converted;
                    const auto multiply_columns = [&](int64_t column, int64_t end, int width) {
                      const ProductFunction<T> product =
                          select_product<T, true, kMaxVectors>(rows, width, shapes);
                      const T* const start = grad;
                      Product<T> strip{&start,   windows + group * positions * pitch,
                                       &zero,    &zero,
                                       1,        positions,
                                       kMaxRows, pitch,
                                       out,      out_pitch,
                                       false};
                      strip.vectors += column;
                      strip.tile += column;
                      for (; column < end; column += width * W) {
                        product(strip);
                        strip.vectors += width * W;
                        strip.tile += width * W;
                      }
                    };
                    const int64_t wide = products / (kMaxVectors * W) * (kMaxVectors * W);
                    const int64_t whole = products / W * W;
                    multiply_columns(0, wide, kMaxVectors);
                    multiply_columns(wide, whole, 1);
                    // The last vector overlaps the one before it.
                    if (whole < products) multiply_columns(products - W, products, 1);
                    if (out == converted)
                      copy_rows([&](int64_t i) { return Row<T>{converted + i * pitch}; }, rows, 0,
                                products, p.grad_weight + row * products, products);
                  }
                });
}
