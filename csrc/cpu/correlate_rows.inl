// The correlation with vectors of rows: inputs are the scalars, and the output is turned on its way
// out.

// The taps that any of some rows of a tile reads, where each sample has `positions` rows from
// output q0 on.
template <class S>
TapRange taps_of_rows(const Correlation<S>& p, int64_t q0, int64_t positions, int64_t row,
                      int64_t rows) {
  const int64_t first = row % positions, last = first + rows;
  return last <= positions ? taps_inside(p, q0 + first, q0 + last)
                           : taps_inside(p, q0, q0 + positions);
}

template <class T, class S>
void correlate_vectors_of_rows(const Correlation<S>& p) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kTilePositions = 48;  // a multiple of kMaxRows for every instruction set

  const int64_t channels = divide_up(p.channels, kDepth<T>);
  CorrelationPlan plan;
  assign_plan_arrays(plan_scratch(p.taps, channels), plan.staging, plan.reduction, p.taps,
                     channels);
  const int64_t blocks = divide_up(p.outputs, kTilePositions);  // of positions, within a sample
  const int64_t block_positions = divide_up(p.outputs, blocks);
  const int64_t samples =
      larger(1, kTilePositions / p.outputs);  // per job, where a sample is short
  const int64_t batches = divide_up(p.batch, samples);
  plan_for_scalars(plan.staging, block_positions, p.in_step, p.tap_offset, p.taps, W);

  const int64_t vectors = divide_up(p.rows, W);
  const int64_t panels = divide_up(vectors, kMaxVectors);
  const int64_t weight_pitch = divide_up(vectors, panels) * W;
  plan_reduction(plan.reduction, plan.staging, channels, p.taps, weight_pitch);

  const int64_t panel_size = channels * p.taps * weight_pitch;
  const int64_t padded = vectors * W;
  T* weights = static_cast<T*>(scratch(
      Slot::weight, p.groups * (sizeof(T) * panels * panel_size + sizeof(Sum<T>) * padded)));
  Sum<T>* biases = reinterpret_cast<Sum<T>*>(weights + p.groups * panels * panel_size);
  const TapRange taps = taps_inside(p, 0, p.outputs);
  parallel_jobs(p.groups * panels, panel_size, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t first = vectors * (job % panels) / panels * W;
      const int64_t last = vectors * (job % panels + 1) / panels * W;
      pack_rows(p, taps, job / panels, first, smaller(last, p.rows) - first, last - first,
                weight_pitch, weights + job * panel_size);
    }
  });
  if (p.bias != nullptr)
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t m = 0; m < padded; ++m)
        biases[group * padded + m] = m < p.rows ? bias_of(p, group * p.rows + m) : 0;

  // A range of panels is a job of its own where there are fewer tiles than threads; it stages
  // again.
  const int64_t tiles = batches * p.groups * blocks;
  const int64_t ranges = smaller(panels, divide_up(threads(), tiles));
  const int64_t sample_size = channels * plan.staging.channel_pitch();
  parallel_jobs(
      tiles * ranges, p.rows * p.products() * block_positions * samples / ranges,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * samples * sample_size));
        Sum<T>* tile = static_cast<Sum<T>*>(
            scratch(Slot::tile, sizeof(Sum<T>) * samples * block_positions * padded));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t range = job % ranges, block = job / ranges % blocks;
          const int64_t group = job / ranges / blocks % p.groups;
          const int64_t n0 = job / ranges / blocks / p.groups * samples;
          const int64_t first_panel = panels * range / ranges;
          const int64_t last_panel = panels * (range + 1) / ranges;
          const int64_t q0 = p.outputs * block / blocks;
          const int64_t positions = p.outputs * (block + 1) / blocks - q0;
          const int64_t count = smaller(samples, p.batch - n0);
          const T* start[kTilePositions];
          for (int64_t i = 0; i < count; ++i) {
            stage(plan.staging, p.in + (n0 + i) * p.in_batch + group * p.channels * p.in_channel,
                  p.channels, p.in_channel, p.in_position, p.length, q0 * p.in_step,
                  staged + i * sample_size, false);
            for (int64_t q = 0; q < positions; ++q)
              start[i * positions + q] = staged + i * sample_size + q * plan.staging.advance;
          }
          const int64_t tile_rows = count * positions;
          const int64_t strips = divide_up(tile_rows, kMaxRows);
          for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const int64_t first = vectors * panel / panels;
            const int width = static_cast<int>(vectors * (panel + 1) / panels - first);
            for (int64_t strip = 0; strip < strips; ++strip) {
              const int64_t row = tile_rows * strip / strips;
              const int rows = static_cast<int>(tile_rows * (strip + 1) / strips - row);
              const Steps steps =
                  steps_of(plan.reduction, taps_of_rows(p, q0, positions, row, rows));
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
              multiply<T, false>(product, rows, width, steps, kForwardChain<T>);
            }
          }
          const int64_t m = vectors * first_panel / panels * W;
          const int64_t rows = smaller(vectors * last_panel / panels * W, p.rows) - m;
          for (int64_t i = 0; i < count; ++i)
            finish_columns(p, tile + i * positions * padded + m, padded,
                           p.bias ? biases + group * padded + m : nullptr, positions, rows,
                           p.out + (n0 + i) * p.out_batch + group * p.out_group + m * p.out_row +
                               q0 * p.out_step);
        }
      });
}
