// Which of several equivalent kernels a geometry gets. The number of threads has no say, and the
// batch only where it is summed over, or where both kernels give the same bits: they must not show
// in them.

// Shorter rows would leave most of a vector of tiles empty.
constexpr int64_t kFewestFastOutputs = 64;

// float64 is left to the direct sum, whose error is what one asks for with it. Dot products of
// pairs halve the work already, which is the most that a fast filter, in float32, would save.
template <class S>
constexpr bool kMayFilter = sizeof(S) < sizeof(double) && kDepth<Operand<S>> == 1;

// ---- forward and grad_input ----

// What a fast filter costs, in multiply-adds: the products, in vectors that may not be full, the
// making of components and outputs, which copies make dearer, and a sample's share of packing
// weights and of beginning streams. Prices were measured.
template <class F, class S>
int64_t fast_correlation_cost(const Correlation<S>& p, int64_t dilation) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kWeight = 4, kStream = 60;
  const FastTiling<F> t(p.outputs, p.taps, dilation);
  const Stretches<F> stretches(t, kFastTiles, W);
  const bool copies = copies_phases<Compute<S>>(t, stretches);
  const bool in_runs = !stretches.whole_blocks && dilation < 4 * W;
  const int64_t samples = samples_of_fast_job(t);
  const int64_t tiles = in_runs ? t.tiles : divide_up(samples * t.tiles, W) * W / samples;
  const int64_t transforms = 6 * t.slots * p.channels + 14 * F::kOutputs * p.rows;
  const int64_t cost = (tiles * t.slots - slots_of_padding(p, t)) * p.channels * p.rows +
                       t.tiles * (copies ? 3 : 1) * transforms;
  return (in_runs ? cost * divide_up(dilation, W) * W / dilation : cost) +
         t.slots * p.channels * (kWeight * p.rows + kStream);
}

// What the direct sum costs, with its staging and storing.
template <class S>
int64_t direct_correlation_cost(const Correlation<S>& p) {
  return products_inside(p) * p.channels * p.rows + p.outputs * (3 * p.channels + 6 * p.rows);
}

// Few rows per channel leave nothing to block over; past one chain the sums need their tile.
inline bool has_few_channels(int64_t rows, int64_t channels, int64_t taps) {
  return (channels == 1 ? rows <= 4 : rows == 1 && channels <= 4) &&
         channels * taps <= kGradWeightChain;
}

// Hardly more than a sum of rows, which are read in place. Measured.
template <class S>
bool is_sum_of_rows(const Correlation<S>& p) {
  constexpr int64_t kFewRows = 2, kFewWeights = 64;
  return p.taps == 1 && p.in_step == 1 && p.in_position == 1 && p.outputs >= kLanes<Compute<S>> &&
         (p.rows <= kFewRows || p.rows * p.channels <= kFewWeights);
}

// Short rows of many groups of few channels: groups fill vectors, positions would not, nor be next
// to each other with a stride. `most` that a group's part of a turned row may cost is measured. A
// sum is one chain.
template <class S>
bool is_by_groups(int64_t groups, int64_t rows, int64_t channels, int64_t taps, int64_t outputs,
                  int64_t length, int64_t most) {
  constexpr int W = kLanes<Compute<S>>;
  const bool few = (rows * channels <= 16 && channels * taps <= kChain) ||
                   has_few_channels(rows, channels, taps);
  return few && 2 * groups >= W && (8 * outputs + length) * divide_up(groups, W) <= most * groups;
}
constexpr int64_t kMostStrided = 72;
template <class S>
bool is_by_groups(const Correlation<S>& p) {
  return is_by_groups<S>(p.groups, p.rows, p.channels, p.taps, p.outputs, p.length,
                         p.in_step == 1 ? 36 : kMostStrided);
}
template <class S>
bool is_by_groups(const WeightGradient<S>& p) {
  return is_by_groups<S>(p.groups, p.rows, p.channels, p.taps, p.outputs, p.length,
                         p.stride == 1 ? 80 : 128);
}

// grad_input of either, with a stride.
template <class S>
bool is_by_groups(const Conv1dGeometry& g) {
  return g.batch > 0 && g.length > 0 && g.stride > 1 &&
         is_by_groups<S>(g.groups, g.in_channels_per_group(), g.out_channels_per_group(),
                         g.kernel_size, divide_up(g.length, g.stride), g.length, kMostStrided);
}
inline bool is_interleaved(const Conv1dGeometry& g) {
  return g.batch > 0 && g.stride > 1 && g.length >= g.stride && g.in_channels_per_group() == 1 &&
         has_few_channels(1, g.out_channels_per_group(), g.kernel_size);
}

// ---- the direct kernels ----

constexpr int64_t kMostTogether = 16;  // the sums of a tile stay in the L1 cache

// What classes of positions cost, one after the other and, but for the products of their taps, all
// at once.
struct CostOfClasses {
  int64_t apart = 0, together = 0;
};

template <class S>
CostOfClasses cost_of_classes(const Correlation<S>* parts, int64_t part_count) {
  // An output, and one more for what nothing but a pass of its own clears.
  constexpr int64_t kOutput = 1;
  CostOfClasses cost;
  int64_t copying = 0, classes = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    const Correlation<S> part = of_taps_inside(parts[i]);
    const int64_t storing = kOutput * part.rows * part.outputs;
    const int64_t always = storing + packing_cost(part);
    cost.together += always;
    cost.apart += always;
    if (part.taps == 0) {
      cost.apart += storing;
      continue;
    }
    const CostsOfPacked packed = costs_of_packed(part, kUsualBatch);
    cost.apart += packed.least();
    cost.together += packed.positions.rest;
    copying += packed.positions.copying;
    ++classes;
  }
  cost.together =
      classes > 0 && part_count <= kMostTogether ? cost.together + copying / classes : kNever;
  return cost;
}

// Their price is the least certain: they must win by a sixteenth.
inline bool taps_pay(int64_t taps, int64_t others) { return 17 * taps < 16 * others; }

// How all classes of positions of one grad_input go together: by taps, windows or positions. Each
// goes on its own for `rows`.
template <class S>
Kernel kernel_of_classes(const Correlation<S>* parts, int64_t part_count,
                         const CostOfClasses& direct) {
  int64_t weights = 0;
  for (int64_t i = 0; i < part_count; ++i)
    weights += parts[i].rows * of_taps_inside(parts[i]).products();
  const int64_t taps = cost_of_taps_first(parts, part_count);
  const int64_t others = smaller(direct.apart, direct.together);
  // Gradients are hardly ever of a lone sample, which windows are for. Measured, as is the rest.
  constexpr int64_t kTenths = kDepth<Operand<S>> > 1 ? 20 : 11;
  const int64_t windows = cost_into_windows(parts, part_count) / 10 * kTenths;
  if (sums_of_rows_pay<S>(weights, windows, smaller(taps, others))) return Kernel::windows;
  if (taps_pay(taps, others)) return Kernel::taps;
  return 15 * direct.together < 16 * direct.apart ? Kernel::positions : Kernel::rows;
}

template <class S>
Kernel direct_correlation_kernel(const Correlation<S>& p) {
  if (p.out_step == 1 &&
      (is_by_groups(p) || has_few_channels(p.rows, p.channels, p.taps) || is_sum_of_rows(p)))
    return Kernel::depthwise;
  if (taps_inside(p, 0, p.outputs).count() == 0)
    return Kernel::rows;  // which multiply nothing then
  const CostsOfPacked usual = costs_of_packed(p, kUsualBatch);
  if (p.out_step == 1) {
    const int64_t taps = cost_of_taps_first(&p, 1), packing = packing_cost(p);
    const int64_t others = smaller(taps, usual.least() + packing);
    const int64_t sums = cost_into_windows(&p, 1);
    if (cost_of_windows(p) <= others ||
        (sums < kNever && sums_of_rows_pay<S>(p.rows * p.products(), sums, others)))
      return Kernel::windows;
    if (taps_pay(taps, usual.least() + packing)) return Kernel::taps;
  }
  // By positions, phases of a stride come one behind the other, and taps do not where they are more
  // than channels: that shows in the bits, and must not depend on the batch.
  const bool same_bits = p.in_step == 1 || p.taps <= divide_up(p.channels, kDepth<Operand<S>>);
  const CostsOfPacked costs = p.batch == kUsualBatch ? usual : costs_of_packed(p, p.batch);
  const CostsOfPacked& by = same_bits ? costs : usual;
  // What rows read comes from far; positions and joined samples stage it in the order of memory.
  const int64_t positions = by.positions.all();
  if (positions <= by.joined && 8 * positions <= 9 * by.rows) return Kernel::positions;
  return 8 * costs.joined <= 9 * costs.rows ? Kernel::joined : Kernel::rows;
}

// F(4, r) errs a few times as much as a direct sum, and by a share of inputs that an output does
// not read, however large these are.
template <class S>
bool exact_enough_for_four(const Correlation<S>& p) {
  return sizeof(S) == 4 && p.precision == Precision::tf32;
}

template <class S>
Kernel correlation_kernel(const Correlation<S>& p) {
  const int64_t spacing = p.taps > 1 ? p.tap_offset[1] - p.tap_offset[0] : 0;
  const int64_t dilation = larger(spacing, -spacing);
  if (kMayFilter<S> && dilation > 0 && p.in_step == 1 && p.out_step == 1 &&
      p.outputs >= kFewestFastOutputs) {
    const int64_t two = fast_correlation_cost<FastFilter<2>>(p, dilation);
    const int64_t four =
        exact_enough_for_four(p) ? fast_correlation_cost<FastFilter<4>>(p, dilation) : two;
    // A twentieth of the direct sum's cost is not worth the change.
    if (20 * smaller(two, four) < 19 * direct_correlation_cost(p))
      return four < two ? Kernel::fast_filter_4 : Kernel::fast_filter_2;
  }
  return direct_correlation_kernel(p);
}

// All classes of positions of one grad_input, or a correlation.
template <class S>
void correlate_together(const Correlation<S>* parts, int64_t part_count, Kernel kernel) {
  // A lone channel has no other to share a pair with.
  const bool lone = parts[0].channels == 1;
  switch (kernel) {
    case Kernel::windows:
      return correlate_into_windows(parts, part_count);
    case Kernel::taps:
      return lone ? correlate_by_taps<Compute<S>>(parts, part_count)
                  : correlate_by_taps<Operand<S>>(parts, part_count);
    default:
      return lone ? correlate_vectors_of_positions<Compute<S>>(parts, part_count)
                  : correlate_vectors_of_positions<Operand<S>>(parts, part_count);
  }
}

template <class S>
void correlate_directly(const Correlation<S>& p, Kernel kernel) {
  const bool lone = p.channels == 1;
  switch (kernel) {
    case Kernel::depthwise:
      return is_by_groups(p) ? correlate_groups(&p, 1, p.out) : correlate_depthwise(p);
    case Kernel::windows:
      if (cost_of_windows(p) <= cost_into_windows(&p, 1)) return correlate_windows(p);
      return correlate_together(&p, 1, kernel);
    case Kernel::taps:
    case Kernel::positions:
      return correlate_together(&p, 1, kernel);
    case Kernel::joined:
      return lone ? correlate_joined<Compute<S>>(p) : correlate_joined<Operand<S>>(p);
    default:
      return lone ? correlate_vectors_of_rows<Compute<S>>(p)
                  : correlate_vectors_of_rows<Operand<S>>(p);
  }
}

template <class S>
void correlate_directly(const Correlation<S>& p) {
  correlate_directly(p, direct_correlation_kernel(p));
}

template <class S>
void correlate(const Correlation<S>& p) {
  if (p.batch == 0 || p.outputs <= 0) return;
  const Kernel kernel = correlation_kernel(p);
  if constexpr (kMayFilter<S>) {
    if (kernel == Kernel::fast_filter_2) return correlate_fast<FastFilter<2>>(p);
    if (kernel == Kernel::fast_filter_4) return correlate_fast<FastFilter<4>>(p);
  }
  correlate_directly(p, kernel);
}
