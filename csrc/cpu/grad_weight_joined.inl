// grad_weight with vectors of positions of joined samples: neither operand is turned, no lane is
// padding, and lanes are added up but once a unit.

// sum[m * sum_pitch + r] += dot(grad + m * pitch, x + r * pitch)
template <class T>
void add_dot_products(const T* grad, int64_t rows, const T* x, int64_t products, int64_t pitch,
                      int64_t positions, Sum<T>* sum, int64_t sum_pitch) {
  for (int64_t r = 0; r < products; r += kDotColumns) {
    const int columns = static_cast<int>(smaller(kDotColumns, products - r));
    const T* b[kDotColumns];
    for (int j = 0; j < columns; ++j) b[j] = x + (r + j) * pitch;
    for (int64_t m = 0; m < rows; m += kDotRows) {
      const int height = static_cast<int>(smaller(kDotRows, rows - m));
      const T* a[kDotRows];
      for (int i = 0; i < height; ++i) a[i] = grad + (m + i) * pitch;
      constexpr int L = kLanes<Sum<T>>;
      Vector<Sum<T>> lanes[divide_up(kDotRows * kDotColumns, L) * L] = {};
      select_dot_products<false>(
          DotProducts<T, T>{a, b, positions, reinterpret_cast<Sum<T>*>(lanes), columns}, height,
          columns, std::make_integer_sequence<int, kDotRows * kDotColumns>{});
      for (int first = 0; first < height * columns; first += L) {
        Sum<T> total[L];
        store(total, combine_lanes<Sum<T>, Total>(lanes + first));
        for (int i = first; i < height * columns && i < first + L; ++i)
          sum[(m + i / columns) * sum_pitch + r + i % columns] += total[i - first];
      }
    }
  }
}

template <class S>
void grad_weight_joined(const WeightGradient<S>& p) {
  using E = Element<S>;
  using T = Compute<E>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kStagedBytes = 512 * 1024;  // half of the L2 cache, for either operand
  constexpr int64_t kStaged = kStagedBytes / static_cast<int64_t>(sizeof(T));

  const int64_t length = smaller(larger(16 * W, kStaged / p.rows), kGradWeightChain * W);
  const Units units = plan_units(p.batch, p.outputs, smaller(length, Runs::kMost * p.outputs),
                                 p.groups * p.rows * p.products(), 1);
  const int64_t pitch = staged_pitch(units.samples * p.outputs, W);
  int64_t* memory = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  int64_t zero = 0, grad_starts[2];
  Staging sample, grad_sample;
  sample.stream_start = memory;
  sample.tap_start = memory + p.taps;
  grad_sample.stream_start = grad_starts;
  grad_sample.tap_start = grad_starts + 1;
  plan_for_vectors(sample, p.outputs, p.stride, p.tap_offset, p.taps, W);
  plan_for_vectors(grad_sample, p.outputs, 1, &zero, 1, W);

  // Each split stages grad_output again, each range x: cut only as far as the threads need it.
  const int64_t wanted = divide_up(threads(), units.pieces * p.groups);
  const int64_t splits = smaller(p.channels, wanted);
  const int64_t ranges = smaller(divide_up(p.rows, kDotRows), divide_up(wanted, splits));
  const int64_t chunk =
      larger(1, smaller(divide_up(p.channels, splits), kStaged / (p.taps * pitch)));

  // partial[piece][group][row][product or, last, the bias]
  const int64_t row_size = p.products() + 1;
  const int64_t piece_size = p.groups * p.rows * row_size;
  Sum<T>* partial =
      static_cast<Sum<T>*>(scratch(Slot::partial, sizeof(Sum<T>) * units.pieces * piece_size));
  for (int64_t i = 0; i < units.pieces * piece_size; ++i) partial[i] = 0;

  const int64_t jobs = units.pieces * p.groups * ranges * splits;
  parallel_jobs(
      jobs, p.batch * p.outputs * p.groups * p.rows * p.products() / jobs,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::panel, sizeof(T) * chunk * p.taps * pitch));
        T* grad = static_cast<T*>(scratch(Slot::tile, sizeof(T) * p.rows * pitch));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t split = job % splits, range = job / splits % ranges;
          const int64_t group = job / splits / ranges % p.groups;
          const int64_t piece = job / splits / ranges / p.groups;
          const int64_t row = p.rows * range / ranges;
          const int64_t rows = p.rows * (range + 1) / ranges - row;
          const int64_t last_channel = p.channels * (split + 1) / splits;
          Sum<T>* sums = partial + piece * piece_size + (group * p.rows + row) * row_size;
          for (int64_t u = units.count * piece / units.pieces;
               u < units.count * (piece + 1) / units.pieces; ++u) {
            const Unit unit = unit_at(p, units, u);
            const int64_t first = unit.first_sample * p.outputs;
            const int64_t positions = unit.samples * p.outputs;
            const Runs runs(p.outputs, first, first + positions);
            const JoinedInput<E> g{
                reinterpret_cast<const E*>(p.grad_output) + (group * p.rows + row) * p.grad_row,
                p.grad_batch,
                p.grad_row,
                p.grad_position,
                rows,
                p.outputs,
                p.outputs,
                1,
                1,
                &zero,
                grad_sample};
            stage_joined<T>(g, runs, grad, pitch);
            if (p.grad_bias != nullptr && split == 0)
              for (int64_t m = 0; m < rows; ++m) {
                Sum<T> lanes[kLanes<Sum<T>>] = {};
                add_row(grad + m * pitch, positions, lanes);
                sums[m * row_size + p.products()] += sum_of_lanes(lanes);
              }
            for (int64_t c = p.channels * split / splits; c < last_channel; c += chunk) {
              const int64_t channels = smaller(chunk, last_channel - c);
              const JoinedInput<E> x{
                  reinterpret_cast<const E*>(p.x) + (group * p.channels + c) * p.x_channel,
                  p.x_batch,
                  p.x_channel,
                  p.x_position,
                  channels,
                  p.length,
                  p.outputs,
                  p.stride,
                  p.taps,
                  p.tap_offset,
                  sample};
              stage_joined<T>(x, runs, staged, pitch);
              add_dot_products(grad, rows, staged, channels * p.taps, pitch, positions,
                               sums + c * p.taps, row_size);
            }
          }
        }
      });

  for (int64_t row = 0; row < p.groups * p.rows; ++row) {
    Sum<T>* sums = partial + row * row_size;
    for (int64_t piece = 1; piece < units.pieces; ++piece)
      for (int64_t r = 0; r < row_size; ++r) sums[r] += sums[piece * piece_size + r];
    copy_rows([&](int64_t) { return Row<Sum<T>>{sums}; }, 1, 0, p.products(),
              p.grad_weight + row * p.products(), 0);
    if (p.grad_bias != nullptr) from_compute(sums[p.products()], p.grad_bias[row]);
  }
}
