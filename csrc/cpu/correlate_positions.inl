// The correlation with vectors of positions: weights are packed and are the scalars.

template <class T, class S>
void correlate_vectors_of_positions(const Correlation<S>& p) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kStagedBytes =
      256 * 1024;  // a quarter of the L2 cache, weights and outputs need the rest
  constexpr int64_t kMaxTileVectors = 128;
  constexpr int64_t kJobs =
      16;  // enough for the threads of a common processor; the bits do not depend on it

  const int64_t channels = divide_up(p.channels, kDepth<T>);
  CorrelationPlan plan;
  assign_plan_arrays(plan_scratch(p.taps, channels), plan.staging, plan.reduction, p.taps,
                     channels);
  const int64_t vectors = divide_up(p.outputs, W);
  int64_t tile_vectors = smaller(vectors, kMaxTileVectors);
  for (;;) {
    plan_for_vectors(plan.staging, tile_vectors * W, p.in_step, p.tap_offset, p.taps, W);
    if (tile_vectors <= kMaxVectors ||
        channels * plan.staging.channel_pitch() * static_cast<int64_t>(sizeof(T)) <= kStagedBytes)
      break;
    tile_vectors = divide_up(tile_vectors, 2);
  }
  const int64_t tiles = divide_up(vectors, tile_vectors);
  const int64_t blocks = divide_up(p.rows, kMaxRows);
  const int64_t weight_pitch = divide_up(p.rows, blocks);
  plan_reduction(plan.reduction, plan.staging, channels, p.taps, weight_pitch);

  const int64_t block_size = channels * p.taps * weight_pitch;
  T* weights = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * blocks * block_size));
  parallel_jobs(p.groups * blocks, block_size, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t group = job / blocks, block = job % blocks;
      const int64_t first = p.rows * block / blocks, last = p.rows * (block + 1) / blocks;
      pack_rows(p, group, first, last - first, last - first, weight_pitch,
                weights + job * block_size);
    }
  });

  const int64_t splits = smaller(blocks, divide_up(kJobs, larger(1, p.batch * p.groups * tiles)));
  const int64_t jobs = p.batch * p.groups * tiles * splits;
  parallel_jobs(
      jobs, divide_up(p.rows, splits) * p.products() * tile_vectors * W,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(
            scratch(Slot::staged, sizeof(T) * channels * plan.staging.channel_pitch()));
        Sum<T>* tile =
            static_cast<Sum<T>*>(scratch(Slot::tile, CONVLM_VECTOR_BYTES * kMaxRows * kMaxVectors));
        int64_t staged_job = -1;
        for (int64_t job = begin; job < end; ++job) {
          const int64_t split = job % splits, tile_job = job / splits;
          const int64_t t = tile_job % tiles, group = tile_job / tiles % p.groups,
                        n = tile_job / tiles / p.groups;
          const int64_t first = vectors * t / tiles, last = vectors * (t + 1) / tiles;
          if (staged_job != tile_job)
            stage(plan.staging, p.in + n * p.in_batch + group * p.channels * p.in_channel,
                  p.channels, p.in_channel, p.in_position, p.length, first * W * p.in_step, staged);
          staged_job = tile_job;
          for (int64_t block = blocks * split / splits; block < blocks * (split + 1) / splits;
               ++block) {
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
                const int64_t m = row + i;
                finish_row(
                    p, tile + i * width * W, bias_of(p, group * p.rows + m),
                    smaller(width * W, p.outputs - q),
                    p.out + n * p.out_batch + group * p.out_group + m * p.out_row + q * p.out_step);
              }
            }
          }
        }
      });
}
