// grad_weight by tiles: 32 positions of 16 input channels, for one tap, times pairs of positions of
// 16 output channels. grad_output is turned into pairs; x is copied, with its padding, so that each
// tap's positions are next to each other.

// A block of sums is of two tiles of input channels, each for one tap, times 32 output channels;
// blocks lie in the order in which they are added to, and the bias behind them.
struct GradWeightTiles {
  Staging staging;
  Units units;
  int64_t row_blocks, x_tiles, x_blocks;  // of x: tiles of channels for each tap, and two of them
  int64_t ranges;                         // of blocks of rows
  int64_t bias, group_size, piece_size;   // in sums
  bool sums_are_far;
};

inline void sum_piece_of_tiles(const WeightGradient<bfloat16>& p, const GradWeightTiles& plan,
                               int64_t job, float* partial) {
  const int64_t range = job % plan.ranges, group = job / plan.ranges % p.groups;
  const int64_t piece = job / plan.ranges / p.groups;
  const int64_t first_row = plan.row_blocks * range / plan.ranges * kBlockColumns;
  const int64_t rows =
      smaller(p.rows, plan.row_blocks * (range + 1) / plan.ranges * kBlockColumns) - first_row;
  const int64_t padded = in_tiles(rows, kTileColumns), channels = in_tiles(p.channels, kTileRows);
  const int64_t x_pitch = plan.staging.channel_pitch();
  const int64_t panel_rows = divide_up(plan.units.positions, kTileDepth) * kTilePairs;
  uint16_t* staged =
      static_cast<uint16_t*>(scratch(Slot::staged, sizeof(uint16_t) * channels * x_pitch));
  clear(staged + p.channels * x_pitch, (channels - p.channels) * x_pitch);
  // An odd number of cache lines from one pair to the next.
  const int64_t panel_pitch = staged_pitch(padded, kLanes<Pair>);
  Pair* panel = static_cast<Pair*>(scratch(Slot::panel, sizeof(Pair) * panel_rows * panel_pitch));
  alignas(64) uint16_t last[kBlockRows * kTileDepth];
  const int64_t zero = 0;

  float* const sums = partial + piece * plan.piece_size + group * plan.group_size;
  const int64_t first_unit = plan.units.count * piece / plan.units.pieces;
  const int64_t last_unit = plan.units.count * (piece + 1) / plan.units.pieces;
  for (int64_t u = first_unit; u < last_unit; ++u) {
    const Unit unit = unit_at(p, plan.units, u);
    const int64_t whole = unit.positions / kTileDepth, rest = unit.positions % kTileDepth;
    stage(plan.staging,
          reinterpret_cast<const uint16_t*>(p.x) + unit.first_sample * p.x_batch +
              group * p.channels * p.x_channel,
          p.channels, p.x_channel, p.x_position, p.length, unit.first_position * p.stride, staged);
    pack_grad_output(p.grad_output + unit.first_sample * p.grad_batch +
                         (group * p.rows + first_row) * p.grad_row +
                         unit.first_position * p.grad_position,
                     p.grad_row, p.grad_position, rows, padded, unit.positions, panel, panel_pitch);
    const int64_t filled = divide_up(unit.positions, 2);
    clear(panel + filled * panel_pitch,
          (divide_up(unit.positions, kTileDepth) * kTilePairs - filled) * panel_pitch);
    const bool accumulate = u != first_unit, sums_are_far = accumulate && plan.sums_are_far;
    if (p.grad_bias != nullptr)
      add_rows(panel, filled, panel_pitch, padded, sums + plan.bias + first_row, accumulate);
    float* block = sums + first_row / kBlockColumns * plan.x_blocks * kBlockSize;
    for (int64_t row = 0; row < padded; row += kBlockColumns)
      for (int64_t t = 0; t < plan.x_tiles; t += 2, block += kBlockSize) {
        for (int64_t i = 0; sums_are_far && i < kBlockSize; i += kLanes<float>)
          __builtin_prefetch(block + kBlockSize + i, 1);
        const auto tile_of_x = [&](int64_t tile) {
          return staged + tile / p.taps * kTileRows * x_pitch +
                 plan.staging.tap_start[tile % p.taps];
        };
        const int64_t count = smaller(2, plan.x_tiles - t);
        const uint16_t* const x[] = {tile_of_x(t), tile_of_x(t + count - 1)};
        constexpr int64_t kElement = sizeof(uint16_t), kPair = sizeof(Pair);
        TileProduct product{
            {x[0], x_pitch * kElement, (x[1] - x[0]) * kElement, kTileDepth * kElement},
            {panel + row, panel_pitch * kPair, kTileColumns * kPair,
             kTilePairs * panel_pitch * kPair},
            &zero,
            1,
            whole,
            block,
            kBlockColumns,
            accumulate};
        const int64_t height = count * kTileRows, width = smaller(kBlockColumns, padded - row);
        if (whole > 0) multiply_tiles<false>(product, height, width);
        if (rest == 0) continue;
        // What follows in the row may be infinite, so it must not meet the zeros in the panel.
        for (int64_t i = 0; i < height; ++i)
          store(last + i * kTileDepth,
                load_partial(x[i / kTileRows] + i % kTileRows * x_pitch + whole * kTileDepth,
                             static_cast<int>(rest)));
        product.rows = {last, kTileDepth * kElement, kTileSize * kElement, 0};
        product.columns.start = panel + whole * kTilePairs * panel_pitch + row;
        product.inner = 1;
        product.accumulate = accumulate || whole > 0;
        multiply_tiles<false>(product, height, width);
      }
  }
}

// Adds up the pieces of one tile of rows and turns it into place.
inline void finish_tile_of_rows(const WeightGradient<bfloat16>& p, const GradWeightTiles& plan,
                                int64_t job, const float* partial) {
  static_assert(kLanes<float> == kTileColumns);
  const int64_t tiles = divide_up(p.rows, kTileColumns), first = job % tiles * kTileColumns;
  const int64_t group = job / tiles, rows = smaller(kTileColumns, p.rows - first);
  const auto total = [&](int64_t index) {
    const float* sum = partial + group * plan.group_size + index;
    Vector<float> v = load(sum);
    for (int64_t piece = 1; piece < plan.units.pieces; ++piece)
      v += load(sum + piece * plan.piece_size);
    return v;
  };
  float* const totals =
      static_cast<float*>(scratch(Slot::tile, sizeof(float) * kTileColumns * p.products()));
  float* to = totals;
  const int64_t first_block = first / kBlockColumns * plan.x_blocks;
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t j = 0; j < p.taps; ++j, to += kTileColumns) {
      const int64_t tile = c / kTileRows * p.taps + j;
      store(to, total((first_block + tile / 2) * kBlockSize + tile % 2 * kTileRows * kBlockColumns +
                      c % kTileRows * kBlockColumns + first % kBlockColumns));
    }
  const int64_t row = group * p.rows + first;
  transpose(totals, kTileColumns, p.products(), rows, p.grad_weight + row * p.products(),
            p.products());
  if (p.grad_bias != nullptr)
    store_partial(p.grad_bias + row, total(plan.bias + first), static_cast<int>(rows));
}

inline void grad_weight_tiles(const WeightGradient<bfloat16>& p) {
  // Sums of a unit take no longer chains; x and grad_output of one stay in the L2 cache.
  constexpr int64_t kMostPositions = 256, kUnitElements = 512 * 1024;
  constexpr int64_t kNearSumBytes = 512 * 1024;
  GradWeightTiles plan;
  plan.row_blocks = divide_up(p.rows, kBlockColumns);
  plan.x_tiles = divide_up(p.channels, kTileRows) * p.taps;
  plan.x_blocks = divide_up(plan.x_tiles, 2);
  plan.bias = plan.row_blocks * plan.x_blocks * kBlockSize;
  plan.group_size = plan.bias + plan.row_blocks * kBlockColumns;
  plan.piece_size = p.groups * plan.group_size;
  plan.sums_are_far = plan.group_size * static_cast<int64_t>(sizeof(float)) > kNearSumBytes;
  const int64_t positions =
      larger(kTileDepth, smaller(kMostPositions, kUnitElements / (p.channels + p.rows)));
  plan.units = plan_units(smaller(p.batch, 1), p.outputs, positions, plan.piece_size, kTileDepth);
  plan.units.count *= p.batch;
  plan.units.pieces = count_pieces(plan.units.count, plan.piece_size);
  plan.staging.stream_start =
      static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  plan.staging.tap_start = plan.staging.stream_start + p.taps;
  plan_for_vectors(plan.staging, plan.units.positions, p.stride, p.tap_offset, p.taps,
                   kLanes<uint16_t>);
  // A range of rows stages x again.
  plan.ranges = smaller(plan.row_blocks, divide_up(threads(), plan.units.pieces * p.groups));
  float* partial = static_cast<float*>(
      scratch(Slot::partial, sizeof(float) * plan.units.pieces * plan.piece_size));
  const int64_t jobs = plan.units.pieces * p.groups * plan.ranges;
  parallel_jobs(jobs, divide_up(p.batch * p.outputs * p.groups * p.rows * p.products(), jobs),
                [&](int64_t begin, int64_t end) {
                  const TileRegisters registers;
                  for (int64_t job = begin; job < end; ++job)
                    sum_piece_of_tiles(p, plan, job, partial);
                });
  parallel_jobs(p.groups * divide_up(p.rows, kTileColumns),
                p.products() * kTileColumns * plan.units.pieces, [&](int64_t begin, int64_t end) {
                  for (int64_t job = begin; job < end; ++job)
                    finish_tile_of_rows(p, plan, job, partial);
                });
}
