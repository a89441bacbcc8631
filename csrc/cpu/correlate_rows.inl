// The correlation with vectors of rows: inputs are the scalars, and the output is turned on its way
// out.

constexpr int64_t kTilePositions = 48;  // a multiple of kMaxRows for every instruction set
constexpr int64_t kMostTileRows = 192;

// How many short samples a job has. Those of one position go together: they leave out the same
// taps.
inline int64_t samples_of_rows(int64_t batch, int64_t outputs, int64_t sample_bytes) {
  constexpr int64_t kTiles = 4;                 // for threads to share, with the panels
  constexpr int64_t kStagedBytes = 512 * 1024;  // in the L2 cache, with a panel of weights
  const int64_t fitting = smaller(kMostTileRows / outputs, kStagedBytes / larger(1, sample_bytes));
  return larger(larger(1, kTilePositions / outputs), smaller(fitting, batch / kTiles));
}

// What one job makes, of all rows or of a range of them.
struct TileOfRows {
  int64_t group, sample, samples, position, positions;

  template <class S>
  TileOfRows(const Correlation<S>& p, int64_t tile, int64_t blocks, int64_t most_samples)
      : group(tile / blocks % p.groups),
        sample(tile / blocks / p.groups * most_samples),
        samples(smaller(most_samples, p.batch - sample)),
        position(p.outputs * (tile % blocks) / blocks),
        positions(p.outputs * (tile % blocks + 1) / blocks - position) {}

  // The part of the input that it reads.
  template <class S>
  LinesAhead lines(const Correlation<S>& p) const {
    if (p.in_position != 1) return {};
    const int64_t one = p.tap_offset[0], other = p.tap_offset[p.taps - 1];
    const int64_t first = larger(0, position * p.in_step + smaller(one, other));
    const int64_t last =
        smaller(p.length, (position + positions - 1) * p.in_step + larger(one, other) + 1);
    return {p.in + sample * p.in_batch + group * p.channels * p.in_channel + first,
            p.channels,
            p.in_channel,
            samples,
            p.in_batch,
            larger(0, last - first)};
  }
};

template <class T, class S>
void correlate_vectors_of_rows(const Correlation<S>& p) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kPanelBytes = 128 * 1024;  // in the L2 cache
  constexpr int64_t kPieceBytes = 256 * 1024;  // in the L2 cache, while they are packed, too
  constexpr int64_t kNearBytes = 1024 * 1024;  // what may be in the L2 cache already

  const int64_t channels = divide_up(p.channels, kDepth<T>);
  CorrelationPlan plan;
  assign_plan_arrays(plan_scratch(p.taps, channels), plan.staging, plan.reduction, p.taps,
                     channels);
  const int64_t blocks = divide_up(p.outputs, kTilePositions);  // of positions, within a sample
  const int64_t block_positions = divide_up(p.outputs, blocks);
  const T* const input = reads_no_padding(p) ? if_same<const T>(p.in) : nullptr;
  if (input != nullptr)
    plan_in_place(plan.staging, p.in_channel, p.in_position, p.in_step, p.tap_offset, p.taps);
  else
    plan_for_scalars(plan.staging, block_positions, p.in_step, p.tap_offset, p.taps, W);
  const int64_t sample_size = input != nullptr ? 0 : channels * plan.staging.channel_pitch();
  const int64_t samples =
      samples_of_rows(p.batch, p.outputs, static_cast<int64_t>(sizeof(T)) * sample_size);
  const int64_t batches = divide_up(p.batch, samples);

  const int64_t vectors = divide_up(p.rows, W);
  const int64_t panels = divide_up(vectors, kMaxVectors);
  const int64_t weight_pitch = divide_up(vectors, panels) * W;
  plan_reduction(plan.reduction, plan.staging, channels, p.taps, weight_pitch);

  const int64_t channel_size = p.taps * weight_pitch, panel_size = channels * channel_size;
  const int64_t padded = vectors * W;
  const TapRange taps = taps_inside(p, 0, p.outputs);
  // Some channels of one panel.
  const auto pack = [&](int64_t group, int64_t panel, int64_t channel, int64_t last_channel,
                        T* out) {
    const int64_t first = vectors * panel / panels * W;
    const int64_t last = vectors * (panel + 1) / panels * W;
    pack_rows(with_weights_of<T>(p, channel, last_channel), taps, group, first,
              smaller(last, p.rows) - first, last - first, weight_pitch, out);
  };
  // What one tile alone multiplies is packed when it does, and need not leave the caches.
  const bool packs_late = batches * blocks == 1;
  const int64_t piece =
      packs_late ? channels_of_piece(plan.reduction, kForwardChain<T>,
                                     kPieceBytes / (static_cast<int64_t>(sizeof(T)) * weight_pitch))
                 : channels;
  const int64_t packed_panels = packs_late ? 0 : p.groups * panels;
  Sum<T>* biases = static_cast<Sum<T>*>(scratch(
      Slot::weight, sizeof(Sum<T>) * p.groups * padded + sizeof(T) * packed_panels * panel_size));
  T* weights = reinterpret_cast<T*>(biases + p.groups * padded);
  parallel_jobs(packed_panels, panel_size, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job)
      pack(job / panels, job % panels, 0, channels, weights + job * panel_size);
  });
  if (p.bias != nullptr)
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t m = 0; m < padded; ++m)
        biases[group * padded + m] = m < p.rows ? bias_of(p, group * p.rows + m) : 0;

  // A range of panels is a job of its own where there are fewer tiles than threads; it stages
  // again.
  const int64_t tiles = batches * p.groups * blocks;
  const int64_t ranges = smaller(panels, divide_up(threads(), tiles));
  const int64_t most_steps = kPanelBytes / (static_cast<int64_t>(sizeof(T)) * weight_pitch);
  const bool from_far =
      p.batch * p.groups * p.channels * p.length * static_cast<int64_t>(sizeof(S)) > kNearBytes;
  parallel_jobs(
      tiles * ranges, p.rows * p.products() * block_positions * samples / ranges,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * samples * sample_size));
        Sum<T>* tile = static_cast<Sum<T>*>(
            scratch(Slot::tile, sizeof(Sum<T>) * samples * block_positions * padded));
        T* packed = static_cast<T*>(
            scratch(Slot::partial, packs_late ? sizeof(T) * piece * channel_size : 0));
        for (int64_t job = begin; job < end; ++job) {
          const TileOfRows at(p, job / ranges, blocks, samples);
          const int64_t group = at.group, n0 = at.sample, count = at.samples;
          const int64_t q0 = at.position, positions = at.positions;
          const int64_t range = job % ranges;
          const int64_t first_panel = panels * range / ranges;
          const int64_t last_panel = panels * (range + 1) / ranges;
          const T* start[kMostTileRows];
          for (int64_t i = 0; i < count; ++i) {
            const int64_t sample = (n0 + i) * p.in_batch + group * p.channels * p.in_channel;
            const T* first = staged + i * sample_size;
            if (input != nullptr)
              first = input + sample + q0 * plan.staging.advance;
            else
              stage(plan.staging, p.in + sample, p.channels, p.in_channel, p.in_position, p.length,
                    q0 * p.in_step, staged + i * sample_size, false);
            for (int64_t q = 0; q < positions; ++q)
              start[q * count + i] = first + q * plan.staging.advance;
          }
          const int64_t tile_rows = count * positions;
          const int64_t strips = divide_up(tile_rows, kMaxRows);
          LinesAhead ahead;
          if (from_far && job + 1 < end && (job + 1) % ranges == 0)
            ahead = TileOfRows(p, (job + 1) / ranges, blocks, samples).lines(p);
          const int64_t share = divide_up(ahead.count(), (last_panel - first_panel) * strips);
          for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const int64_t first = vectors * panel / panels;
            const int width = static_cast<int>(vectors * (panel + 1) / panels - first);
            for (int64_t channel = 0; channel < channels; channel += piece) {
              const int64_t last_channel = smaller(channels, channel + piece);
              const T* weight = weights + (group * panels + panel) * panel_size;
              if (packs_late) {
                pack(group, panel, channel, last_channel, packed);
                weight = packed - channel * channel_size;
              }
              const Steps of_piece = plan.reduction.of_channels(channel, last_channel);
              for_each_part(
                  plan.reduction, of_piece, kForwardChain<T>, most_steps, [&](const Steps& part) {
                    const bool is_first = part.first_outer == 0 && part.first_inner == 0;
                    for (int64_t strip = 0; strip < strips; ++strip) {
                      ahead.ask<LinesAhead::kIntoL2>(share);
                      const int64_t row = tile_rows * strip / strips;
                      const int rows = static_cast<int>(tile_rows * (strip + 1) / strips - row);
                      const TapRange inside =
                          taps_inside(p, q0 + row / count, q0 + (row + rows - 1) / count + 1);
                      Product<T> product{start + row,
                                         weight,
                                         plan.reduction.in_start,
                                         plan.reduction.weight_start,
                                         plan.reduction.outer,
                                         plan.reduction.inner,
                                         plan.reduction.in_step,
                                         plan.reduction.weight_step,
                                         tile + row * padded + first * W,
                                         padded,
                                         !is_first};
                      multiply<T, false>(product, rows, width,
                                         overlap(steps_of(plan.reduction, inside), part),
                                         kForwardChain<T>);
                    }
                  });
            }
          }
          const int64_t m = vectors * first_panel / panels * W;
          const int64_t rows = smaller(vectors * last_panel / panels * W, p.rows) - m;
          for (int64_t i = 0; i < count; ++i)
            finish_columns(p, tile + i * padded + m, count * padded,
                           p.bias ? biases + group * padded + m : nullptr, positions, rows,
                           p.out + (n0 + i) * p.out_batch + group * p.out_group + m * p.out_row +
                               q0 * p.out_step);
        }
      });
}
