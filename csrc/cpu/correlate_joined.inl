// The correlation with vectors of positions of joined samples.

// Some rows of a tile, to which the core has added the bias where it stores elements of the tile's
// type.
template <class T, class S>
void finish_joined(const Correlation<S>& p, Sum<T>* tile, int64_t pitch, int rows,
                   const Sum<T>* bias, int64_t count, const Runs& runs, S* out) {
  const bool biased = if_same<Stored<T>>(tile) != nullptr;
  if (!biased || p.activation != Activation::none)
    for (int i = 0; i < rows; ++i)
      for (Sum<T>* v = tile + i * pitch; v < tile + i * pitch + count; v += kLanes<T>)
        store(v, activate(biased ? load(v) : load(v) + bias[i], p.activation));
  for (const Run& run : runs) {
    S* to = out + run.sample * p.out_batch + run.first * p.out_step;
    if (p.out_step == 1) {
      copy_rows([&](int64_t i) { return Row<Sum<T>>{tile + i * pitch}; }, rows, run.lane, run.count,
                to, p.out_row);
      continue;
    }
    for (int i = 0; i < rows; ++i)
      for (int64_t q = 0; q < run.count; ++q)
        from_compute(tile[i * pitch + run.lane + q], to[i * p.out_row + q * p.out_step]);
  }
}

template <class T, class S>
void correlate_joined(const Correlation<S>& p) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kStagedBytes = 256 * 1024;  // a quarter of the L2 cache

  const int64_t channels = divide_up(p.channels, kDepth<T>), starts = larger(p.taps, channels);
  int64_t* memory = static_cast<int64_t*>(
      scratch(Slot::plan, sizeof(int64_t) * (2 * p.taps + 2 * starts + 2 * p.taps)));
  Staging joined, sample;
  Reduction reduction;
  assign_plan_arrays(memory, joined, reduction, p.taps, channels);
  sample.stream_start = memory + 2 * (p.taps + starts);
  sample.tap_start = sample.stream_start + p.taps;
  plan_for_vectors(sample, p.outputs, p.in_step, p.tap_offset, p.taps, W);

  const int64_t outputs = p.batch * p.outputs;
  const int64_t vectors = divide_up(outputs, W), strips = divide_up(vectors, kMaxVectors);
  const int64_t rounds = divide_up(strips, kJoinedVectors / kMaxVectors * threads());
  const int64_t tiles = smaller(strips, rounds * threads());
  const int64_t blocks = divide_up(p.rows, kMaxRows);
  const int64_t ranges = smaller(blocks, divide_up(threads(), tiles * p.groups));

  plan_separate(joined, divide_up(vectors, tiles) * W, p.in_step, p.tap_offset, p.taps, W);
  const int64_t pitch = joined.pitch;
  const int64_t weight_pitch = staged_pitch(p.rows, W);
  plan_reduction(reduction, joined, channels, p.taps, weight_pitch);
  const Steps steps = steps_of(reduction, taps_inside(p, 0, p.outputs));

  const int64_t weight_size = channels * p.taps * weight_pitch;
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * weight_size));
  const int64_t weight_vectors = divide_up(p.rows, W);
  const int64_t parts = smaller(weight_vectors, divide_up(threads(), p.groups));
  parallel_jobs(p.groups * parts, weight_size / parts, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t group = job / parts, part = job % parts;
      const int64_t first = weight_vectors * part / parts * W;
      const int64_t last = weight_vectors * (part + 1) / parts * W;
      pack_rows(p, {0, p.taps}, group, first, smaller(last, p.rows) - first, last - first,
                weight_pitch, weights + group * weight_size + first);
    }
  });

  // Staged rows of the products of one part.
  const int64_t most_steps = larger(1, kStagedBytes / (static_cast<int64_t>(sizeof(T)) * pitch));
  int64_t part_steps = 0, part_count = 0;
  for_each_part(reduction, kForwardChain<T>, most_steps, [&](const Steps& part) {
    part_steps = larger(
        part_steps, (part.last_outer - part.first_outer) * (part.last_inner - part.first_inner));
    ++part_count;
  });
  const int64_t tile_rows = part_count == 1 ? kMaxRows : divide_up(blocks, ranges) * kMaxRows;
  parallel_jobs(
      tiles * p.groups * ranges, p.rows * p.products() * outputs / (tiles * ranges),
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::panel, sizeof(T) * part_steps * pitch));
        Sum<T>* tile =
            static_cast<Sum<T>*>(scratch(Slot::tile, sizeof(Sum<T>) * tile_rows * pitch));
        int64_t* in_start =
            static_cast<int64_t*>(scratch(Slot::starts, sizeof(int64_t) * reduction.outer));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t range = job % ranges, t = job / ranges % tiles;
          const int64_t group = job / ranges / tiles;
          const int64_t first = vectors * t / tiles * W;
          const int64_t last = smaller(vectors * (t + 1) / tiles * W, outputs);
          const Runs runs(p.outputs, first, last);
          for_each_part(reduction, kForwardChain<T>, most_steps, [&](const Steps& part) {
            const bool taps_inner = reduction.taps_are_inner;
            const bool is_first = part.first_outer == 0 && part.first_inner == 0;
            const bool is_last =
                part.last_outer == reduction.outer && part.last_inner == reduction.inner;
            const TapRange taps{taps_inner ? part.first_inner : part.first_outer,
                                taps_inner ? part.last_inner : part.last_outer};
            const int64_t first_channel =
                kDepth<T> * (taps_inner ? part.first_outer : part.first_inner);
            const int64_t last_channel =
                smaller(p.channels, kDepth<T> * (taps_inner ? part.last_outer : part.last_inner));
            Staging part_sample = sample;
            part_sample.tap_start += taps.first;
            const JoinedInput<S> in{p.in + (group * p.channels + first_channel) * p.in_channel,
                                    p.in_batch,
                                    p.in_channel,
                                    p.in_position,
                                    last_channel - first_channel,
                                    p.length,
                                    p.outputs,
                                    p.in_step,
                                    taps.count(),
                                    p.tap_offset + taps.first,
                                    part_sample};
            stage_joined<T>(in, runs, staged, pitch);
            const int64_t in_step = taps_inner ? pitch : taps.count() * pitch;
            for (int64_t o = part.first_outer; o < part.last_outer; ++o)
              in_start[o] = (o - part.first_outer) * (taps_inner ? taps.count() : 1) * pitch -
                            part.first_inner * in_step;
            for (int64_t block = blocks * range / ranges; block < blocks * (range + 1) / ranges;
                 ++block) {
              const int64_t row = p.rows * block / blocks;
              const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
              const T* weight = weights + group * weight_size + row;
              Sum<T>* sums =
                  tile +
                  (part_count == 1 ? 0 : row - p.rows * (blocks * range / ranges) / blocks) * pitch;
              Sum<T> bias[kMaxRows];
              for (int i = 0; i < rows; ++i) bias[i] = bias_of(p, group * p.rows + row + i);
              const int64_t tile_vectors = divide_up(last - first, W);
              const int64_t tile_strips = divide_up(tile_vectors, kMaxVectors);
              for (int64_t strip = 0; strip < tile_strips; ++strip) {
                const int64_t v = tile_vectors * strip / tile_strips, lane = v * W;
                const int width = static_cast<int>(tile_vectors * (strip + 1) / tile_strips - v);
                Product<T> product{&weight,
                                   staged + lane,
                                   reduction.weight_start,
                                   in_start,
                                   reduction.outer,
                                   reduction.inner,
                                   reduction.weight_step,
                                   in_step,
                                   sums + lane,
                                   pitch,
                                   !is_first,
                                   is_last ? if_same<Stored<T>>(sums + lane) : nullptr,
                                   pitch,
                                   bias};
                multiply<T, true>(product, rows, width, overlap(steps, part), kForwardChain<T>);
              }
              if (is_last)
                finish_joined<T>(p, sums, pitch, rows, bias, last - first, runs,
                                 p.out + group * p.out_group + row * p.out_row);
            }
          });
        }
      });
}
