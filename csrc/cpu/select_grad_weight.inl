// Which kernel grad_weight gets, and when both gradients share one.

// F(4, r) errs less than oneDNN's sums of so many positions, but more than those of many taps.
constexpr int64_t kFewestPositionsOfFour = 2048;
constexpr int64_t kMostTapsOfFour = 8;
// Samples are joined, so fewer fill a vector of tiles than forward.
constexpr int64_t kFewestFastGradOutputs = 32;

template <class S>
bool exact_enough_for_four(const WeightGradient<S>& p) {
  return sizeof(S) == 2 || p.precision == Precision::tf32 ||
         (p.taps <= kMostTapsOfFour && p.outputs >= kFewestFastOutputs &&
          p.batch * p.outputs >= kFewestPositionsOfFour);
}

// What the kernels cost for one group, in multiply-adds of vectors. The prices of all but the
// products were fitted to the times of 19,000 random problems.

template <class S>
int64_t cost_by_positions(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kFifths = 6, kLaneSums = 4, kProduct = 8, kGather = 9, kRow = 29, kPiece = 16;
  const int64_t vectors = divide_up(p.outputs, W * kDepth<Operand<S>>);
  const int64_t streams = p.stride == 1 ? 0 : smaller(p.taps, p.stride);
  const int64_t pieces =
      plan_units(p.batch, p.outputs, kGradWeightChain * W, p.groups * p.rows * p.products(), 1)
          .pieces;
  return p.batch *
             (p.rows * p.products() * (kFifths * vectors + 5 * kLaneSums) / 5 +
              kProduct * p.products() + streams * p.channels * kGather * vectors + kRow * p.rows) +
         kPiece * pieces * p.rows * p.products();
}

template <class S>
int64_t cost_by_rows(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>, kDeep = kDepth<Operand<S>>;
  constexpr int64_t kStream = 9, kCopy = 5, kTurned = 7, kRow = 5, kTile = 13, kPiece = 24;
  const int64_t vectors = divide_up(p.rows, W);
  const int64_t spread = p.taps > 1 ? p.tap_offset[p.taps - 1] - p.tap_offset[0] : 0;
  const int64_t staged = smaller(p.taps * p.outputs, p.outputs * p.stride + spread);
  const int64_t pieces = plan_units(p.batch, p.outputs, kGradWeightChain * kDeep,
                                    p.groups * vectors * W * (p.products() + 1), kDeep)
                             .pieces;
  const int64_t depths = divide_up(p.outputs, kDeep);
  return p.batch * (vectors * p.products() * depths +
                    p.channels * (kStream + kCopy * divide_up(staged, W)) +
                    kTurned * vectors * depths + kRow * p.rows +
                    kTile * divide_up(p.products(), kMaxRows) * divide_up(vectors, kMaxVectors)) +
         kPiece * pieces * vectors * p.products();
}

template <class S>
int64_t cost_of_joined(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>, kDeep = kDepth<Operand<S>>;
  constexpr int64_t kPiece = 5, kCopy = 6, kStream = 7, kGather = 8, kRow = 5, kSum = 8;
  constexpr int64_t kLaneSums = 14;
  // Tiles of dot products fill only the registers of AVX-512.
  constexpr int64_t kEighths = CONVLM_VECTOR_BYTES == 64 ? 8 : 9;
  if (p.outputs > kMostJoinedVectors * W) return kNever;
  const int64_t vectors = divide_up(divide_up(p.batch * p.outputs, W), kDeep);
  const int64_t streams = p.stride * p.x_position == 1 ? 0 : smaller(p.taps, p.stride);
  return p.rows * p.products() * vectors * kEighths / 8 +
         p.products() * (kPiece * p.batch + kCopy * vectors) +
         p.batch * streams * p.channels * (kStream + kGather * divide_up(p.outputs, W * kDeep)) +
         p.rows * (kRow * p.batch + kSum * vectors + kLaneSums * p.products());
}

template <class S>
int64_t cost_of_windows(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kScalar = 3, kTile = 110, kSample = 60, kAll = 3000;
  constexpr int64_t kCached = 4 << 20, kFar = 8;  // bytes, and what a vector costs past them
  const int64_t positions = p.batch * p.outputs;
  if (p.products() < W || positions > kGradWeightChain) return kNever;
  const int64_t vectors = divide_up(p.products(), W), blocks = divide_up(p.rows, kMaxRows);
  const bool far = positions * p.products() * static_cast<int64_t>(sizeof(Compute<S>)) > kCached;
  return (p.rows + blocks * (far ? kFar : 1)) * vectors * positions +
         p.rows * (vectors + kScalar * positions) +
         p.batch * (kSample + cost_to_stage(windows_of(p, 0))) +
         kTile * blocks * divide_up(vectors, kMaxVectors) + kAll;
}

template <class F, class S>
int64_t cost_of_fast(const WeightGradient<S>& p) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kComponent = 9, kCopied = 14;  // half a price
  constexpr int64_t kTwelfths = 13, kTurned = 8, kStretch = 70, kStrip = 108, kTap = 36;
  const FastGradWeightPlan<F> plan = plan_fast_grad_weight<F>(p);
  const FastTiling<F>& t = plan.tiling;
  const Stretches<F>& stretches = plan.stretches;
  const bool copies = copies_phases<Compute<S>>(t, stretches);
  // A lone channel's sums wait for one another.
  const int64_t waits = p.channels == 1 ? 3 * t.slots / 4 : 0;
  const int64_t products = kTwelfths * t.slots * p.channels / 12 + waits;
  return p.batch * (t.tiles * plan.vectors * (products + kTurned * F::kComponents) +
                    stretches.count * p.channels *
                        (kStretch + divide_up(stretches.max_tiles, W) * t.slots *
                                        (copies ? kCopied : kComponent) / 2)) +
         kStrip * plan.units * plan.panels * t.slots * divide_up(p.channels, kMaxRows) +
         kTap * plan.vectors * p.products();
}

struct DirectGradWeight {
  Kernel kernel;
  int64_t cost;
};

template <class S>
DirectGradWeight direct_grad_weight(const WeightGradient<S>& p) {
  if (is_by_groups(p)) return {Kernel::depthwise, 0};
  const int64_t positions = cost_by_positions(p), rows = cost_by_rows(p);
  const int64_t windows = cost_of_windows(p), joined = cost_of_joined(p);
  const int64_t least = smaller(windows, smaller(joined, smaller(positions, rows)));
  if (windows == least) return {Kernel::windows, least};
  if (joined == least) return {Kernel::joined, least};
  return {positions < rows ? Kernel::positions : Kernel::rows, least};
}

template <class S>
Kernel direct_grad_weight_kernel(const WeightGradient<S>& p) {
  return direct_grad_weight(p).kernel;
}

template <class S>
Kernel grad_weight_kernel(const WeightGradient<S>& p) {
  const DirectGradWeight direct = direct_grad_weight(p);
  if constexpr (kMayFilter<S>)
    if (p.taps > 1 && p.tap_offset[1] > p.tap_offset[0] && p.stride == 1 &&
        p.outputs >= kFewestFastGradOutputs) {
      const int64_t two = cost_of_fast<FastFilter<2>>(p);
      const int64_t four = exact_enough_for_four(p) ? cost_of_fast<FastFilter<4>>(p) : kNever;
      if (smaller(two, four) < direct.cost)
        return four < two ? Kernel::fast_filter_4 : Kernel::fast_filter_2;
    }
  return direct.kernel;
}

template <class S>
void weight_gradient_directly(const WeightGradient<S>& p, Kernel kernel) {
  switch (kernel) {
    case Kernel::depthwise:
      return grad_weight_groups(p);
    case Kernel::positions:
      return grad_weight_vectors_of_positions(p);
    case Kernel::windows:
      return grad_weight_windows(p);
    case Kernel::joined:
      return grad_weight_joined(p);
    default:
      return grad_weight_vectors_of_rows(p);
  }
}

template <class S>
void weight_gradient_directly(const WeightGradient<S>& p) {
  weight_gradient_directly(p, direct_grad_weight_kernel(p));
}

template <class S>
void weight_gradient_by_kernel(const WeightGradient<S>& p) {
  const Kernel kernel = grad_weight_kernel(p);
  if constexpr (kMayFilter<S>) {
    if (kernel == Kernel::fast_filter_2) return grad_weight_fast<FastFilter<2>>(p);
    if (kernel == Kernel::fast_filter_4) return grad_weight_fast<FastFilter<4>>(p);
  }
  weight_gradient_directly(p, kernel);
}

template <class S>
void weight_gradient(const WeightGradient<S>& p) {
  if (p.batch == 0) {
    for (int64_t i = 0; i < p.groups * p.rows * p.products(); ++i)
      from_compute(Compute<S>(0), p.grad_weight[i]);
    if (p.grad_bias != nullptr)
      for (int64_t i = 0; i < p.groups * p.rows; ++i) from_compute(Compute<S>(0), p.grad_bias[i]);
    return;
  }
  const WeightGradient<S> inside = of_taps_inside(p);
  constexpr int64_t kSpread = 4, kZeros = 8;  // to write an element once more, or so many zeros
  if (inside.taps < p.taps && grad_weight_kernel(inside) == Kernel::windows &&
      cost_of_windows(p) <=
          cost_of_windows(inside) + p.rows * (kSpread * inside.products() + p.products() / kZeros))
    return grad_weight_windows(p);
  sum_taps_inside(p, inside,
                  [](const WeightGradient<S>& some) { weight_gradient_by_kernel(some); });
}

// ---- both gradients ----

// Only what is read in place shares it.
template <class S>
bool gradients_share_a_pass(const Correlation<S>& p, const WeightGradient<S>& q) {
  const int64_t spread = p.tap_offset[0] - p.tap_offset[p.taps - 1];
  return p.batch > 0 && p.rows == 1 && p.channels == 1 && p.taps <= kMaxSharedTaps &&
         q.stride == 1 && p.in_position == 1 && q.x_position == 1 &&
         p.length - spread > (SlidingInput::kFewestInPlace + 1) * kLanes<Compute<S>> &&
         correlation_kernel(p) == Kernel::depthwise && grad_weight_kernel(q) == Kernel::positions;
}
