// The correlation by tiles: rows of the weight times positions, 32 channels of a tap at a time.
// Inputs are staged as pairs of channels, so that each tap's tile is where its positions are.

// out[r][0, 32) = weights of row first + r, and of the channels from `channel` on, for one tap;
// zero where either does not exist.
inline void pack_tile(const Correlation<bfloat16>& p, int64_t group, int64_t first, int64_t tap,
                      int64_t channel, uint16_t* out) {
  const bfloat16* source = p.weight + group * p.weight_group + first * p.weight_row +
                           channel * p.weight_channel + p.tap_index[tap] * p.weight_tap;
  const int64_t rows = smaller(kTileRows, p.rows - first);
  const int64_t channels = smaller(kTileDepth, p.channels - channel);
  if (p.weight_channel < p.weight_row) {
    const auto row = [&](int64_t r) {
      return Row<uint16_t>{reinterpret_cast<const uint16_t*>(source + r * p.weight_row)};
    };
    stage_rows(row, rows, p.weight_channel, channels, 0, 1, out, kTileDepth, kTileDepth);
    for (int64_t r = rows; r < kTileRows; ++r) clear(out + r * kTileDepth, kTileDepth);
    return;
  }
  // In the order of memory, and turned then.
  alignas(64) Pair turned[kTilePairs * kTileRows];
  const int64_t pairs = divide_up(channels, 2);
  stage_rows(OperandRows<Pair, bfloat16>{source, p.weight_channel, channels}, pairs, p.weight_row,
             rows, 0, 1, turned, kTileRows, kTileRows);
  for (int64_t c = pairs; c < kTilePairs; ++c) clear(turned + c * kTileRows, kTileRows);
  transpose_strip(turned, kTileRows, kTilePairs, kTileRows, reinterpret_cast<Pair*>(out),
                  kTilePairs, kTilePairs);
}

// A row of a block of sums, two vectors of which go out together.
inline void finish_row_of_block(const Correlation<bfloat16>& p, float* sums, float bias,
                                int64_t count, bfloat16* out) {
  if (p.out_step != 1 || count < kBlockColumns) return finish_row(p, sums, bias, count, out);
  constexpr int W = kLanes<float>;
  Vector<float> low = load(sums) + bias, high = load(sums + W) + bias;
  if (p.activation != Activation::none) {
    low = activate(low, p.activation);
    high = activate(high, p.activation);
  }
  store(reinterpret_cast<uint16_t*>(out), (Vector<uint16_t>)_mm512_cvtne2ps_pbh(high, low));
}

// What is staged at a time: some positions of all channels.
struct TilesOfPositions {
  int64_t positions, count;
};

inline TilesOfPositions plan_positions(const Correlation<bfloat16>& p, int64_t pairs, int64_t most,
                                       Staging& staging) {
  constexpr int64_t kMostPositions = 512, kStagedBytes = 768 * 1024;  // in the L2 cache
  int64_t blocks =
      smaller(smaller(divide_up(p.outputs, kBlockColumns), most), kMostPositions / kBlockColumns);
  for (;; blocks = divide_up(blocks, 2)) {
    plan_for_vectors(staging, blocks * kBlockColumns, p.in_step, p.tap_offset, p.taps,
                     kLanes<Pair>);
    if (blocks == 1 ||
        pairs * staging.channel_pitch() * static_cast<int64_t>(sizeof(Pair)) <= kStagedBytes)
      break;
  }
  const int64_t positions = blocks * kBlockColumns;
  return {positions, divide_up(p.outputs, positions)};
}

inline void correlate_tiles(const Correlation<bfloat16>& p) {
  constexpr int64_t kTileSize = kTileRows * kTileDepth;
  // With what is staged.
  constexpr int64_t kWeightBytesInL1 = 48 * 1024, kWeightBytesInL2 = 1024 * 1024;

  const int64_t chunks = divide_up(p.channels, kTileDepth), pairs = chunks * kTilePairs;
  const int64_t row_tiles = divide_up(p.rows, kTileRows);
  const int64_t steps = p.taps * chunks;
  uint16_t* weights = static_cast<uint16_t*>(
      scratch(Slot::weight, sizeof(uint16_t) * p.groups * row_tiles * steps * kTileSize));
  parallel_jobs(p.groups * row_tiles, steps * kTileSize, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job)
      for (int64_t step = 0; step < steps; ++step)
        pack_tile(p, job / row_tiles, job % row_tiles * kTileRows, step / chunks,
                  step % chunks * kTileDepth, weights + (job * steps + step) * kTileSize);
  });

  Staging staging;
  staging.stream_start = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * p.taps));
  staging.tap_start = staging.stream_start + p.taps;
  const int64_t samples = p.batch * p.groups, blocks = divide_up(p.rows, kBlockRows);
  const int64_t multiply_adds = p.rows * p.products() * p.outputs;
  const int64_t wanted = threads_for(samples * multiply_adds);
  const TilesOfPositions tiles = plan_positions(
      p, pairs, divide_up(divide_up(p.outputs, kBlockColumns), divide_up(wanted, samples)),
      staging);
  // A range of rows is a job of its own where there are fewer tiles than threads; it stages again.
  const int64_t ranges = smaller(blocks, divide_up(wanted, samples * tiles.count));
  const int64_t weight_bytes =
      divide_up(row_tiles, ranges) * steps * kTileSize * static_cast<int64_t>(sizeof(uint16_t));
  const bool weights_are_far = weight_bytes > kWeightBytesInL1;
  const int64_t jobs = samples * tiles.count * ranges;
  parallel_jobs(jobs, divide_up(samples * multiply_adds, jobs), [&](int64_t begin, int64_t end) {
    const TileRegisters registers;
    const int64_t pitch = staging.channel_pitch();
    // A tile may end behind the last channel's positions.
    Pair* staged =
        static_cast<Pair*>(scratch(Slot::staged, sizeof(Pair) * (pairs * pitch + kBlockColumns)));
    const int64_t staged_pairs = divide_up(p.channels, 2);
    clear(staged + staged_pairs * pitch, (pairs - staged_pairs) * pitch);
    alignas(64) float sums[kBlockRows * kBlockColumns];
    int64_t staged_job = -1;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t range = job % ranges, tile = job / ranges % tiles.count;
      const int64_t sample = job / ranges / tiles.count / p.groups;
      const int64_t group = job / ranges / tiles.count % p.groups;
      const int64_t q0 = tile * tiles.positions, q1 = smaller(p.outputs, q0 + tiles.positions);
      if (staged_job != job / ranges)
        stage(staging, p.in + sample * p.in_batch + group * p.channels * p.in_channel, p.channels,
              p.in_channel, p.in_position, p.length, q0 * p.in_step, staged, false);
      staged_job = job / ranges;
      const auto multiply_block = [&](int64_t block, int64_t q) {
        const int64_t row = block * kBlockRows, rows = smaller(kBlockRows, p.rows - row);
        const int64_t count = smaller(kBlockColumns, q1 - q);
        const TapRange taps = taps_inside(p, q, q + count);
        const int64_t first_tile = group * row_tiles + row / kTileRows;
        constexpr int64_t kTileBytes = kTileSize * sizeof(uint16_t);
        bfloat16* out =
            p.out + sample * p.out_batch + group * p.out_group + row * p.out_row + q * p.out_step;
        for (int64_t i = 0; p.out_step == 1 && i < rows; ++i)
          __builtin_prefetch(out + i * p.out_row, 1);
        const TileProduct product{{weights + (first_tile * steps + taps.first * chunks) * kTileSize,
                                   kTileBytes / kTileRows, steps * kTileBytes, kTileBytes},
                                  {staged + q - q0, pitch * static_cast<int64_t>(sizeof(Pair)),
                                   kTileColumns * static_cast<int64_t>(sizeof(Pair)),
                                   kTilePairs * pitch * static_cast<int64_t>(sizeof(Pair))},
                                  staging.tap_start + taps.first,
                                  taps.count(),
                                  chunks,
                                  sums,
                                  kBlockColumns,
                                  kTileRows * kBlockColumns,
                                  false};
        weights_are_far ? multiply_tiles<true>(product, rows, count)
                        : multiply_tiles<false>(product, rows, count);
        for (int64_t i = 0; i < rows; ++i)
          finish_row_of_block(p, sums + i * kBlockColumns, bias_of(p, group * p.rows + row + i),
                              count, out + i * p.out_row);
      };
      const int64_t first_block = blocks * range / ranges;
      const int64_t last_block = blocks * (range + 1) / ranges;
      if (weight_bytes <= kWeightBytesInL2)
        for (int64_t q = q0; q < q1; q += kBlockColumns)
          for (int64_t block = first_block; block < last_block; ++block) multiply_block(block, q);
      else
        for (int64_t block = first_block; block < last_block; ++block)
          for (int64_t q = q0; q < q1; q += kBlockColumns) multiply_block(block, q);
    }
  });
}
