// The correlation by fast filtering, with vectors of tiles: components of the weights are the
// scalars. Short samples share a vector.

constexpr int64_t kFastTiles = 128;  // worked on at once, where there are so many
// Of a block of rows, where strips read them one after the other; and of a part of its reduction.
constexpr int64_t kNearWeightBytes = 256 * 1024, kPartBytes = 128 * 1024;
constexpr int64_t kMostSamples = 8;

// Components of packed weights: packed[channel][tap][pitch] to out[slot][channel][pitch].
template <class F, class T>
void transform_weight(const FastTiling<F>& t, const T* packed, int64_t channels, int64_t pitch,
                      bool reversed, T* out) {
  for (int64_t group = 0; group < t.groups; ++group) {
    const int64_t taps = t.taps_of(group), first = group * kGroupTaps;
    for (int j = 0; j < F::kComponents; ++j) {
      if (!uses_component<F>(taps, j)) continue;
      const float* coefficient = F::kWeight[taps - 1][j];
      T* component = out + (t.first_slot[j] + group) * channels * pitch;
      for (int64_t c = 0; c < channels; ++c) {
        Vector<T> sum{};
        for (int64_t k = 0; k < taps; ++k) {
          const int64_t tap = reversed ? t.taps - 1 - (first + k) : first + k;
          if (coefficient[k] != 0)
            sum += coefficient[k] * load(packed + (c * t.taps + tap) * pitch);
        }
        store_partial(component + c * pitch, sum, static_cast<int>(pitch));
      }
    }
  }
}

// Out of the way of the loops, most of which have none.
template <int COUNT, class T>
__attribute__((noinline)) void activate_each(Vector<T>* v, Activation activation) {
  for (int i = 0; i < COUNT; ++i) v[i] = activate(v[i], activation);
}

// Turns sums[component][row][tile] of some tiles of one sample into outputs and writes them.
template <class F, class S>
struct OutputWriter {
  using T = Compute<S>;
  static constexpr int W = kLanes<T>, m = F::kOutputs;
  const T* sums;
  int64_t component_pitch, row_pitch;
  int64_t rows, first_tile, tiles;
  const T* bias;
  Activation activation;
  S* out;  // of the stretch
  int64_t out_row;
  int64_t positions;   // outputs that may be written, from `out` on
  T* buffer;           // of one row
  Vector<T> poison{};  // NaN once a value is not finite

  // The outputs of a vector of tiles, of which `count`, or all, exist.
  CONVLM_INLINE void take(int64_t row, int64_t tile, int64_t count, Vector<T>* output) {
    Vector<T> component[F::kComponents];
#pragma GCC unroll 8
    for (int j = 0; j < F::kComponents; ++j)
      component[j] = load(sums + j * component_pitch + row * row_pitch + tile);
#pragma GCC unroll 8
    for (int a = 0; a < m; ++a) {
      output[a] = broadcast(bias[row]);
#pragma GCC unroll 8
      for (int j = 0; j < F::kComponents; ++j)
        if (F::kOutput[j][a] != 0) output[a] += F::kOutput[j][a] * component[j];
      poison += first_lanes<T>(output[a], count) * 0;
    }
    if (activation != Activation::none) activate_each<m, T>(output, activation);
  }

  CONVLM_INLINE void put(int64_t row, int64_t position, Vector<T> v, int64_t count) const {
    S* to = out + row * out_row + position;
    if (count >= W)
      store(to, v);
    else if (count > 0)
      store_partial(to, v, static_cast<int>(count));
  }

  // Calls body(row, tile, count) for each vector of tiles.
  template <class Body>
  CONVLM_INLINE void for_each_vector(const Body& body) const {
    for (int64_t row = 0; row < rows; ++row) {
      int64_t i = 0;
      for (; i + W <= tiles; i += W) body(row, i, W);
      if (i < tiles) body(row, i, tiles - i);
    }
  }

  // Outputs of one kind lie together.
  void write_runs(int64_t distance) {
    OutputWriter w = *this;  // which no store can change
    w.for_each_vector([&](int64_t row, int64_t tile, int64_t count) {
      Vector<T> v[m];
      w.take(row, tile, count, v);
#pragma GCC unroll 4
      for (int a = 0; a < m; ++a) {
        const int64_t position = a * distance + w.first_tile + tile;
        w.put(row, position, v[a], smaller(count, w.positions - position));
      }
    });
    poison = w.poison;
  }

  template <int DILATION>
  void write_merged(int64_t period) {
    if constexpr (DILATION > 1)
      if (period < DILATION) return write_merged<DILATION / 2>(period);
    OutputWriter w = *this;  // which no store can change
    w.for_each_vector([&](int64_t row, int64_t tile, int64_t count) {
      Vector<T> v[m];
      w.take(row, tile, count, v);
      merge_phases<m, DILATION, T>(v);
#pragma GCC unroll 4
      for (int a = 0; a < m; ++a) {
        const int64_t position = (w.first_tile + tile) * m + a * W;
        w.put(row, position, v[a], w.positions - position);
      }
    });
    poison = w.poison;
  }

  // Every run in whole vectors, the last first; what is too much is overwritten by the next.
  void write_copies(int64_t period) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t tile = 0; tile < tiles; tile += period)
        for (int64_t i = (period - 1) / W * W; i >= 0; i -= W) {
          Vector<T> v[m];
          take(row, tile + i, larger(0, tiles - tile - i), v);
          for (int a = 0; a < m; ++a) store(buffer + tile * m + a * period + i, v[a]);
        }
      for (int64_t i = 0; i < positions; i += W) put(row, i, load(buffer + i), positions - i);
    }
  }

  void write(const Stretch& s) {
    if (s.runs > 1) return write_runs(s.run_output);
    if (cut_in_registers<T>(s.period)) return write_merged<W>(s.period);
    write_copies(s.period);
  }
};

template <class T>
CONVLM_INLINE bool any_nan(Vector<T> v) {
  bool found = false;
  for (int i = 0; i < kLanes<T>; ++i) found |= v[i] != v[i];
  return found;
}

// The position that the first tap in the order of positions reads for output 0.
template <class S>
int64_t first_tap_offset(const Correlation<S>& p) {
  return smaller(p.tap_offset[0], p.tap_offset[p.taps - 1]);
}

template <class F>
int64_t samples_of_fast_job(const FastTiling<F>& t) {
  return smaller(kMostSamples, larger(1, kFastTiles / t.tiles));
}

// How many slots of how many tiles are left out.
template <class F, class S>
int64_t slots_of_padding(const Correlation<S>& p, const FastTiling<F>& t) {
  const Stretches<F> stretches(t, kFastTiles, kLanes<Compute<S>>);
  int64_t total = 0;
  const auto count = [&](int64_t index) {
    const Stretch s = stretches.at(t, index);
    int64_t slots = 0;
    for (int j = 0; j < F::kComponents; ++j)
      for (int64_t group = 0; group < t.groups_of(j); ++group)
        slots += reads_padding(t, s, j, group, s.first_output + first_tap_offset(p), p.length);
    total += slots * s.tiles;
    return slots > 0;
  };
  // Padding is at the ends.
  int64_t begin = 0, end = stretches.count;
  while (begin < end && count(begin)) ++begin;
  while (begin < end && count(end - 1)) --end;
  return total;
}

// The reduction of each component: where its slots start in the input and in the weights, but for
// those of nothing but padding.
template <class F>
struct ReductionOfSlots {
  int64_t *in_start, *weight_start;
  int64_t count[F::kComponents];

  void plan(const FastTiling<F>& t, const Stretch& s, int64_t first_tap, int64_t length,
            int64_t in_pitch, int64_t weight_pitch) {
    for (int j = 0; j < F::kComponents; ++j) {
      count[j] = 0;
      for (int64_t group = 0; group < t.groups_of(j); ++group) {
        if (reads_padding(t, s, j, group, s.first_output + first_tap, length)) continue;
        const int64_t slot = t.first_slot[j] + group, next = t.first_slot[j] + count[j]++;
        in_start[next] = slot * in_pitch;
        weight_start[next] = slot * weight_pitch;
      }
    }
  }
};

// How many channels are staged at a time: whole chains, or all of them where they stay about in the
// L2 cache or the sums of all rows, which wait for the next channels, would not.
template <class F, class T>
int64_t channels_at_once(int64_t channels, int64_t slots, int64_t rows, int64_t lanes) {
  constexpr int64_t kFewBytes = 1024 * 1024, kStagedBytes = 512 * 1024;
  const int64_t size = lanes * static_cast<int64_t>(sizeof(T)), channel_bytes = slots * size;
  if (channels <= kForwardChain<T> || channels * channel_bytes <= kFewBytes ||
      rows * F::kComponents * size > kSumBytes)
    return channels;
  const int64_t chain = Chains(1, channels, kForwardChain<T>).inner;
  return smaller(channels, larger(1, kStagedBytes / (channel_bytes * chain)) * chain);
}

template <class S>
void correlate_directly(const Correlation<S>& p);

template <class F, class S>
void correlate_fast(const Correlation<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const int64_t first_tap = first_tap_offset(p);
  const bool reversed = first_tap != p.tap_offset[0];
  const int64_t spacing = p.taps > 1 ? p.tap_offset[1] - p.tap_offset[0] : 1;
  const FastTiling<F> tiling(p.outputs, p.taps, larger(spacing, -spacing));
  const Stretches<F> stretches(tiling, kFastTiles, W);
  const int64_t samples = samples_of_fast_job(tiling);
  const int64_t max_lanes = divide_up(samples * stretches.max_tiles, W) * W;
  const InputTransform<F> input = plan_input<F, T>(tiling, stretches);
  const int64_t lane_pitch = staged_pitch(max_lanes + W, W);
  const BlockShape shape(loads_outpace_products());
  const int64_t blocks = divide_up(p.rows, shape.rows);
  const int64_t weight_pitch = divide_up(p.rows, blocks);
  const int64_t block_size = tiling.slots * p.channels * weight_pitch;
  const int64_t some = channels_at_once<F, T>(p.channels, tiling.slots, p.rows, lane_pitch);
  const bool all_at_once = some == p.channels;
  // Sums are written out as soon as they are there, unless a vector of tiles is no run of outputs,
  // or weights would leave the L2 cache between two of them.
  const bool near =
      tiling.slots * some * weight_pitch * static_cast<int64_t>(sizeof(T)) <= kNearWeightBytes;
  const bool in_pieces =
      near && all_at_once && samples == 1 && !copies_phases<T>(tiling, stretches);
  const int64_t piece_lanes = in_pieces ? shape.vectors * W : max_lanes;
  const int64_t most_steps = kPartBytes / (weight_pitch * static_cast<int64_t>(sizeof(T)));
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

  bool* finite = static_cast<bool*>(scratch(Slot::finite, p.batch));
  for (int64_t n = 0; n < p.batch; ++n) finite[n] = true;

  const int64_t tile_jobs = divide_up(p.batch, samples) * p.groups * stretches.count;
  // Each stages its channels again, if not all are at once.
  const int64_t wanted_jobs = all_at_once ? 4 * threads() : threads();
  const int64_t splits = smaller(blocks, divide_up(wanted_jobs, tile_jobs));
  parallel_jobs(
      tile_jobs * splits, max_lanes * tiling.slots * p.channels * divide_up(p.rows, splits),
      [&](int64_t begin, int64_t end) {
        const int64_t stream_elements =
            divide_up(input.elements(tiling, stretches.whole_blocks), W) * W;
        T* streams = static_cast<T*>(scratch(
            Slot::staged, sizeof(T) * (stream_elements + tiling.slots * some * lane_pitch)));
        T* staged = streams + stream_elements;
        const int64_t row_pitch = staged_pitch(piece_lanes + W, W);
        const int64_t component_pitch = shape.rows * row_pitch;
        const int64_t block_sums = F::kComponents * component_pitch;
        const int64_t waiting = all_at_once ? 1 : divide_up(blocks, splits);
        T* all_sums = static_cast<T*>(
            scratch(Slot::tile,
                    sizeof(T) * (waiting * block_sums + F::kOutputs * (max_lanes + 2 * W) + W)));
        T* row_buffer = all_sums + waiting * block_sums;
        int64_t* starts =
            static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * tiling.slots));
        ReductionOfSlots<F> reduction{starts, starts + tiling.slots, {}};
        LinesAhead ahead;
        int64_t staged_job = -1;
        for (int64_t index = begin; index < end; ++index) {
          const int64_t split = index % splits, job = index / splits;
          const Stretch s = stretches.at(tiling, job % stretches.count);
          const int64_t group = job / stretches.count % p.groups;
          const int64_t n0 = job / stretches.count / p.groups * samples;
          const int64_t count = smaller(samples, p.batch - n0);
          reduction.plan(tiling, s, first_tap, p.length, some * lane_pitch,
                         p.channels * weight_pitch);
          const int64_t vectors = divide_up(count * s.tiles, W);
          const int64_t strips = divide_up(vectors, shape.vectors);
          const int64_t pieces = in_pieces ? strips : 1;
          const int64_t first_block = blocks * split / splits;
          const int64_t last_block = blocks * (split + 1) / splits;
          S* const out = p.out + n0 * p.out_batch + group * p.out_group;
          Vector<T> poison[kMostSamples] = {};
          for (int64_t channel = 0; channel < p.channels; channel += some) {
            const int64_t last_channel = smaller(p.channels, channel + some);
            // A vector too much at the end of one sample is overwritten by the next.
            for (int64_t i = 0; (!all_at_once || staged_job != job) && i < count; ++i)
              for (int64_t c = channel; c < last_channel; ++c)
                transform_input(
                    tiling, input, s, stretches.whole_blocks,
                    p.in + (n0 + i) * p.in_batch + (group * p.channels + c) * p.in_channel,
                    p.in_position, p.length, first_tap, streams,
                    staged + (c - channel) * lane_pitch + i * s.tiles, some * lane_pitch);
            staged_job = job;
            const bool same = last_channel < p.channels;  // channels of this job follow
            if ((same || index + 1 < end) && p.in_position == 1) {
              const int64_t next = same ? job : (index + 1) / splits;
              const int64_t first = same ? last_channel : 0;
              ahead = input_lines(
                  tiling, stretches.at(tiling, next % stretches.count),
                  p.in + next / stretches.count / p.groups * samples * p.in_batch +
                      (next / stretches.count % p.groups * p.channels + first) * p.in_channel +
                      first_tap,
                  smaller(some, p.channels - first), p.in_channel);
            }
            const int64_t share =
                divide_up(ahead.count(), (last_block - first_block) * strips * F::kComponents);
            for (int64_t block = first_block; block < last_block; ++block) {
              T* const sums = all_sums + (all_at_once ? 0 : block - first_block) * block_sums;
              const int64_t row = p.rows * block / blocks;
              const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
              const T* weight = weights + (group * blocks + block) * block_size;
              T bias[kTallRows];
              for (int i = 0; i < rows; ++i) bias[i] = bias_of(p, group * p.rows + row + i);
              for (int64_t piece = 0; piece < pieces; ++piece) {
                const int64_t first_strip = strips * piece / pieces;
                const int64_t last_strip = strips * (piece + 1) / pieces;
                const int64_t first_vector = vectors * first_strip / strips;
                const int64_t last_vector = vectors * last_strip / strips;
                // The next piece, of this block or of the one below.
                const bool is_last = piece + 1 == pieces;
                LinesAhead out_ahead = output_lines<F>(
                    s, is_last ? 0 : last_vector * W,
                    smaller((last_vector - first_vector) * W, s.tiles),
                    out + (row + (is_last ? rows : 0)) * p.out_row,
                    same || (is_last && block + 1 == last_block) ? 0 : rows, p.out_row);
                const int64_t out_share =
                    divide_up(out_ahead.count(), (last_strip - first_strip) * F::kComponents);
                const auto multiply_slots = [&](int j, int64_t v, int64_t next, const Steps& steps,
                                                bool accumulate) {
                  ahead.ask(share);
                  out_ahead.ask(out_share);
                  multiply_block(
                      shape,
                      Product<T>{&weight, staged + v * W - channel * lane_pitch,
                                 reduction.weight_start + tiling.first_slot[j],
                                 reduction.in_start + tiling.first_slot[j], reduction.count[j],
                                 p.channels, weight_pitch, lane_pitch,
                                 sums + j * component_pitch + (v - first_vector) * W, row_pitch,
                                 accumulate},
                      rows, static_cast<int>(next - v), steps);
                };
                const auto for_each_strip = [&](const auto& body) {
                  for (int64_t strip = first_strip; strip < last_strip; ++strip)
                    body(vectors * strip / strips, vectors * (strip + 1) / strips);
                };
                // Parts cost divisions for each product: a twentieth of the time of 64 channels.
                if (near) {
                  for_each_strip([&](int64_t v, int64_t next) {
                    for (int j = 0; j < F::kComponents; ++j)
                      multiply_slots(j, v, next, {0, reduction.count[j], channel, last_channel},
                                     channel > 0);
                  });
                } else {
                  for (int j = 0; j < F::kComponents; ++j) {
                    Reduction slots{};
                    slots.outer = larger(1, reduction.count[j]);  // sums of none are zeros
                    slots.inner = p.channels;
                    const Steps of_channels{0, slots.outer, channel, last_channel};
                    for_each_part(
                        slots, of_channels, kForwardChain<T>, most_steps, [&](const Steps& part) {
                          const Steps steps = overlap(part, {0, reduction.count[j], 0, p.channels});
                          const bool accumulate = part.first_outer > 0 || part.first_inner > 0;
                          for_each_strip([&](int64_t v, int64_t next) {
                            multiply_slots(j, v, next, steps, accumulate);
                          });
                        });
                  }
                }
                for (int64_t n = 0; !same && n < count; ++n) {
                  OutputWriter<F, S> writer{
                      sums + n * s.tiles,
                      component_pitch,
                      row_pitch,
                      rows,
                      first_vector * W,
                      smaller(s.tiles - first_vector * W, (last_vector - first_vector) * W),
                      bias,
                      p.activation,
                      p.out + (n0 + n) * p.out_batch + group * p.out_group + row * p.out_row +
                          s.first_output,
                      p.out_row,
                      s.positions,
                      row_buffer,
                      poison[n]};
                  writer.write(s);
                  poison[n] = writer.poison;
                }
              }
            }
          }
          for (int64_t n = 0; n < count; ++n)
            if (any_nan<T>(poison[n])) __atomic_store_n(finite + n0 + n, false, __ATOMIC_RELAXED);
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
