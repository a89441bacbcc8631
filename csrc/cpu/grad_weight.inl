// grad_weight[o][c][k] = sum over n, t of grad_output[n][o][t] * x[n][c][input_position(t, k)], and
// grad_bias[o] = sum over n, t of grad_output[n][o][t].
// The sum over samples and positions is cut into units, and the units into pieces. How many pieces is a
// matter of geometry alone, and their sums are added in order: any number of threads gives the same bits.

template <class S>
struct WeightGradient {
  int64_t batch, groups, rows, channels;  // rows: output channels of one group
  int64_t outputs, length, stride, taps;
  const int64_t* tap_offset;
  const S* grad_output;
  int64_t grad_batch, grad_row, grad_position;  // strides
  const S* x;
  int64_t x_batch, x_channel, x_position;  // strides
  S* grad_weight;
  S* grad_bias;  // null where it is not wanted

  int64_t products() const { return channels * taps; }
};

// A unit is one stretch of positions of one sample, or several whole samples where they are short.
struct Units {
  int64_t blocks, positions, samples, count, pieces;
};

// `length` bounds the products that one unit adds up; `jobs` says how many there are besides the pieces.
inline Units plan_units(int64_t batch, int64_t outputs, int64_t length, int64_t jobs) {
  constexpr int64_t kJobs = 32;
  Units u;
  u.blocks = divide_up(outputs, length);
  u.positions = divide_up(outputs, u.blocks);
  u.samples = smaller(batch, larger(1, length / outputs));
  u.count = divide_up(batch, u.samples) * u.blocks;
  u.pieces = smaller(u.count, divide_up(kJobs, jobs));
  return u;
}

template <class S>
struct Unit {
  int64_t first_sample, samples, first_position, positions;
};

template <class S>
CONVLM_INLINE Unit<S> unit_at(const WeightGradient<S>& p, const Units& u, int64_t index) {
  const int64_t block = index % u.blocks, sample = index / u.blocks * u.samples;
  const int64_t first = p.outputs * block / u.blocks;
  return {sample, smaller(u.samples, p.batch - sample), first, p.outputs * (block + 1) / u.blocks - first};
}

// ---- vectors of output channels ----

// panel[t][i] = grad_output of row first + i, zero for count <= i < padded.
template <class S>
void pack_grad_output(const S* source, int64_t row_stride, int64_t position_stride, int64_t count,
                      int64_t padded, int64_t positions, Compute<S>* panel, int64_t pitch) {
  constexpr int W = kLanes<Compute<S>>;
  if (position_stride == 1) {
    for (int64_t i = 0; i < padded; i += W)
      transpose_strip(source + i * row_stride, row_stride, larger(0, smaller(W, count - i)), positions,
                      panel + i, pitch, W);
    return;
  }
  for (int64_t t = 0; t < positions; ++t)
    for (int64_t i = 0; i < padded; ++i)
      panel[t * pitch + i] = i < count ? to_compute(source[i * row_stride + t * position_stride]) : 0;
}

template <class T>
void add_rows(const T* panel, int64_t rows, int64_t pitch, int64_t width, T* sum) {
  for (int64_t i = 0; i < width; i += kLanes<T>) {
    Vector<T> total{};
    for (int64_t t = 0; t < rows; ++t) total += load(panel + t * pitch + i);
    store(sum + i, load(sum + i) + total);
  }
}

template <class S>
void grad_weight_vectors_of_rows(const WeightGradient<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kProductsPerJob = 128;  // fewer would not repay packing grad_output

  const int64_t vectors = divide_up(p.rows, W);
  const int64_t panels = divide_up(vectors, kMaxVectors);
  const int64_t pitch = divide_up(vectors, panels) * W;
  const int64_t splits = divide_up(p.products(), kProductsPerJob);
  const Units units = plan_units(p.batch, p.outputs, kChain, p.groups * panels * splits);

  int64_t* memory = static_cast<int64_t*>(
      scratch(Slot::plan, sizeof(int64_t) * (2 * p.taps + 2 * units.samples)));
  Staging staging;
  staging.stream_start = memory;
  staging.tap_start = memory + p.taps;
  plan_for_scalars(staging, units.positions, p.stride, p.tap_offset, p.taps, W);

  // partial[piece][group][panel][product or, last, the bias][lane]
  const int64_t panel_size = (p.products() + 1) * pitch;
  const int64_t piece_size = p.groups * panels * panel_size;
  T* partial = static_cast<T*>(scratch(Slot::partial, sizeof(T) * units.pieces * piece_size));

  const int64_t jobs = units.pieces * p.groups * panels * splits;
  parallel_jobs(jobs, p.batch * p.outputs * p.products() * pitch / (units.pieces * splits),
                [&](int64_t begin, int64_t end) {
    const int64_t split_channels = divide_up(divide_up(p.products(), splits), p.taps) + 1;
    const int64_t sample_size = split_channels * staging.channel_pitch();
    T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * units.samples * sample_size));
    T* panel = static_cast<T*>(scratch(Slot::panel, sizeof(T) * units.samples * units.positions * pitch));
    int64_t* starts = static_cast<int64_t*>(scratch(Slot::tile, sizeof(int64_t) * 2 * units.samples));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t split = job % splits, index = job / splits % panels;
      const int64_t group = job / splits / panels % p.groups, piece = job / splits / panels / p.groups;
      const int64_t first_vector = vectors * index / panels;
      const int64_t width = vectors * (index + 1) / panels - first_vector;
      const int64_t row = group * p.rows + first_vector * W;
      const int64_t rows = smaller(width * W, p.rows - first_vector * W);
      const int64_t first_product = p.products() * split / splits;
      const int64_t products = p.products() * (split + 1) / splits - first_product;
      const int64_t first_channel = first_product / p.taps;
      const int64_t channels = divide_up(first_product + products, p.taps) - first_channel;
      T* sums = partial + piece * piece_size + (group * panels + index) * panel_size;
      T* bias = sums + p.products() * pitch;
      const bool wants_bias = p.grad_bias != nullptr && split == 0;
      if (wants_bias)
        for (int64_t i = 0; i < pitch; ++i) bias[i] = 0;

      const int64_t first_unit = units.count * piece / units.pieces;
      for (int64_t u = first_unit; u < units.count * (piece + 1) / units.pieces; ++u) {
        const Unit<S> unit = unit_at(p, units, u);
        for (int64_t i = 0; i < unit.samples; ++i) {
          const int64_t n = unit.first_sample + i;
          stage(staging, p.x + n * p.x_batch + (group * p.channels + first_channel) * p.x_channel, channels,
                p.x_channel, p.x_position, p.length, unit.first_position * p.stride,
                staged + i * sample_size);
          pack_grad_output(
              p.grad_output + n * p.grad_batch + row * p.grad_row + unit.first_position * p.grad_position,
              p.grad_row, p.grad_position, rows, width * W, unit.positions,
              panel + i * unit.positions * pitch, pitch);
          starts[i] = i * sample_size;
          starts[units.samples + i] = i * unit.positions * pitch;
        }
        if (wants_bias) add_rows(panel, unit.samples * unit.positions, pitch, width * W, bias);
        const int64_t strips = divide_up(products, kMaxRows);
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t r0 = products * strip / strips, r1 = products * (strip + 1) / strips;
          const T* start[kMaxRows];
          for (int64_t r = r0; r < r1; ++r) {
            const int64_t c = (first_product + r) / p.taps, k = (first_product + r) % p.taps;
            start[r - r0] = staged + (c - first_channel) * staging.channel_pitch() + staging.tap_start[k];
          }
          Product<T> product{start,
                             panel,
                             starts,
                             starts + units.samples,
                             unit.samples,
                             unit.positions,
                             staging.advance,
                             pitch,
                             sums + (first_product + r0) * pitch,
                             pitch,
                             u != first_unit};
          multiply<T, false>(product, static_cast<int>(r1 - r0), static_cast<int>(width));
        }
      }
    }
  });

  parallel_jobs(p.groups * panels, panel_size * units.pieces, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      T* sums = partial + job * panel_size;
      const int64_t used = panel_size - (p.grad_bias == nullptr ? pitch : 0);
      for (int64_t piece = 1; piece < units.pieces; ++piece)
        for (int64_t i = 0; i < used; i += W)
          store(sums + i, load(sums + i) + load(sums + piece * piece_size + i));
      const int64_t first = vectors * (job % panels) / panels * W;
      const int64_t rows = smaller(vectors * (job % panels + 1) / panels * W, p.rows) - first;
      const int64_t row = job / panels * p.rows + first;
      for (int64_t r = 0; r < p.products(); r += W) {
        const int64_t count = smaller(W, p.products() - r);
        transpose_strip(sums + r * pitch, pitch, count, rows, p.grad_weight + row * p.products() + r,
                        p.products(), count);
      }
      if (p.grad_bias != nullptr)
        for (int64_t i = 0; i < rows; ++i) from_compute(sums[p.products() * pitch + i], p.grad_bias[row + i]);
    }
  });
}

// ---- vectors of positions ----

template <class S>
void grad_weight_vectors_of_positions(const WeightGradient<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const Units units = plan_units(p.batch, p.outputs, kChain * W, p.groups);
  int64_t* memory = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  Staging staging;
  staging.stream_start = memory;
  staging.tap_start = memory + p.taps;
  plan_for_vectors(staging, divide_up(units.positions, W) * W, p.stride, p.tap_offset, p.taps, W);

  // partial[piece][group][row][product or, last, the bias]
  const int64_t row_size = p.products() + 1;
  const int64_t piece_size = p.groups * p.rows * row_size;
  T* partial = static_cast<T*>(scratch(Slot::partial, sizeof(T) * units.pieces * piece_size));
  for (int64_t i = 0; i < units.pieces * piece_size; ++i) partial[i] = 0;

  parallel_jobs(units.pieces * p.groups, p.batch * p.outputs * p.products() * p.rows / units.pieces,
                [&](int64_t begin, int64_t end) {
    const int64_t grad_pitch = staged_pitch(units.positions, W);
    T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * p.channels * staging.channel_pitch()));
    T* grad = static_cast<T*>(scratch(Slot::panel, sizeof(T) * p.rows * grad_pitch));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t group = job % p.groups, piece = job / p.groups;
      T* sums = partial + piece * piece_size + group * p.rows * row_size;
      for (int64_t u = units.count * piece / units.pieces; u < units.count * (piece + 1) / units.pieces; ++u) {
        const Unit<S> unit = unit_at(p, units, u);
        for (int64_t n = unit.first_sample; n < unit.first_sample + unit.samples; ++n) {
          stage(staging, p.x + n * p.x_batch + group * p.channels * p.x_channel, p.channels, p.x_channel,
                p.x_position, p.length, unit.first_position * p.stride, staged);
          for (int64_t m = 0; m < p.rows; ++m)
            stage_row(p.grad_output + n * p.grad_batch + (group * p.rows + m) * p.grad_row, p.grad_position,
                      p.outputs, unit.first_position, 1, grad + m * grad_pitch, unit.positions);
          for (int64_t m = 0; m < p.rows; m += kDotRows) {
            const int rows = static_cast<int>(smaller(kDotRows, p.rows - m));
            const T* a[kDotRows];
            for (int i = 0; i < rows; ++i) a[i] = grad + (m + i) * grad_pitch;
            for (int64_t r = 0; r < p.products(); r += kDotColumns) {
              const int columns = static_cast<int>(smaller(kDotColumns, p.products() - r));
              const T* b[kDotColumns];
              for (int j = 0; j < columns; ++j)
                b[j] = staged + (r + j) / p.taps * staging.channel_pitch() + staging.tap_start[(r + j) % p.taps];
              select_dot_products(
                  DotProducts<T>{a, b, unit.positions, sums + m * row_size + r, row_size}, rows, columns,
                  std::make_integer_sequence<int, kDotRows * kDotColumns>{});
            }
          }
          if (p.grad_bias != nullptr)
            for (int64_t m = 0; m < p.rows; ++m) {
              Vector<T> total{};
              for (int64_t t = 0; t < unit.positions; t += W)
                total += load_partial(grad + m * grad_pitch + t, static_cast<int>(smaller(W, unit.positions - t)));
              for (int l = 0; l < W; ++l) sums[m * row_size + p.products()] += total[l];
            }
        }
      }
    }
  });

  for (int64_t row = 0; row < p.groups * p.rows; ++row)
    for (int64_t r = 0; r < row_size; ++r) {
      T total = 0;
      for (int64_t piece = 0; piece < units.pieces; ++piece) total += partial[piece * piece_size + row * row_size + r];
      if (r < p.products())
        from_compute(total, p.grad_weight[row * p.products() + r]);
      else if (p.grad_bias != nullptr)
        from_compute(total, p.grad_bias[row]);
    }
}

template <class S>
void weight_gradient(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.batch == 0) {
    for (int64_t i = 0; i < p.groups * p.rows * p.products(); ++i) from_compute(Compute<S>(0), p.grad_weight[i]);
    if (p.grad_bias != nullptr)
      for (int64_t i = 0; i < p.groups * p.rows; ++i) from_compute(Compute<S>(0), p.grad_bias[i]);
    return;
  }
  // A vector of positions loads twice for what a scalar loads once, so it must save half of the lanes.
  if (divide_up(p.outputs, W) * p.rows * 2 < divide_up(p.rows, W) * p.outputs)
    grad_weight_vectors_of_positions(p);
  else
    grad_weight_vectors_of_rows(p);
}
