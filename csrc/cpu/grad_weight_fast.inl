// grad_weight by fast filtering, transposed: the components of the input and those of grad_output
// are multiplied and summed over tiles, and the sums are turned into taps. With vectors of output
// channels, as in grad_weight_rows.inl.

constexpr int64_t kFastGradWeightTiles = 192;  // of one unit, where there are so many

// One job: the sums of a range of panels and of channels, over one piece of the units. A unit is a
// few stretches, of one sample or of several.
template <class F>
struct FastGradWeightPlan {
  FastTiling<F> tiling;
  Stretches<F> stretches;
  InputTransform<F> input;
  int64_t unit_stretches{}, units{}, pieces{};
  int64_t lanes{}, lane_pitch{};         // tiles of one unit
  int64_t vectors{}, panels{}, pitch{};  // of one group's output channels
  Cuts cuts{};                           // splits are of the channels
  int64_t panel_size{},
      piece_size{};  // of partial[piece][group][panel][slot, channel or bias][lane]

  int64_t panel_vector(int64_t panel) const { return vectors * panel / panels; }
};

template <class F, class S>
FastGradWeightPlan<F> plan_fast_grad_weight(const WeightGradient<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const FastTiling<F> tiling(p.outputs, p.taps, p.tap_offset[1] - p.tap_offset[0]);
  const Stretches<F> stretches(tiling, kFastGradWeightTiles, W);
  FastGradWeightPlan<F> plan{tiling, stretches, plan_input<F, T>(tiling, stretches)};
  const int64_t all_stretches = p.batch * stretches.count;
  plan.unit_stretches =
      smaller(all_stretches, larger(1, kFastGradWeightTiles / stretches.max_tiles));
  plan.units = divide_up(all_stretches, plan.unit_stretches);
  plan.lanes = plan.unit_stretches * stretches.max_tiles;
  plan.lane_pitch = staged_pitch(plan.lanes + W, W);
  plan.vectors = divide_up(p.rows, W);
  plan.panels = divide_up(plan.vectors, kMaxVectors);
  plan.pitch = divide_up(plan.vectors, plan.panels) * W;
  plan.panel_size = (tiling.slots * p.channels + 1) * plan.pitch;
  plan.piece_size = p.groups * plan.panels * plan.panel_size;
  plan.pieces = count_pieces(plan.units, plan.piece_size);
  return plan;
}

// rows[position][pitch] in the order in which tiles take them, zero where there is no output.
template <class F, class S>
void pack_stretch(const WeightGradient<S>& p, const Stretch& s, const S* grad_output, int64_t count,
                  int64_t padded, Compute<S>* rows, int64_t pitch) {
  const int64_t all = F::kOutputs * divide_up(s.tiles, s.period) * s.period;
  const int64_t run_rows = all / s.runs;
  for (int64_t run = 0; run < s.runs; ++run) {
    const int64_t first = run * s.run_output;
    const int64_t present = larger(0, smaller(run_rows, s.positions - first));
    Compute<S>* out = rows + run * run_rows * pitch;
    if (present > 0)
      pack_grad_output(grad_output + (s.first_output + first) * p.grad_position, p.grad_row,
                       p.grad_position, count, padded, present, out, pitch);
    for (int64_t i = present * pitch; i < run_rows * pitch; ++i) out[i] = 0;
  }
}

// components[component][tile][pitch] from rows of positions.
template <class F, class T>
void transform_grad_output(const Stretch& s, const T* rows, int64_t pitch, T* components,
                           int64_t component_pitch) {
  for (int64_t tile = 0; tile < s.tiles; tile += s.period) {
    const T* first = rows + tile * F::kOutputs * pitch;
    T* out = components + tile * pitch;
    const int64_t run = s.period * pitch, tiles = smaller(s.period, s.tiles - tile);
    for (int64_t i = 0; i < tiles * pitch; i += kLanes<T>) {
      Vector<T> output[F::kOutputs];
#pragma GCC unroll 8
      for (int a = 0; a < F::kOutputs; ++a) output[a] = load(first + a * run + i);
#pragma GCC unroll 8
      for (int j = 0; j < F::kComponents; ++j) {
        Vector<T> sum{};
#pragma GCC unroll 8
        for (int a = 0; a < F::kOutputs; ++a)
          if (F::kOutput[j][a] != 0) sum += F::kOutput[j][a] * output[a];
        store(out + j * component_pitch + i, sum);
      }
    }
  }
}

template <class F, class S>
void sum_piece_fast(const WeightGradient<S>& p, const FastGradWeightPlan<F>& plan, int64_t job,
                    Compute<S>* partial) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const FastTiling<F>& tiling = plan.tiling;
  const auto [piece, group, range, split] = PieceJob(plan.cuts, p.groups, job);
  const int64_t first_channel = p.channels * split / plan.cuts.splits;
  const int64_t channels = p.channels * (split + 1) / plan.cuts.splits - first_channel;
  const int64_t first_panel = plan.panels * range / plan.cuts.panel_ranges;
  const int64_t last_panel = plan.panels * (range + 1) / plan.cuts.panel_ranges;
  const bool wants_bias = p.grad_bias != nullptr && split == 0;
  const bool in_runs = p.x_position == 1 && p.grad_position == 1;
  const int64_t first_row = plan.panel_vector(first_panel) * W;
  const int64_t rows = smaller(p.rows, plan.panel_vector(last_panel) * W) - first_row;
  const S* x = p.x + (group * p.channels + first_channel) * p.x_channel;
  const S* grad_output = p.grad_output + (group * p.rows + first_row) * p.grad_row;

  const int64_t stream_elements =
      divide_up(plan.input.elements(tiling, plan.stretches.whole_blocks), W) * W;
  T* streams = static_cast<T*>(scratch(
      Slot::staged, sizeof(T) * (stream_elements + tiling.slots * channels * plan.lane_pitch)));
  T* staged = streams + stream_elements;
  const int64_t component_pitch = plan.lanes * plan.pitch;
  const int64_t most_period = plan.stretches.whole_blocks ? plan.tiling.dilation : 0;
  const int64_t rows_size = F::kOutputs * (plan.stretches.max_tiles + most_period) * plan.pitch;
  T* components = static_cast<T*>(
      scratch(Slot::panel, sizeof(T) * (F::kComponents * component_pitch + rows_size)));
  T* rows_of_grad = components + F::kComponents * component_pitch;

  const int64_t strips = divide_up(channels, kMaxRows);
  const auto stretches_until = [&](int64_t unit) {
    return smaller(unit * plan.unit_stretches, p.batch * plan.stretches.count);
  };
  const int64_t first_unit = plan.units * piece / plan.pieces;
  const int64_t last_unit = plan.units * (piece + 1) / plan.pieces;
  // The next piece is the next job, unless pieces are cut further.
  const int64_t end_unit = plan.cuts.jobs() * p.groups == 1 ? plan.units : last_unit;
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const bool accumulate = unit != first_unit;
    const int64_t first = stretches_until(unit), last = stretches_until(unit + 1);
    // Calls body(sample, stretch, its first tile in the unit) and gives the number of tiles.
    const auto for_each_stretch = [&](const auto& body) {
      int64_t tiles = 0;
      for (int64_t index = first; index < last; ++index) {
        const Stretch s = plan.stretches.at(tiling, index % plan.stretches.count);
        body(index / plan.stretches.count, s, tiles);
        tiles += s.tiles;
      }
      return tiles;
    };
    // A vector too much at the end of one stretch is overwritten by the next.
    const int64_t tiles = for_each_stretch([&](int64_t n, const Stretch& s, int64_t tile) {
      for (int64_t c = 0; c < channels; ++c)
        transform_input(tiling, plan.input, s, plan.stretches.whole_blocks,
                        x + n * p.x_batch + c * p.x_channel, p.x_position, p.length,
                        p.tap_offset[0], streams, staged + c * plan.lane_pitch + tile,
                        channels * plan.lane_pitch);
    });
    // While this unit is summed, what the next one reads is asked for, first x and then grad_output
    // of each stretch.
    const int64_t ahead = unit + 1 < end_unit && in_runs ? stretches_until(unit + 2) : last;
    LinesAhead lines;
    int64_t next = 2 * last;
    const auto ask_ahead = [&](int64_t wanted) {
      while ((wanted = lines.ask<LinesAhead::kIntoL2>(wanted)) > 0 && next < 2 * ahead) {
        const int64_t n = next / 2 / plan.stretches.count;
        const Stretch s = plan.stretches.at(tiling, next / 2 % plan.stretches.count);
        lines =
            next++ % 2 == 0
                ? input_lines(tiling, s, x + n * p.x_batch + p.tap_offset[0], channels, p.x_channel)
                : output_lines<F>(s, 0, s.tiles, grad_output + n * p.grad_batch, rows, p.grad_row);
      }
    };
    const int64_t share =
        divide_up((channels + rows) * divide_up(F::kOutputs * tiles * sizeof(S), LinesAhead::kLine),
                  (last_panel - first_panel) * tiling.slots * strips);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t first_vector = plan.panel_vector(panel);
      const int64_t width = plan.panel_vector(panel + 1) - first_vector;
      const int64_t row = first_vector * W - first_row;
      T* sums = partial + piece * plan.piece_size + (group * plan.panels + panel) * plan.panel_size;
      T* bias = sums + tiling.slots * p.channels * plan.pitch;
      for_each_stretch([&](int64_t n, const Stretch& s, int64_t tile) {
        pack_stretch<F>(p, s, grad_output + n * p.grad_batch + row * p.grad_row,
                        smaller(width * W, rows - row), width * W, rows_of_grad, plan.pitch);
        if (wants_bias)
          add_rows(rows_of_grad, F::kOutputs * divide_up(s.tiles, s.period) * s.period, plan.pitch,
                   width * W, bias, accumulate || tile > 0);
        transform_grad_output<F>(s, rows_of_grad, plan.pitch, components + tile * plan.pitch,
                                 component_pitch);
      });
      const int64_t zero = 0;
      for (int j = 0; j < F::kComponents; ++j)
        for (int64_t slot = tiling.first_slot[j]; slot < tiling.first_slot[j + 1]; ++slot)
          for (int64_t strip = 0; strip < strips; ++strip) {
            const int64_t c0 = channels * strip / strips, c1 = channels * (strip + 1) / strips;
            const T* start[kMaxRows];
            for (int64_t c = c0; c < c1; ++c)
              start[c - c0] = staged + (slot * channels + c) * plan.lane_pitch;
            ask_ahead(share);
            multiply<T, false>(
                Product<T>{start, components + j * component_pitch, &zero, &zero, 1, tiles, 1,
                           plan.pitch, sums + (slot * p.channels + first_channel + c0) * plan.pitch,
                           plan.pitch, accumulate},
                static_cast<int>(c1 - c0), static_cast<int>(width), kGradWeightChain);
          }
    }
  }
}

// Parts of F(4, r) are up to about ten times as large as their sum. Where they are so many times as
// large, an input that no gradient belongs to dwarfs those that matter, and its rounding shows.
constexpr int kMostCancelled = 64;

// Adds up the pieces of one panel, turns components into taps and rows into columns. False where
// a direct sum has to decide: a result is not finite, or too much has cancelled.
template <class F, class S>
bool finish_panel_fast(const WeightGradient<S>& p, const FastGradWeightPlan<F>& plan, int64_t job,
                       Compute<S>* partial) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const FastTiling<F>& t = plan.tiling;
  T* sums = partial + job * plan.panel_size;
  const int64_t used = plan.panel_size - (p.grad_bias == nullptr ? plan.pitch : 0);
  for (int64_t piece = 1; piece < plan.pieces; ++piece)
    for (int64_t i = 0; i < used; i += W)
      store(sums + i, load(sums + i) + load(sums + piece * plan.piece_size + i));

  const int64_t group = job / plan.panels, panel = job % plan.panels;
  const int64_t first = plan.panel_vector(panel) * W;
  const int64_t width = plan.panel_vector(panel + 1) * W - first;  // the rest of pitch is not set
  const int64_t rows = smaller(first + width, p.rows) - first;
  const int64_t row = group * p.rows + first;
  // Some channels at a time, so that their taps are in the cache when they are turned.
  constexpr int64_t kTurnedBytes = 128 * 1024;
  const int64_t channel_size = p.taps * plan.pitch;
  const int64_t some = smaller(
      p.channels, larger(1, kTurnedBytes / (static_cast<int64_t>(sizeof(T)) * channel_size)));
  T* taps = static_cast<T*>(scratch(Slot::panel, sizeof(T) * some * channel_size));
  Vector<T> poison{};
  bool exact = true;
  const auto add_up = [&](int64_t c, int64_t tap_group, int64_t k, T* out) {
    const auto& coefficient = F::kWeight[t.taps_of(tap_group) - 1];
    Vector<T> parts{}, wholes{};  // magnitudes
    for (int64_t i = 0; i < width; i += W) {
      Vector<T> sum{};
      for (int j = 0; j < F::kComponents; ++j) {
        if (coefficient[j][k] == 0) continue;
        const Vector<T> part =
            coefficient[j][k] *
            load(sums + ((t.first_slot[j] + tap_group) * p.channels + c) * plan.pitch + i);
        parts += absolute<T>(part);
        sum += part;
      }
      wholes += absolute<T>(sum);
      poison += sum * 0;
      store(out + i, sum);
    }
    // Those of F(2, r) take part in no sum but their own.
    if (F::kOutputs == 2) return;
    T part_lanes[W], whole_lanes[W];
    store(part_lanes, parts);
    store(whole_lanes, wholes);
    exact = exact && sum_of_lanes(part_lanes) <= kMostCancelled * sum_of_lanes(whole_lanes);
  };
  for (int64_t first_channel = 0; first_channel < p.channels; first_channel += some) {
    const int64_t channels = smaller(some, p.channels - first_channel);
    for (int64_t tap = 0; tap < p.taps; tap += kGroupTaps)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < smaller(kGroupTaps, p.taps - tap); ++k)
          add_up(first_channel + c, tap / kGroupTaps, k,
                 taps + c * channel_size + (tap + k) * plan.pitch);
    transpose(taps, plan.pitch, channels * p.taps, rows,
              p.grad_weight + row * p.products() + first_channel * p.taps, p.products());
  }
  if (p.grad_bias != nullptr)
    for (int64_t i = 0; i < rows; ++i)
      from_compute(sums[t.slots * p.channels * plan.pitch + i], p.grad_bias[row + i]);
  return exact && !any_nan<T>(poison);
}

template <class S>
void weight_gradient_directly(const WeightGradient<S>& p);

template <class F, class S>
void grad_weight_fast(const WeightGradient<S>& p) {
  using T = Compute<S>;
  FastGradWeightPlan<F> plan = plan_fast_grad_weight<F>(p);
  const FastTiling<F>& tiling = plan.tiling;
  // A range makes the components of the input once for all its panels, a split those of grad_output
  // for all its channels.
  plan.cuts = cut_into_jobs(divide_up(threads(), plan.pieces * p.groups), plan.panels,
                            divide_up(p.channels, 2 * kMaxRows));

  T* partial = static_cast<T*>(scratch(Slot::partial, sizeof(T) * plan.pieces * plan.piece_size));
  const int64_t jobs = plan.pieces * p.groups * plan.cuts.jobs();
  parallel_jobs(
      jobs, divide_up(p.batch * tiling.tiles * tiling.slots * p.groups * p.rows * p.channels, jobs),
      [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; ++job) sum_piece_fast(p, plan, job, partial);
      });
  bool exact = true;
  parallel_jobs(p.groups * plan.panels, plan.panel_size * plan.pieces,
                [&](int64_t begin, int64_t end) {
                  for (int64_t job = begin; job < end; ++job)
                    if (!finish_panel_fast(p, plan, job, partial))
                      __atomic_store_n(&exact, false, __ATOMIC_RELAXED);
                });
  if (!exact) weight_gradient_directly(p);
}
