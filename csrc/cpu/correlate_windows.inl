// The correlation as dot products of windows and weights: lanes are added up at the end.

template <class S>
Windows<S> windows_of(const Correlation<S>& p, int64_t group) {
  return {p.in + group * p.channels * p.in_channel,
          p.in_batch,
          p.in_channel,
          p.in_position,
          p.channels,
          p.length,
          p.outputs,
          p.in_step,
          p.taps,
          p.tap_offset};
}

// tile[i * tile_pitch + r] = the product of windows[i] and row r of the weight, for a vector of
// rows, of which `rows` exist.
template <class S>
void multiply_windows(const Compute<S>* const* windows, int64_t count, const S* weight,
                      int64_t weight_row, int64_t rows, int64_t products, Compute<S>* tile,
                      int64_t tile_pitch) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr auto shapes = std::make_integer_sequence<int, kDotRows * kDotColumns>{};
  for (int64_t i = 0; i < count; i += kDotRows) {
    const int height = static_cast<int>(smaller(kDotRows, count - i));
    Vector<T> lanes[kDotRows * W];
    for (int j = 0; j < height * W; ++j) lanes[j] = Vector<T>{};
    for (int64_t first = 0; first < products; first += kChain * W) {
      const int64_t length = smaller(kChain * W, products - first);
      const T* a[kDotRows];
      for (int j = 0; j < height; ++j) a[j] = windows[i + j] + first;
      for (int64_t r = 0; r < rows; r += kDotColumns) {
        const int columns = static_cast<int>(smaller(kDotColumns, rows - r));
        const S* b[kDotColumns];
        for (int j = 0; j < columns; ++j) b[j] = weight + (r + j) * weight_row + first;
        select_dot_products<false>(
            DotProducts<T, S>{a, b, length, reinterpret_cast<T*>(lanes + r), W}, height, columns,
            shapes);
      }
    }
    for (int j = 0; j < height; ++j)
      store(tile + (i + j) * tile_pitch, combine_lanes<T, Total>(lanes + j * W));
  }
}

template <class S>
void correlate_windows(const Correlation<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kMostPositions = 48;
  constexpr int64_t kWindows = 256 * 1024 / static_cast<int64_t>(sizeof(T));  // in the L2 cache

  const int64_t pitch = staged_pitch(p.products(), W);
  const int64_t positions = p.batch * p.outputs;
  const int64_t tiles =
      divide_up(positions, larger(kDotRows, smaller(kMostPositions, kWindows / pitch)));
  const int64_t tile_positions = divide_up(positions, tiles);
  const int64_t blocks = divide_up(p.rows, W), padded = blocks * W;
  const int64_t ranges = smaller(blocks, divide_up(threads(), tiles * p.groups));
  const bool in_place = windows_of(p, 0).in_place();
  T* biases = static_cast<T*>(
      scratch(Slot::partial, p.bias == nullptr ? 0 : sizeof(T) * p.groups * padded));
  if (p.bias != nullptr)
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t m = 0; m < padded; ++m)
        biases[group * padded + m] = m < p.rows ? bias_of(p, group * p.rows + m) : 0;

  parallel_jobs(
      tiles * p.groups * ranges, p.rows * p.products() * tile_positions / ranges,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * tile_positions * pitch));
        T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * tile_positions * padded));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t range = job % ranges, group = job / ranges % p.groups;
          const int64_t index = job / ranges / p.groups;
          const int64_t first = positions * index / tiles;
          const int64_t count = positions * (index + 1) / tiles - first;
          const Windows<S> in = windows_of(p, group);
          const T* windows[kMostPositions];
          for (int64_t i = 0; i < count; ++i)
            windows[i] =
                in_place ? if_same<const T>(in.start(first + i)) + p.tap_offset[0] * p.in_position
                         : staged + i * pitch;
          if (!in_place) in.stage(first, count, staged, pitch);
          const int64_t first_block = blocks * range / ranges;
          const int64_t last_block = blocks * (range + 1) / ranges;
          for (int64_t m = first_block * W; m < last_block * W; m += W)
            multiply_windows(windows, count, p.weight + group * p.weight_group + m * p.weight_row,
                             p.weight_row, smaller(W, p.rows - m), p.products(), tile + m, padded);
          const int64_t m = first_block * W, rows = smaller(last_block * W, p.rows) - m;
          for (const Run& run : Runs(p.outputs, first, first + count))
            finish_columns(p, tile + run.lane * padded + m, padded,
                           p.bias ? biases + group * padded + m : nullptr, run.count, rows,
                           p.out + run.sample * p.out_batch + group * p.out_group + m * p.out_row +
                               run.first * p.out_step);
        }
      });
}
