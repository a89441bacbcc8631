// grad_weight with vectors of positions: for groups of few output channels, depthwise above all.

template <class T>
Sum<T> sum_of(const T* row, int64_t count) {
  constexpr int W = kLanes<T>;
  Vector<Sum<T>> sum{};
  int64_t t = 0;
  for (; t + W <= count; t += W) sum = add(sum, load(row + t));
  if (t < count) sum = add(sum, load_partial(row + t, static_cast<int>(count - t)));
  Sum<T> total = 0;
  for (int l = 0; l < kLanes<Sum<T>>; ++l) total += sum[l];
  return total;
}

template <class S>
void grad_weight_vectors_of_positions(const WeightGradient<S>& p) {
  using E = Element<S>;
  using T = Compute<E>;
  constexpr int W = kLanes<T>;
  const Units units =
      plan_units(p.batch, p.outputs, kGradWeightChain * W, p.groups * p.rows * p.products(), 1);
  int64_t* memory = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  Staging staging;
  staging.stream_start = memory;
  staging.tap_start = memory + p.taps;
  plan_for_vectors(staging, divide_up(units.positions, W) * W, p.stride, p.tap_offset, p.taps, W);

  // partial[piece][group][row][product or, last, the bias]
  const int64_t row_size = p.products() + 1;
  const int64_t piece_size = p.groups * p.rows * row_size;
  Sum<T>* partial =
      static_cast<Sum<T>*>(scratch(Slot::partial, sizeof(Sum<T>) * units.pieces * piece_size));
  for (int64_t i = 0; i < units.pieces * piece_size; ++i) partial[i] = 0;

  parallel_jobs(
      units.pieces * p.groups, p.batch * p.outputs * p.products() * p.rows / units.pieces,
      [&](int64_t begin, int64_t end) {
        const int64_t grad_pitch = staged_pitch(units.positions, W);
        T* staged = static_cast<T*>(
            scratch(Slot::staged, sizeof(T) * p.channels * staging.channel_pitch()));
        T* copies = static_cast<T*>(scratch(Slot::panel, sizeof(T) * p.rows * grad_pitch));
        const T** grad = static_cast<const T**>(scratch(Slot::tile, sizeof(T*) * p.rows));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t group = job % p.groups, piece = job / p.groups;
          Sum<T>* sums = partial + piece * piece_size + group * p.rows * row_size;
          for (int64_t u = units.count * piece / units.pieces;
               u < units.count * (piece + 1) / units.pieces; ++u) {
            const Unit unit = unit_at(p, units, u);
            for (int64_t n = unit.first_sample; n < unit.first_sample + unit.samples; ++n) {
              stage(staging,
                    reinterpret_cast<const E*>(p.x) + n * p.x_batch +
                        group * p.channels * p.x_channel,
                    p.channels, p.x_channel, p.x_position, p.length, unit.first_position * p.stride,
                    staged);
              for (int64_t m = 0; m < p.rows; ++m) {
                const E* source = reinterpret_cast<const E*>(p.grad_output) + n * p.grad_batch +
                                  (group * p.rows + m) * p.grad_row +
                                  unit.first_position * p.grad_position;
                grad[m] = p.grad_position == 1 ? in_place(source) : nullptr;
                if (grad[m] != nullptr) continue;
                T* copy = copies + m * grad_pitch;
                stage_row(source, p.grad_position, unit.positions, 0, 1, copy, unit.positions);
                grad[m] = copy;
              }
              for (int64_t m = 0; m < p.rows; m += kDotRows) {
                const int rows = static_cast<int>(smaller(kDotRows, p.rows - m));
                for (int64_t r = 0; r < p.products(); r += kDotColumns) {
                  const int columns = static_cast<int>(smaller(kDotColumns, p.products() - r));
                  const T* b[kDotColumns];
                  for (int j = 0; j < columns; ++j)
                    b[j] = staged + (r + j) / p.taps * staging.channel_pitch() +
                           staging.tap_start[(r + j) % p.taps];
                  select_dot_products(DotProducts<T>{grad + m, b, unit.positions,
                                                     sums + m * row_size + r, row_size},
                                      rows, columns,
                                      std::make_integer_sequence<int, kDotRows * kDotColumns>{});
                }
              }
              if (p.grad_bias != nullptr)
                for (int64_t m = 0; m < p.rows; ++m)
                  sums[m * row_size + p.products()] += sum_of(grad[m], unit.positions);
            }
          }
        }
      });

  for (int64_t row = 0; row < p.groups * p.rows; ++row)
    for (int64_t r = 0; r < row_size; ++r) {
      Sum<T> total = 0;
      for (int64_t piece = 0; piece < units.pieces; ++piece)
        total += partial[piece * piece_size + row * row_size + r];
      if (r < p.products())
        from_compute(total, p.grad_weight[row * p.products() + r]);
      else if (p.grad_bias != nullptr)
        from_compute(total, p.grad_bias[row]);
    }
}
