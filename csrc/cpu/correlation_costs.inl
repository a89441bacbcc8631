// What the direct kernels of a correlation cost, in multiply-adds of vectors, for one group and, if
// not said otherwise, one sample. The prices of copies, tiles and sums were fitted to the times of
// 30,000 random problems.

// Of what a kernel is not for; twenty times as much is still a number.
constexpr int64_t kNever = INT64_MAX / 64;
// The batch must not show in the bits, which kernels of the same ones share.
constexpr int64_t kUsualBatch = 8;

// Of one channel: a stream to begin, and its vectors to copy. Streams of nothing but padding are
// left out.
template <class S>
int64_t staging_cost(const Correlation<S>& p, const Staging& plan, int64_t start, int64_t vector) {
  return smaller(plan.streams, taps_inside(p, 0, p.outputs).count()) *
         (start + vector * divide_up(plan.width, kLanes<Compute<S>>));
}

// The arrays of a plan that is only looked at.
template <class S>
Staging staging_of(const Correlation<S>& p) {
  Staging plan;
  plan.stream_start = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  plan.tap_start = plan.stream_start + p.taps;
  return plan;
}

// Of one channel and row: products in strips that leave out the taps of which all of them read
// nothing but padding: on average `more` outputs than read a part of the input are multiplied.
template <class S>
int64_t products_in_strips(const Correlation<S>& p, int64_t more) {
  int64_t products = 0;
  for (int64_t j = 0; j < p.taps; ++j) {
    const int64_t inside = outputs_inside(p, j).count();
    if (inside > 0) products += smaller(p.outputs, inside + more);
  }
  return products;
}

// Of one channel and row: how many vectors of outputs are multiplied in strips of `width` vectors
// that leave out the taps of which all of them read nothing but padding.
template <class S>
int64_t vectors_in_strips(const Correlation<S>& p, int64_t width) {
  constexpr int64_t W = kLanes<Compute<S>>;
  const int64_t strip = width * W, vectors = divide_up(p.outputs, W);
  int64_t multiplied = 0;
  for (int64_t j = 0; j < p.taps; ++j) {
    const OutputRange inside = outputs_inside(p, j);
    if (inside.count() > 0)
      multiplied +=
          smaller(vectors, width * ((inside.last - 1) / strip - inside.first / strip + 1));
  }
  return multiplied;
}

// What tiles pay that read weights from beyond the L1 cache without asking for them ahead.
template <class S>
int64_t cost_of_far_weights(const Correlation<S>& p, int64_t taps, int64_t tiles) {
  using T = Operand<S>;
  constexpr int64_t kNearBytes = 128 * 1024, kVector = 12;
  const int64_t weights = p.rows * divide_up(p.channels, kDepth<T>) * taps;
  const int64_t far = larger(0, weights - kNearBytes / static_cast<int64_t>(sizeof(T)));
  return kVector * tiles * (far / kLanes<T>);
}

struct CostByPositions {
  int64_t copying;  // which classes of positions that go together do once
  int64_t rest;
  int64_t all() const { return copying + rest; }
};

template <class S>
CostByPositions cost_by_positions(const Correlation<S>& p, int64_t batch) {
  using T = Operand<S>;
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kTile = 100;
  const BlockShape shape = priced_shape(p);
  const int64_t stream = p.in_step == 1 ? 48 : 36;
  const int64_t vector = p.in_step == 1 ? 4 : p.in_step <= 4 ? 6 : 8;  // gathered with a step
  const int64_t output = p.out_step == 1 ? 7 : 2;  // some are put in their turn elsewhere
  const int64_t vectors = divide_up(p.outputs, W);
  const int64_t products =
      larger(taps_inside(p, 0, p.outputs).count(), vectors_in_strips(p, shape.vectors)) *
      (p.rows == 1 ? 2 : 1);  // a lone row waits for its sums
  Staging staging = staging_of(p);
  const int64_t strips = plan_tile<T>(p, shape, batch, 1, p.taps, vectors, staging).strips;
  const int64_t tiles = divide_up(vectors, strips * shape.vectors);
  const int64_t copying = is_read_in_place<T>(p, shape) ? divide_up(vectors, tiles)
                                                        : staging_cost(p, staging, stream, vector);
  return {tiles * p.channels * copying,
          p.rows * divide_up(p.channels, kDepth<T>) * products + output * p.rows * vectors +
              kTile * divide_up(p.rows, kMaxRows) * divide_up(vectors, kMaxVectors)};
}

// In a batch, strips of short samples leave out more taps than those of one.
template <class S>
int64_t cost_by_rows(const Correlation<S>& p, int64_t batch) {
  using T = Operand<S>;
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kStream = 10, kCopy = 10, kLine = 1, kOutput = 9, kTile = 54;
  const int64_t vectors = divide_up(p.rows, W);
  const int64_t channels = divide_up(p.channels, kDepth<T>);
  int64_t copying = kLine * divide_up(p.outputs * p.in_step, W);  // or reading in place
  int64_t samples = 1;
  if (!std::is_same_v<S, Compute<S>> || !reads_no_padding(p)) {
    Staging staging = staging_of(p);
    plan_for_scalars(staging, p.outputs, p.in_step, p.tap_offset, p.taps, W);
    copying = staging_cost(p, staging, kStream, kCopy);
    samples = smaller(larger(1, batch), samples_of_rows(batch, p.outputs,
                                                        static_cast<int64_t>(sizeof(T)) * channels *
                                                            staging.channel_pitch()));
  }
  return vectors * channels * products_in_strips(p, kMaxRows / (2 * samples)) +
         p.channels * copying + kOutput * vectors * p.outputs +
         kTile * divide_up(p.outputs, kMaxRows) * divide_up(vectors, kMaxVectors);
}

constexpr int64_t kMostJoinedVectors = 8;  // longer samples fill their vectors alone

// Of `batch` samples.
template <class S>
int64_t cost_of_joined(const Correlation<S>& p, int64_t batch) {
  constexpr int W = kLanes<Compute<S>>;
  if (p.outputs > kMostJoinedVectors * W) return kNever;
  constexpr int64_t kPiece = 3, kCopy = 5, kStream = 32, kGather = 18, kOutput = 3, kSum = 8;
  const int64_t vectors = divide_up(batch * p.outputs, W);
  int64_t gathering = 0;
  if (p.in_step * p.in_position > 1) {
    Staging staging = staging_of(p);
    plan_for_vectors(staging, p.outputs, p.in_step, p.tap_offset, p.taps, W);
    gathering = staging_cost(p, staging, kStream, kGather);
  }
  return p.taps * (p.rows * divide_up(p.channels, kDepth<Operand<S>>) * vectors +
                   p.channels * (kPiece * batch + kCopy * vectors)) +
         batch * p.channels * gathering + p.rows * (kOutput * batch + kSum * vectors) +
         cost_of_far_weights(p, taps_inside(p, 0, p.outputs).count(),
                             divide_up(vectors, kJoinedVectors));
}

// The kernels that pack weights, per sample, but for packing, which is the same for all.
struct CostsOfPacked {
  CostByPositions positions;
  int64_t rows, joined;
  int64_t least() const { return smaller(positions.all(), smaller(rows, joined)); }
};
template <class S>
CostsOfPacked costs_of_packed(const Correlation<S>& p, int64_t batch) {
  return {cost_by_positions(p, batch), cost_by_rows(p, batch), cost_of_joined(p, batch) / batch};
}

// A sample's share of packing weights.
template <class S>
int64_t packing_cost(const Correlation<S>& p) {
  constexpr int64_t kElement = 5, kFewTurned = 8;  // of one channel and row
  const int64_t taps = taps_inside(p, 0, p.outputs).count();
  const bool all = natural_weight(p) && 2 * taps > p.taps;
  const int64_t cost = all                  ? p.taps
                       : is_turned(p, taps) ? larger(taps, kFewTurned)
                                            : kElement * taps;
  constexpr int64_t kVectors = sizeof(Compute<S>) / sizeof(float);  // which doubles fill twice
  return cost * kVectors * p.rows * p.channels / kUsualBatch;
}

// Where inputs are multiplied by taps first: of a correlation, or of all classes of positions.
template <class S>
int64_t cost_of_taps_first(const Correlation<S>* parts, int64_t part_count) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int64_t kProduct = 5, kSample = 3, kCopy = 3, kBlock = 3;
  constexpr int64_t kRow = 20, kAddend = 20;
  const Correlation<S>& p = parts[0];
  if (p.length == 0 || p.in_step != 1) return kNever;
  if (part_count == 1 && p.taps == 1 && p.rows > 2) return kNever;
  const TapReach reach = tap_reach(parts, part_count);
  if (reach.count() == 0) return kNever;
  const int64_t columns = p.rows * reach.count(), blocks = divide_up(columns, kMaxRows);
  const bool is_long = p.length > kTapPositions;
  const int64_t output = p.out_step == 1 ? 9 : 13;  // of classes: put in their turn
  const int64_t adding = is_long ? 20 : 4;  // to outputs, or to sums that wait for the next inputs
  const int64_t vectors =
      is_long ? kUsualBatch * divide_up(p.length, W) : divide_up(kUsualBatch * p.length, W);
  // Classes of many taps have more weights and products than stay close.
  const int64_t products = is_long && p.out_step > 1         ? 5 * columns / 8
                           : is_long && priced_shape(p).tall ? 3 * columns / 4
                                                             : columns / 2;
  int64_t of_all =
      vectors * (divide_up(p.channels, kDepth<Operand<S>>) * (products + kBlock * blocks) +
                 kCopy * p.channels + kProduct * columns);
  const bool in_turn = reach.count() >= kFewestTapsInPlace || weight_is_by_rows(p, reach);
  const int64_t packing = in_turn ? 4 : 8;
  if (!weight_may_stay<Operand<S>>(p, reach)) of_all += packing * p.channels * columns;
  of_all += cost_of_far_weights(p, reach.count(), divide_up(vectors, kJoinedVectors));
  int64_t cost = of_all / kUsualBatch + kRow * p.rows + (is_long ? 0 : kSample * p.channels);
  for (int64_t i = 0; i < part_count; ++i) {
    int64_t addends = 0;  // vectors
    for (int64_t j = 0; j < parts[i].taps; ++j)
      addends += divide_up(outputs_inside(parts[i], j).count(), W);
    cost +=
        addends * (adding * p.rows + kAddend) + output * p.rows * divide_up(parts[i].outputs, W);
  }
  // The other kernels wait for loads, where these do not outpace the products of wide vectors, and
  // take a quarter longer; but for classes of many rows. Measured.
  constexpr int64_t kFewRows = 16;
  const bool others_wait = CONVLM_VECTOR_BYTES == 64 && !loads_outpace_products() && is_long &&
                           (p.out_step == 1 || p.rows <= kFewRows);
  return others_wait ? cost / 5 * 4 : cost;
}
