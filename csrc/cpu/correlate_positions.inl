// The correlation with vectors of positions: weights are packed and are the scalars.

template <class A>
CONVLM_INLINE A* if_same(A* p) {
  return p;
}
template <class A>
CONVLM_INLINE A* if_same(void*) {
  return nullptr;
}

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
  // Strips are as wide as the core; a tile is staged for several of them.
  const int64_t vectors = divide_up(p.outputs, W);
  const int64_t strips = divide_up(vectors, kMaxVectors);
  int64_t tile_strips = smaller(strips, kMaxTileVectors / kMaxVectors);
  for (;; --tile_strips) {
    plan_for_vectors(plan.staging, smaller(vectors, tile_strips * kMaxVectors) * W, p.in_step,
                     p.tap_offset, p.taps, W);
    if (tile_strips == 1 ||
        channels * plan.staging.channel_pitch() * static_cast<int64_t>(sizeof(T)) <= kStagedBytes)
      break;
  }
  const int64_t tiles = divide_up(strips, tile_strips);
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
      jobs, divide_up(p.rows, splits) * p.products() * tile_strips * kMaxVectors * W,
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
          const int64_t first_strip = strips * t / tiles, last_strip = strips * (t + 1) / tiles;
          const int64_t first = vectors * first_strip / strips;
          if (staged_job != tile_job)
            stage(plan.staging, p.in + n * p.in_batch + group * p.channels * p.in_channel,
                  p.channels, p.in_channel, p.in_position, p.length, first * W * p.in_step, staged);
          staged_job = tile_job;
          for (int64_t block = blocks * split / splits; block < blocks * (split + 1) / splits;
               ++block) {
            const int64_t row = p.rows * block / blocks;
            const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
            const T* weight = weights + (group * blocks + block) * block_size;
            Sum<T> bias[kMaxRows];
            for (int i = 0; i < rows; ++i) bias[i] = bias_of(p, group * p.rows + row + i);
            int64_t v = first;
            for (int64_t strip = first_strip; strip < last_strip; ++strip) {
              const int64_t next = vectors * (strip + 1) / strips;
              const int width = static_cast<int>(next - v);
              const int64_t count = smaller(width * W, p.outputs - v * W);
              S* out = p.out + n * p.out_batch + group * p.out_group + row * p.out_row +
                       v * W * p.out_step;
              const bool plain =
                  p.out_step == 1 && p.activation == Activation::none && count == width * W;
              Product<T> product{&weight,
                                 staged + (v - first) * W,
                                 plan.reduction.weight_start,
                                 plan.reduction.in_start,
                                 plan.reduction.outer,
                                 plan.reduction.inner,
                                 plan.reduction.weight_step,
                                 plan.reduction.in_step,
                                 tile,
                                 width * W,
                                 false,
                                 plain ? if_same<Stored<T>>(out) : nullptr,
                                 p.out_row,
                                 bias};
              multiply<T, true>(product, rows, width);
              for (int i = 0; product.out == nullptr && i < rows; ++i)
                finish_row(p, tile + i * width * W, bias[i], count, out + i * p.out_row);
              v = next;
            }
          }
        }
      });
}
