// The product behind forward and grad_input:
//   out[n][m][q] = activation(bias[m] + sum over c, j of weight[m][c][j] * in[n][c][q * in_step + tap_offset[j]])
// Two orders share it. Where there are many outputs per sample, a vector holds positions and each weight
// is a scalar; where samples are short, a vector holds output rows and each input is a scalar.

template <class S>
struct Correlation {
  int64_t batch, groups, rows, channels;  // rows and channels of one group
  int64_t outputs, length, in_step;
  int64_t taps;
  const int64_t* tap_index;   // which element of the weight's tap dimension
  const int64_t* tap_offset;  // which input position, for output 0

  const S* in;
  int64_t in_batch, in_channel, in_position;  // strides
  const S* weight;
  int64_t weight_group, weight_row, weight_channel, weight_tap;  // strides
  const S* bias;
  int64_t bias_stride;
  Activation activation;
  S* out;  // position stride is out_step
  int64_t out_batch, out_row, out_step;

  int64_t products() const { return channels * taps; }
};

// ---- the reduction: which steps the core takes, in which order ----

// The longer of channels and taps becomes the inner, regular one.
struct Reduction {
  int64_t outer, inner;
  int64_t *weight_start, *in_start;
  int64_t weight_step, in_step;
};

template <class S>
struct CorrelationPlan {
  Staging staging;
  Reduction reduction;
};

inline int64_t* plan_scratch(int64_t taps, int64_t channels) {
  return static_cast<int64_t*>(
      scratch(Slot::plan, sizeof(int64_t) * (2 * taps + 2 * larger(taps, channels))));
}

inline void assign_plan_arrays(int64_t* memory, Staging& staging, Reduction& reduction, int64_t taps,
                               int64_t channels) {
  staging.stream_start = memory;
  staging.tap_start = memory + taps;
  reduction.weight_start = memory + 2 * taps;
  reduction.in_start = reduction.weight_start + larger(taps, channels);
}

// Weights are packed [channel][tap][weight_pitch].
inline void plan_reduction(Reduction& r, const Staging& staging, int64_t channels, int64_t taps,
                           int64_t weight_pitch) {
  const int64_t spacing = taps > 1 ? staging.tap_start[1] - staging.tap_start[0] : 0;
  bool regular = taps > channels;
  for (int64_t j = 2; regular && j < taps; ++j)
    regular = staging.tap_start[j] - staging.tap_start[j - 1] == spacing;
  if (regular) {
    r.outer = channels;
    r.inner = taps;
    r.weight_step = weight_pitch;
    r.in_step = spacing;
    for (int64_t c = 0; c < channels; ++c) {
      r.weight_start[c] = c * taps * weight_pitch;
      r.in_start[c] = c * staging.channel_pitch() + staging.tap_start[0];
    }
  } else {
    r.outer = taps;
    r.inner = channels;
    r.weight_step = taps * weight_pitch;
    r.in_step = staging.channel_pitch();
    for (int64_t j = 0; j < taps; ++j) {
      r.weight_start[j] = j * weight_pitch;
      r.in_start[j] = staging.tap_start[j];
    }
  }
}

// ---- packing of weights ----

// out[(c * taps + j) * pitch + i] = weight of row first + i, zero for count <= i < padded.
template <class S>
void pack_rows(const Correlation<S>& p, int64_t group, int64_t first, int64_t count, int64_t padded,
               int64_t pitch, Compute<S>* out) {
  constexpr int W = kLanes<Compute<S>>;
  const S* source = p.weight + group * p.weight_group + first * p.weight_row;
  bool natural = p.weight_tap == 1 && p.weight_channel == p.taps;
  for (int64_t j = 0; natural && j < p.taps; ++j) natural = p.tap_index[j] == j;
  if (natural) {
    for (int64_t i = 0; i < padded; i += W)
      transpose_strip(source + i * p.weight_row, p.weight_row, larger(0, smaller(W, count - i)),
                      p.products(), out + i, pitch, smaller(W, padded - i));
    return;
  }
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t j = 0; j < p.taps; ++j, out += pitch) {
      const S* tap = source + c * p.weight_channel + p.tap_index[j] * p.weight_tap;
      int64_t i = 0;
      for (; i < count; ++i, tap += p.weight_row) out[i] = to_compute(*tap);
      for (; i < padded; ++i) out[i] = 0;
    }
}

// ---- finishing a tile: bias, activation, conversion and the store ----

template <class S>
CONVLM_INLINE Compute<S> bias_of(const Correlation<S>& p, int64_t row) {
  return p.bias ? to_compute(p.bias[row * p.bias_stride]) : 0;
}

// One row of positions, contiguous in the tile.
template <class S>
void finish_row(const Correlation<S>& p, Compute<S>* tile, Compute<S> bias, int64_t count, S* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  int64_t q = 0;
  if (p.out_step == 1) {
    for (; q + W <= count; q += W) store(out + q, activate(load(tile + q) + bias, p.activation));
    if (q < count)
      store_partial(out + q, activate(load(tile + q) + bias, p.activation), static_cast<int>(count - q));
    return;
  }
  for (; q < count; q += W) store(tile + q, activate(load(tile + q) + bias, p.activation));
  for (q = 0; q < count; ++q) from_compute(tile[q], out[q * p.out_step]);
}

// A tile of `positions` x rows, turned on its way out.
template <class S>
void finish_columns(const Correlation<S>& p, Compute<S>* tile, int64_t pitch, const Compute<S>* bias,
                    int64_t positions, S* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  if (bias != nullptr || p.activation != Activation::none)
    for (int64_t q = 0; q < positions; ++q)
      for (int64_t m = 0; m < pitch; m += W) {
        T* v = tile + q * pitch + m;
        store(v, activate(bias ? load(v) + load(bias + m) : load(v), p.activation));
      }
  if (p.out_step == 1) {
    for (int64_t q = 0; q < positions; q += W) {
      const int64_t width = smaller(W, positions - q);
      transpose_strip(tile + q * pitch, pitch, width, p.rows, out + q, p.out_row, width);
    }
    return;
  }
  for (int64_t m = 0; m < p.rows; ++m)
    for (int64_t q = 0; q < positions; ++q)
      from_compute(tile[q * pitch + m], out[m * p.out_row + q * p.out_step]);
}

// ---- vectors of positions ----

template <class S>
void correlate_vectors_of_positions(const Correlation<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kStagedBytes = 256 * 1024;  // a quarter of the L2 cache, weights and outputs need the rest
  constexpr int64_t kMaxTileVectors = 128;
  constexpr int64_t kJobs = 16;  // enough for the threads of a common processor; the bits do not depend on it

  CorrelationPlan<S> plan;
  assign_plan_arrays(plan_scratch(p.taps, p.channels), plan.staging, plan.reduction, p.taps, p.channels);
  const int64_t vectors = divide_up(p.outputs, W);
  int64_t tile_vectors = smaller(vectors, kMaxTileVectors);
  for (;;) {
    plan_for_vectors(plan.staging, tile_vectors * W, p.in_step, p.tap_offset, p.taps, W);
    if (tile_vectors <= kMaxVectors ||
        p.channels * plan.staging.channel_pitch() * static_cast<int64_t>(sizeof(T)) <= kStagedBytes)
      break;
    tile_vectors = divide_up(tile_vectors, 2);
  }
  const int64_t tiles = divide_up(vectors, tile_vectors);
  const int64_t blocks = divide_up(p.rows, kMaxRows);
  const int64_t weight_pitch = divide_up(p.rows, blocks);
  plan_reduction(plan.reduction, plan.staging, p.channels, p.taps, weight_pitch);

  const int64_t block_size = p.products() * weight_pitch;
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * blocks * block_size));
  parallel_jobs(p.groups * blocks, block_size, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t group = job / blocks, block = job % blocks;
      const int64_t first = p.rows * block / blocks, last = p.rows * (block + 1) / blocks;
      pack_rows(p, group, first, last - first, last - first, weight_pitch, weights + job * block_size);
    }
  });

  const int64_t splits = smaller(blocks, divide_up(kJobs, larger(1, p.batch * p.groups * tiles)));
  const int64_t jobs = p.batch * p.groups * tiles * splits;
  parallel_jobs(jobs, divide_up(p.rows, splits) * p.products() * tile_vectors * W,
                [&](int64_t begin, int64_t end) {
    T* staged = static_cast<T*>(
        scratch(Slot::staged, sizeof(T) * p.channels * plan.staging.channel_pitch()));
    T* tile = static_cast<T*>(scratch(Slot::tile, CONVLM_VECTOR_BYTES * kMaxRows * kMaxVectors));
    int64_t staged_job = -1;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t split = job % splits, tile_job = job / splits;
      const int64_t t = tile_job % tiles, group = tile_job / tiles % p.groups, n = tile_job / tiles / p.groups;
      const int64_t first = vectors * t / tiles, last = vectors * (t + 1) / tiles;
      if (staged_job != tile_job)
        stage(plan.staging, p.in + n * p.in_batch + group * p.channels * p.in_channel, p.channels,
              p.in_channel, p.in_position, p.length, first * W * p.in_step, staged);
      staged_job = tile_job;
      for (int64_t block = blocks * split / splits; block < blocks * (split + 1) / splits; ++block) {
        const int64_t row = p.rows * block / blocks;
        const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
        const T* weight = weights + (group * blocks + block) * block_size;
        const int64_t strips = divide_up(last - first, kMaxVectors);
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t v = (last - first) * strip / strips;
          const int width = static_cast<int>((last - first) * (strip + 1) / strips - v);
          Product<T> product{&weight,
                             staged + v * W,
                             plan.reduction.weight_start,
                             plan.reduction.in_start,
                             plan.reduction.outer,
                             plan.reduction.inner,
                             plan.reduction.weight_step,
                             plan.reduction.in_step,
                             tile,
                             width * W,
                             false};
          multiply<T, true>(product, rows, width);
          const int64_t q = (first + v) * W;
          for (int i = 0; i < rows; ++i) {
            const int64_t m = group * p.rows + row + i;
            finish_row(p, tile + i * width * W, bias_of(p, m), smaller(width * W, p.outputs - q),
                       p.out + n * p.out_batch + m * p.out_row + q * p.out_step);
          }
        }
      }
    }
  });
}

// ---- vectors of rows ----

template <class S>
void correlate_vectors_of_rows(const Correlation<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kTilePositions = 48;  // a multiple of kMaxRows for every instruction set

  CorrelationPlan<S> plan;
  assign_plan_arrays(plan_scratch(p.taps, p.channels), plan.staging, plan.reduction, p.taps, p.channels);
  const int64_t blocks = divide_up(p.outputs, kTilePositions);  // of positions, within a sample
  const int64_t block_positions = divide_up(p.outputs, blocks);
  const int64_t samples = larger(1, kTilePositions / p.outputs);  // per job, where a sample is short
  const int64_t batches = divide_up(p.batch, samples);
  plan_for_scalars(plan.staging, block_positions, p.in_step, p.tap_offset, p.taps, W);

  const int64_t vectors = divide_up(p.rows, W);
  const int64_t panels = divide_up(vectors, kMaxVectors);
  const int64_t weight_pitch = divide_up(vectors, panels) * W;
  plan_reduction(plan.reduction, plan.staging, p.channels, p.taps, weight_pitch);

  const int64_t panel_size = p.products() * weight_pitch;
  const int64_t padded = vectors * W;
  T* weights = static_cast<T*>(
      scratch(Slot::weight, sizeof(T) * p.groups * (panels * panel_size + padded)));
  T* biases = weights + p.groups * panels * panel_size;
  parallel_jobs(p.groups * panels, panel_size, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t first = vectors * (job % panels) / panels * W;
      const int64_t last = vectors * (job % panels + 1) / panels * W;
      pack_rows(p, job / panels, first, smaller(last, p.rows) - first, last - first, weight_pitch,
                weights + job * panel_size);
    }
  });
  if (p.bias != nullptr)
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t m = 0; m < padded; ++m)
        biases[group * padded + m] = m < p.rows ? bias_of(p, group * p.rows + m) : 0;

  const int64_t sample_size = p.channels * plan.staging.channel_pitch();
  parallel_jobs(batches * p.groups * blocks, p.rows * p.products() * block_positions * samples,
                [&](int64_t begin, int64_t end) {
    T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * samples * sample_size));
    T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * samples * block_positions * padded));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t block = job % blocks, group = job / blocks % p.groups, n0 = job / blocks / p.groups * samples;
      const int64_t q0 = p.outputs * block / blocks;
      const int64_t positions = p.outputs * (block + 1) / blocks - q0;
      const int64_t count = smaller(samples, p.batch - n0);
      const T* start[kTilePositions];
      for (int64_t i = 0; i < count; ++i) {
        stage(plan.staging, p.in + (n0 + i) * p.in_batch + group * p.channels * p.in_channel, p.channels,
              p.in_channel, p.in_position, p.length, q0 * p.in_step, staged + i * sample_size);
        for (int64_t q = 0; q < positions; ++q)
          start[i * positions + q] = staged + i * sample_size + q * plan.staging.advance;
      }
      const int64_t tile_rows = count * positions;
      const int64_t strips = divide_up(tile_rows, kMaxRows);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = vectors * panel / panels;
        const int width = static_cast<int>(vectors * (panel + 1) / panels - first);
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t row = tile_rows * strip / strips;
          Product<T> product{start + row,
                             weights + (group * panels + panel) * panel_size,
                             plan.reduction.in_start,
                             plan.reduction.weight_start,
                             plan.reduction.outer,
                             plan.reduction.inner,
                             plan.reduction.in_step,
                             plan.reduction.weight_step,
                             tile + row * padded + first * W,
                             padded,
                             false};
          multiply<T, false>(product, static_cast<int>(tile_rows * (strip + 1) / strips - row), width);
        }
      }
      for (int64_t i = 0; i < count; ++i)
        finish_columns(p, tile + i * positions * padded, padded, p.bias ? biases + group * padded : nullptr,
                       positions,
                       p.out + (n0 + i) * p.out_batch + group * p.rows * p.out_row + q0 * p.out_step);
    }
  });
}

// Both orders round the rows or the positions up to whole vectors: take the one that wastes less.
// Vectors of positions need no turning of the output, so they win ties and near-ties.
template <class S>
void correlate(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.batch == 0 || p.outputs <= 0) return;
  const int64_t by_positions = divide_up(p.outputs, W) * p.rows;
  const int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  if (by_positions * 8 <= by_rows * 9)
    correlate_vectors_of_positions(p);
  else
    correlate_vectors_of_rows(p);
}
