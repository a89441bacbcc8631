// The tiles of the correlation with vectors of positions: what is staged, and summed, at a time.

// The shape of the core's tiles: few rows need several vectors each, or they wait for their sums,
// and of few products each tile should have many.
template <class S>
bool may_be_tall(const Correlation<S>& p) {
  constexpr int64_t kFewProducts = 32;
  return p.rows > kMaxRows && p.products() > kFewProducts;
}
template <class S>
BlockShape tile_shape(const Correlation<S>& p) {
  return BlockShape(may_be_tall(p) && loads_outpace_products());
}
// Prices were fitted where tall blocks pay.
template <class S>
BlockShape priced_shape(const Correlation<S>& p) {
  return BlockShape(may_be_tall(p));
}

// Whether inputs are read where they lie: a copy costs what few rows multiply. Vectors of a lone
// strip may be longer than a row.
template <class T, class S>
bool is_read_in_place(const Correlation<S>& p, const BlockShape& shape) {
  constexpr int64_t kFewProducts = 32;
  return std::is_same_v<T, S> && p.rows * p.taps <= kFewProducts && p.in_step == 1 &&
         p.in_position == 1 && p.outputs > shape.vectors * kLanes<T> && reads_no_padding(p);
}

// A tile of positions is so many strips, each as wide as the core, and staged a piece of the
// channels at a time.
struct TilePlan {
  int64_t strips, piece;  // piece: channels, or pairs of them
};

// What the sums of a tile may take, where they wait for the next piece: half the L2 cache.
constexpr int64_t kSumBytes = 512 * 1024;

// No more strips than `most`, for threads to share. What few rows read soon again need not stay in
// the L2 cache: that less is staged twice counts for more. Weights that do not stay there are read
// again for each tile, which is larger then, and threads share its rows. None of this shows in the
// bits: pieces are of whole chains, and with more channels than taps these do not depend on
// streams.
template <class T, class S>
TilePlan plan_tile(const Correlation<S>& p, const BlockShape& shape, int64_t batch, int64_t classes,
                   int64_t taps, int64_t most, Staging& staging) {
  constexpr int W = kLanes<T>;
  // A quarter of the L2 cache: weights and outputs need the rest.
  constexpr int64_t kFewRows = 32, kStagedBytes = 256 * 1024, kStagedBytesOfFewRows = 2048 * 1024;
  constexpr int64_t kMaxTileVectors = 128, kWeightBytes = 512 * 1024;
  const int64_t vectors = divide_up(p.outputs, W), channels = divide_up(p.channels, kDepth<T>);
  const int64_t staged_bytes = p.rows <= kFewRows ? kStagedBytesOfFewRows : kStagedBytes;
  TilePlan plan{smaller(divide_up(vectors, shape.vectors), kMaxTileVectors / shape.vectors),
                channels};
  const int64_t all_strips = plan.strips;
  const auto plan_staging = [&](int64_t strips) {
    plan_for_vectors(staging, smaller(vectors, strips * shape.vectors) * W, p.in_step, p.tap_offset,
                     taps, W);
  };
  const auto pieces_that_fit = [&] {
    return staged_bytes / (plan.piece * staging.channel_pitch() * static_cast<int64_t>(sizeof(T)));
  };
  const auto fit = [&] {
    plan_staging(plan.strips);
    if (pieces_that_fit() > 0) return;
    int64_t too_many = plan.strips;
    plan.strips = 1;
    while (too_many - plan.strips > 1) {
      const int64_t middle = (plan.strips + too_many) / 2;
      plan_staging(middle);
      if (pieces_that_fit() > 0)
        plan.strips = middle;
      else
        too_many = middle;
    }
    plan_staging(plan.strips);
  };
  fit();
  if (plan.strips < all_strips && channels > taps &&
      p.rows * channels * taps * static_cast<int64_t>(sizeof(T)) > kWeightBytes) {
    constexpr int64_t kFewestVectors = 16, kFewestProducts = 512;
    const int64_t sums = kSumBytes / (classes * W * static_cast<int64_t>(sizeof(Sum<T>)));
    // What one tile alone multiplies need not be packed before. Where the sums of all rows are too
    // many it is staged for some rows at a time, which take enough products for that.
    const int64_t rows = sums / vectors;
    const bool lone = batch == 1 && rows >= smaller(p.rows, shape.rows) &&
                      (rows >= p.rows || rows * taps >= kFewestProducts);
    // Chains of several classes may differ, where they do not hold all channels.
    plan.piece = Chains(classes == 1 ? taps : 1, channels, kForwardChain<T>).inner;
    plan.strips =
        smaller(all_strips,
                divide_up(lone ? vectors : larger(kFewestVectors, sums / p.rows), shape.vectors));
    fit();
    const int64_t chains = divide_up(channels, plan.piece);
    plan.piece *= divide_up(chains, divide_up(chains, larger(1, pieces_that_fit())));
    return plan;
  }
  if (most >= plan.strips) return plan;
  // With a step, the width of a tile has a say in its streams, and these in the order of sums.
  const int64_t streams = staging.streams;
  plan_staging(most);
  if (p.in_step == 1 || staging.streams == streams)
    plan.strips = most;
  else
    plan_staging(plan.strips);
  return plan;
}
