// The correlation by fast filtering, with vectors of tiles: components of the weights are the
// scalars. Short samples share a vector.

constexpr int64_t kFastTiles = 96;  // worked on at once, where there are so many

// Components of packed weights: packed[channel][tap][pitch] to out[slot][channel][pitch].
template <class F, class T>
void transform_weight(const FastTiling<F>& t, const T* packed, int64_t channels, int64_t pitch,
                      bool reversed, T* out) {
  for (int64_t group = 0; group < t.groups; ++group) {
    const int64_t taps = t.taps_of(group), first = group * kGroupTaps;
    const int64_t present = smaller(taps, t.taps - first);
    for (int j = 0; j < F::kComponents; ++j) {
      if (!uses_component<F>(taps, j)) continue;
      const float* coefficient = F::kWeight[taps - F::kFewestTaps][j];
      T* component = out + (t.first_slot[j] + group) * channels * pitch;
      for (int64_t c = 0; c < channels; ++c) {
        Vector<T> sum{};
        for (int64_t k = 0; k < present; ++k) {
          const int64_t tap = reversed ? t.taps - 1 - (first + k) : first + k;
          if (coefficient[k] != 0)
            sum += coefficient[k] * load(packed + (c * t.taps + tap) * pitch);
        }
        store_partial(component + c * pitch, sum, static_cast<int>(pitch));
      }
    }
  }
}

// sums[component][tile] to out[output][tile], for `vectors` vectors of tiles.
template <class F, class T>
CONVLM_INLINE void transform_output(const T* sums, int64_t component_pitch, int vectors, T bias,
                                    T* out, int64_t output_pitch) {
  for (int64_t i = 0; i < vectors * kLanes<T>; i += kLanes<T>) {
    Vector<T> component[F::kComponents];
#pragma GCC unroll 8
    for (int j = 0; j < F::kComponents; ++j) component[j] = load(sums + j * component_pitch + i);
#pragma GCC unroll 8
    for (int a = 0; a < F::kOutputs; ++a) {
      Vector<T> sum = broadcast(bias);
#pragma GCC unroll 8
      for (int j = 0; j < F::kComponents; ++j)
        if (F::kOutput[j][a] != 0) sum += F::kOutput[j][a] * component[j];
      store(out + a * output_pitch + i, sum);
    }
  }
}

// Writes one row of a stretch of one sample, y[output][tile] with `pitch` between outputs. Adds NaN
// to `poison` where a value is not finite.
template <class S>
struct OutputWriter {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>;
  Activation activation;
  const T* y;
  int64_t pitch, tiles, positions;  // positions: outputs that may be written, from `out` on
  T* buffer;                        // of one row
  S* out;
  Vector<T> poison{};

  CONVLM_INLINE Vector<T> take(const T* p, int64_t count) {
    const Vector<T> v = count >= W ? load(p) : load_partial(p, static_cast<int>(count));
    poison += v * 0;
    return activate(v, activation);
  }

  void run(const T* from, int64_t count, int64_t position) {
    count = smaller(count, positions - position);
    for (int64_t i = 0; i < count; i += W) {
      const Vector<T> v = take(from + i, count - i);
      if (count - i >= W)
        store(out + position + i, v);
      else
        store_partial(out + position + i, v, static_cast<int>(count - i));
    }
  }

  template <int PHASES, int DILATION>
  void merge() {
    for (int64_t i = 0; i < tiles; i += W) {
      Vector<T> v[PHASES];
#pragma GCC unroll 4
      for (int a = 0; a < PHASES; ++a) v[a] = take(y + a * pitch + i, tiles - i);
      merge_phases<PHASES, DILATION, T>(v);
#pragma GCC unroll 4
      for (int a = 0; a < PHASES; ++a) {
        const int64_t position = i * PHASES + a * W;
        if (position + W <= positions)
          store(out + position, v[a]);
        else if (position < positions)
          store_partial(out + position, v[a], static_cast<int>(positions - position));
      }
    }
  }

  template <int PHASES>
  void write(const Stretch& s) {
    if (s.runs > 1) {
      for (int a = 0; a < PHASES; ++a) run(y + a * pitch, tiles, a * s.run_output);
      return;
    }
    if (s.period == 1) return merge<PHASES, 1>();
    if constexpr (W > 2)
      if (s.period == 2) return merge<PHASES, 2>();
    if constexpr (W > 4)
      if (s.period == 4) return merge<PHASES, 4>();
    if constexpr (W > 8)
      if (s.period == 8) return merge<PHASES, 8>();
    // Every run in whole vectors; what is too much is overwritten by the next.
    for (int64_t tile = 0; tile < tiles; tile += s.period)
      for (int a = 0; a < PHASES; ++a)
        for (int64_t i = 0; i < s.period; i += W)
          store(buffer + tile * PHASES + a * s.period + i, load(y + a * pitch + tile + i));
    run(buffer, positions, 0);
  }
};

template <class T>
CONVLM_INLINE bool any_nan(Vector<T> v) {
  bool found = false;
  for (int i = 0; i < kLanes<T>; ++i) found |= v[i] != v[i];
  return found;
}

template <class S>
void correlate_directly(const Correlation<S>& p);

template <class F, class S>
void correlate_fast(const Correlation<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const bool reversed = p.taps > 1 && p.tap_offset[1] < p.tap_offset[0];
  const int64_t first_tap = p.tap_offset[reversed ? p.taps - 1 : 0];
  const int64_t spacing = p.taps > 1 ? p.tap_offset[1] - p.tap_offset[0] : 1;
  const FastTiling<F> tiling(p.outputs, p.taps, larger(spacing, -spacing));
  const Stretches<F> stretches(tiling, kFastTiles, W);
  const int64_t samples = larger(1, kFastTiles / tiling.tiles);  // of one job
  const int64_t max_lanes = divide_up(samples * stretches.max_tiles, W) * W;
  const InputTransform<F> input = plan_input(tiling, stretches, W);
  const int64_t lane_pitch = staged_pitch(max_lanes + W, W);

  const int64_t blocks = divide_up(p.rows, kMaxRows);
  const int64_t weight_pitch = divide_up(p.rows, blocks);
  const int64_t block_size = tiling.slots * p.channels * weight_pitch;
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * blocks * block_size));
  parallel_jobs(p.groups * blocks, block_size, [&](int64_t begin, int64_t end) {
    T* packed =
        static_cast<T*>(scratch(Slot::staged, sizeof(T) * (p.products() * weight_pitch + W)));
    for (int64_t job = begin; job < end; ++job) {
      const int64_t block = job % blocks;
      const int64_t first = p.rows * block / blocks, last = p.rows * (block + 1) / blocks;
      pack_rows(p, {0, p.taps}, job / blocks, first, last - first, last - first, weight_pitch,
                packed);
      transform_weight(tiling, packed, p.channels, weight_pitch, reversed,
                       weights + job * block_size);
    }
  });

  // Where the reduction of each component starts, in the input and in the weights.
  int64_t* in_start =
      static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * tiling.slots));
  int64_t* weight_start = in_start + tiling.slots;
  for (int64_t slot = 0; slot < tiling.slots; ++slot) {
    in_start[slot] = slot * p.channels * lane_pitch;
    weight_start[slot] = slot * p.channels * weight_pitch;
  }
  bool* finite = static_cast<bool*>(scratch(Slot::partial, p.batch));
  for (int64_t n = 0; n < p.batch; ++n) finite[n] = true;

  const int64_t tile_jobs = divide_up(p.batch, samples) * p.groups * stretches.count;
  const int64_t splits = smaller(blocks, divide_up(4 * threads(), tile_jobs));
  parallel_jobs(
      tile_jobs * splits, max_lanes * tiling.slots * p.channels * divide_up(p.rows, splits),
      [&](int64_t begin, int64_t end) {
        const int64_t stream_elements =
            divide_up(input.elements(tiling, stretches.whole_blocks), W) * W;
        T* streams = static_cast<T*>(scratch(
            Slot::staged, sizeof(T) * (stream_elements + tiling.slots * p.channels * lane_pitch)));
        T* staged = streams + stream_elements;
        constexpr int64_t kStrip = kMaxVectors * W;
        T* sums = static_cast<T*>(scratch(
            Slot::tile, sizeof(T) * kMaxRows * (F::kComponents * kStrip + F::kOutputs * max_lanes) +
                            sizeof(T) * (F::kOutputs * (max_lanes + 2 * W) + W)));
        T* outputs = sums + kMaxRows * F::kComponents * kStrip;  // [row][output][lane]
        T* row_buffer = outputs + kMaxRows * F::kOutputs * max_lanes;
        int64_t staged_job = -1;
        for (int64_t index = begin; index < end; ++index) {
          const int64_t split = index % splits, job = index / splits;
          const Stretch s = stretches.at(tiling, job % stretches.count);
          const int64_t group = job / stretches.count % p.groups;
          const int64_t n0 = job / stretches.count / p.groups * samples;
          const int64_t count = smaller(samples, p.batch - n0);
          // A vector too much at the end of one sample is overwritten by the next.
          for (int64_t i = 0; staged_job != job && i < count; ++i)
            for (int64_t c = 0; c < p.channels; ++c)
              transform_input(
                  tiling, input, s, stretches.whole_blocks,
                  p.in + (n0 + i) * p.in_batch + (group * p.channels + c) * p.in_channel,
                  p.in_position, p.length, first_tap, streams,
                  staged + c * lane_pitch + i * s.tiles, p.channels * lane_pitch);
          staged_job = job;
          const int64_t vectors = divide_up(count * s.tiles, W);
          const int64_t strips = divide_up(vectors, kMaxVectors);
          for (int64_t block = blocks * split / splits; block < blocks * (split + 1) / splits;
               ++block) {
            const int64_t row = p.rows * block / blocks;
            const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
            const T* weight = weights + (group * blocks + block) * block_size;
            for (int64_t strip = 0; strip < strips; ++strip) {
              const int64_t v = vectors * strip / strips;
              const int width = static_cast<int>(vectors * (strip + 1) / strips - v);
              for (int j = 0; j < F::kComponents; ++j)
                multiply<T, true>(
                    Product<T>{&weight, staged + v * W, weight_start + tiling.first_slot[j],
                               in_start + tiling.first_slot[j], tiling.groups_of(j), p.channels,
                               weight_pitch, lane_pitch, sums + j * kMaxRows * kStrip, kStrip,
                               false},
                    rows, width);
              for (int i = 0; i < rows; ++i)
                transform_output<F>(sums + i * kStrip, kMaxRows * kStrip, width,
                                    bias_of(p, group * p.rows + row + i),
                                    outputs + i * F::kOutputs * max_lanes + v * W, max_lanes);
            }
            for (int64_t n = 0; n < count; ++n) {
              OutputWriter<S> writer{p.activation, nullptr,    max_lanes, s.tiles,
                                     s.positions,  row_buffer, nullptr};
              for (int i = 0; i < rows; ++i) {
                writer.y = outputs + i * F::kOutputs * max_lanes + n * s.tiles;
                writer.out = p.out + (n0 + n) * p.out_batch + group * p.out_group +
                             (row + i) * p.out_row + s.first_output;
                writer.template write<F::kOutputs>(s);
              }
              if (any_nan<T>(writer.poison))
                __atomic_store_n(finite + n0 + n, false, __ATOMIC_RELAXED);
            }
          }
        }
      });

  for (int64_t n = 0; n < p.batch; ++n) {
    if (finite[n]) continue;
    Correlation<S> sample = p;
    sample.batch = 1;
    sample.in += n * p.in_batch;
    sample.out += n * p.out_batch;
    correlate_directly(sample);
  }
}
