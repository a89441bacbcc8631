// Which of several equivalent kernels a geometry gets. The number of threads has no say, and the
// batch only where it is summed over, or where both kernels give the same bits: they must not show
// in them.

// Shorter rows would leave most of a vector of tiles empty.
constexpr int64_t kFewestFastOutputs = 64;

// float64 is left to the direct sum, whose error is what one asks for with it. Dot products of
// pairs halve the work already, which is the most that a fast filter, in float32, would save.
template <class S>
constexpr bool kMayFilter = sizeof(S) < sizeof(double) && kDepth<Operand<S>> == 1;

// Samples whose outputs are less than a strip of the core, or leave an eighth of the lanes of their
// vectors of positions empty. Of fewer than half a vector, the copying alone would cost more than
// is saved.
template <class S>
bool is_short(int64_t outputs) {
  constexpr int W = kLanes<Compute<S>>;
  return 2 * outputs >= W &&
         (outputs < kMaxVectors * W || 8 * divide_up(outputs, W) * W > 9 * outputs);
}
constexpr int64_t kFewestJoinedRows = 8;

// What each product of all samples costs where they are joined, in multiply-adds of vectors. A copy
// of a vector costs as much as some of them, and staging a phase of a strided row, whose taps share
// it, as many more. Both were measured.
inline int64_t joined_cost(int64_t batch, int64_t vectors, int64_t rows, int64_t step,
                           int64_t taps) {
  constexpr int64_t kCopy = 4, kPhase = 32;
  return vectors * (rows + kCopy) + (step == 1 ? 0 : batch * kPhase * smaller(step, taps) / taps);
}

// ---- forward and grad_input ----

// What a fast filter costs, in multiply-adds: the products, and the making of components and
// outputs, whose prices were measured. Copies make them dearer.
template <class F, class S>
int64_t fast_correlation_cost(const Correlation<S>& p, int64_t dilation) {
  using T = Compute<S>;
  const FastTiling<F> t(p.outputs, p.taps, dilation);
  const bool copies =
      Stretches<F>(t, kFastTiles, kLanes<T>).whole_blocks && !cut_in_registers<T>(dilation);
  const int64_t transforms = 6 * t.slots * p.channels + 14 * F::kOutputs * p.rows;
  return t.tiles * (t.slots * p.channels * p.rows + (copies ? 3 : 1) * transforms) -
         slots_of_padding(p, t) * p.channels * p.rows;
}

// What the direct sum costs, with its staging and storing.
template <class S>
int64_t direct_correlation_cost(const Correlation<S>& p) {
  return products_inside(p) * p.channels * p.rows + p.outputs * (3 * p.channels + 6 * p.rows);
}

// Products of one channel and row for one sample, where outputs go in strips that leave out the
// taps of which all of them read nothing but padding: on average `more` outputs than read a part of
// the input are multiplied by a tap.
template <class S>
int64_t products_in_strips(const Correlation<S>& p, int64_t more) {
  int64_t products = 0;
  for (int64_t j = 0; j < p.taps; ++j) {
    const int64_t inside =
        smaller(p.outputs, p.length - p.tap_offset[j]) - larger(0, -p.tap_offset[j]);
    if (inside > 0) products += smaller(p.outputs, inside + more);
  }
  return products;
}

// Few rows per channel leave nothing to block over; past one chain the sums need their tile.
inline bool has_few_channels(int64_t rows, int64_t channels, int64_t taps) {
  return (channels == 1 ? rows <= 4 : rows == 1 && channels <= 4) &&
         channels * taps <= kGradWeightChain;
}

// Short rows of many groups of few channels: groups fill vectors, positions would not. Measured.
// A sum is one chain.
template <class S>
bool is_by_groups(int64_t groups, int64_t rows, int64_t channels, int64_t taps, int64_t outputs,
                  int64_t length) {
  constexpr int W = kLanes<Compute<S>>;
  const bool few = (rows * channels <= 16 && channels * taps <= kChain) ||
                   has_few_channels(rows, channels, taps);
  return few && 2 * groups >= W && (8 * outputs + length) * divide_up(groups, W) <= 32 * groups;
}
template <template <class> class Problem, class S>
bool is_by_groups(const Problem<S>& p) {
  return is_by_groups<S>(p.groups, p.rows, p.channels, p.taps, p.outputs, p.length);
}

// grad_input of either, with a stride.
template <class S>
bool is_by_groups(const Conv1dGeometry& g) {
  return g.batch > 0 && g.length > 0 && g.stride > 1 &&
         is_by_groups<S>(g.groups, g.in_channels_per_group(), g.out_channels_per_group(),
                         g.kernel_size, divide_up(g.length, g.stride), g.length);
}
inline bool is_interleaved(const Conv1dGeometry& g) {
  return g.batch > 0 && g.stride > 1 && g.length >= g.stride && g.in_channels_per_group() == 1 &&
         has_few_channels(1, g.out_channels_per_group(), g.kernel_size);
}

// Vectors of positions, or of rows. Both round up to whole vectors: the one that wastes less.
// Vectors of positions need no turning of the output, so they win ties and near-ties.
template <class S>
Kernel kernel_of_vectors(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  int64_t by_positions = divide_up(p.outputs, W) * p.rows;
  int64_t by_rows = divide_up(p.rows, W) * p.outputs;
  const bool is_joined = is_short<S>(p.outputs) && p.rows >= kFewestJoinedRows;
  // Rows read inputs in place, where positions have to stage each phase of a stride.
  constexpr int64_t kPhase = 32, kPhaseVector = 4;
  if (std::is_same_v<S, Compute<S>> && p.in_step > 1 && reads_no_padding(p)) {
    by_positions = by_positions * p.taps +
                   smaller(p.taps, p.in_step) * (kPhase + kPhaseVector * divide_up(p.outputs, W));
    by_rows *= p.taps;
  }
  return !is_joined && by_positions * 8 <= by_rows * 9 ? Kernel::positions : Kernel::rows;
}

// Whether to multiply by taps first. Costs of one sample, in multiply-adds; the constants were
// fitted to the times of 2,500 random problems.
template <class S>
bool taps_first_pays(const Correlation<S>* parts, int64_t part_count) {
  constexpr int W = kLanes<Compute<S>>, kDeep = kDepth<Operand<S>>;
  // Of a product to its output, or to sums that wait for the next inputs.
  const int64_t adding = parts[0].length <= kTapPositions ? 12 : 40;
  constexpr int64_t kJoiningRow = 128;  // a copy of an input's row
  constexpr int64_t kStagedRow = 512;   // and with padding, of a vector of which:
  constexpr int64_t kStagedElement = 4;
  constexpr int64_t kPacking = 16, kTurning = 4;  // of a weight, shared by a few samples
  constexpr int64_t kStoredApart = 16;            // an output that is not next to the others
  const Correlation<S>& p = parts[0];
  if (p.length == 0 || p.in_step != 1) return false;
  if (part_count == 1 && p.taps == 1 && p.rows > 2) return false;
  int64_t with_taps = 0;  // all classes have one weight, but some no tap of it
  while (with_taps < part_count && parts[with_taps].taps == 0) ++with_taps;
  if (with_taps == part_count) return false;
  const TapReach reach = tap_reach(parts, part_count);
  const int64_t columns = p.rows * reach.count(), weights = p.channels * columns;
  // Few columns wait for each other's sums.
  int64_t taps_first = larger(p.length, W / 2) * (p.channels / kDeep + adding) *
                           (columns + larger(0, kMaxRows - columns) / 4) +
                       p.channels * (p.length + kJoiningRow);
  if (!weight_may_stay<Operand<S>>(p, reach)) taps_first += kPacking * weights;

  int64_t sums = (is_turned(parts[with_taps], reach.count()) ? kTurning : kPacking) * weights;
  for (int64_t i = 0; i < part_count; ++i) {
    const Correlation<S>& q = parts[i];
    if (part_count > 1) sums += kStoredApart * q.rows * q.outputs;
    if (q.taps == 0) continue;
    const TapRange taps = taps_inside(q, 0, q.outputs);
    const int64_t products =
        kernel_of_vectors(q) == Kernel::positions
            ? products_in_strips(q, kMaxVectors * W * 3 / 2) *
                  larger(3 * q.rows + 6, 4 * q.rows + 1) / 4
            : smaller(products_in_strips(q, kMaxRows / 2) * divide_up(q.rows, W) * W,
                      q.taps * q.outputs * (q.rows + 4));
    const int64_t spread = q.tap_offset[q.taps - 1] - q.tap_offset[0];
    const int64_t together = q.outputs + larger(spread, -spread);
    const int64_t apart = taps.count() * q.outputs;
    const int64_t staged = together <= apart ? kStagedElement * together + kStagedRow
                                             : kStagedElement * apart + kStagedRow * taps.count();
    sums += (products / kDeep + staged) * q.channels;
  }
  return taps_first < sums;
}

template <class S>
Kernel direct_correlation_kernel(const Correlation<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.out_step == 1 && (is_by_groups(p) || has_few_channels(p.rows, p.channels, p.taps)))
    return Kernel::depthwise;
  if (p.out_step == 1 && taps_first_pays(&p, 1)) return Kernel::taps;
  const Kernel direct = kernel_of_vectors(p);
  if (!is_short<S>(p.outputs) || p.rows < kFewestJoinedRows) return direct;
  // These two add up in the same order, and rows leave out the products of most padding.
  const int64_t joined = joined_cost(p.batch, divide_up(p.batch * p.outputs, W), p.rows,
                                     p.in_step * p.in_position, p.taps);
  const int64_t all = p.taps * p.outputs;
  const int64_t taken = smaller(all, products_inside(p) + p.taps * kMaxRows / 2);
  return 8 * joined * all <= 9 * p.batch * divide_up(p.rows, W) * p.outputs * taken ? Kernel::joined
                                                                                    : Kernel::rows;
}

// F(4, 3) errs a few times as much as a direct sum, and by a share of inputs that an output does
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

template <class S>
void correlate_taps_first(const Correlation<S>* parts, int64_t part_count) {
  return parts[0].channels == 1 ? correlate_by_taps<Compute<S>>(parts, part_count)
                                : correlate_by_taps<Operand<S>>(parts, part_count);
}

template <class S>
void correlate_directly(const Correlation<S>& p, Kernel kernel) {
  // A lone channel has no other to share a pair with.
  const bool lone = p.channels == 1;
  switch (kernel) {
    case Kernel::depthwise:
      return is_by_groups(p) ? correlate_groups(&p, 1, p.out) : correlate_depthwise(p);
    case Kernel::taps:
      return correlate_taps_first(&p, 1);
    case Kernel::positions:
      return lone ? correlate_vectors_of_positions<Compute<S>>(&p, 1)
                  : correlate_vectors_of_positions<Operand<S>>(&p, 1);
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

// Classes of positions of one grad_input, which differ in taps and outputs alone.
template <class S>
void correlate(const Correlation<S>* parts, int64_t count) {
  bool together = count > 1 && parts[0].batch > 0 && parts[0].channels > 1;
  for (int64_t i = 0; i < count; ++i) together &= correlation_kernel(parts[i]) == Kernel::positions;
  if (together) return correlate_vectors_of_positions<Operand<S>>(parts, count);
  for (int64_t i = 0; i < count; ++i) correlate(parts[i]);
}
