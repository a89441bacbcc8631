// The correlation by tiles: rows of the weight times positions, 32 channels of a tap at a time.
// Inputs are staged as pairs of channels, so that each tap's tile is where its positions are. Of
// few channels, several taps are folded into a tile: the input is staged once for each of them,
// from where it reads. All classes of positions of one grad_input go together.

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

// The same for the taps [first, last) of a fold, the pairs of each behind those of the one before.
inline void pack_folded_tile(const Correlation<bfloat16>& p, int64_t group, int64_t first_row,
                             int64_t first, int64_t last, uint16_t* out) {
  const bfloat16* source = p.weight + group * p.weight_group + first_row * p.weight_row;
  clear(out, kTileSize);
  for (int64_t r = 0; r < smaller(kTileRows, p.rows - first_row); ++r)
    for (int64_t j = first; j < last; ++j)
      for (int64_t c = 0; c < p.channels; ++c)
        out[r * kTileDepth + (j - first) * in_tiles(p.channels, 2) + c] =
            source[r * p.weight_row + c * p.weight_channel + p.tap_index[j] * p.weight_tap].bits;
}

// How far apart taps are; 0 where no class has two.
inline int64_t tap_spacing(const Correlation<bfloat16>* parts, int64_t part_count) {
  int64_t spacing = 0;
  for (int64_t i = 0; i < part_count; ++i)
    if (parts[i].taps > 1) spacing = parts[i].tap_offset[1] - parts[i].tap_offset[0];
  return spacing;
}

// How many taps share a tile. With a stride, as many as come back to the first one's phase.
inline int64_t taps_of_fold(const Correlation<bfloat16>* parts, int64_t part_count) {
  const Correlation<bfloat16>& p = parts[0];
  if (p.channels > kTileDepth / 2) return 1;
  int64_t taps = 0;
  for (int64_t i = 0; i < part_count; ++i) taps = larger(taps, parts[i].taps);
  const int64_t spacing = tap_spacing(parts, part_count);
  const int64_t period = p.in_step / greatest_common_divisor(p.in_step, larger(spacing, -spacing));
  const int64_t fold = smaller(taps, kTilePairs / divide_up(p.channels, 2)) / period * period;
  return larger(1, fold);
}

// The steps of one class of positions: its folds of taps, the last of which may not be whole.
struct PartOfTiles {
  int64_t whole, rest;    // folds, and the taps that are left
  int64_t* column_start;  // of each fold, and of what is left
  int64_t first_step;     // among those of all parts
  int64_t folds() const { return whole + (rest > 0 ? 1 : 0); }
};

struct TilesPlan {
  int64_t fold, chunks, pairs;  // pairs: staged rows, those of zeros among them
  int64_t steps;                // of all parts
  int64_t folded_pairs;         // of one tap
  int64_t staged_size;          // before what is staged for the rests, a tile's rows each
  int64_t rests;
  Staging staging;
  PartOfTiles* parts;
  int64_t positions, tiles;  // staged at a time, and how often
};

// `most` tiles of positions, for threads to share.
inline TilesPlan plan_tiles(const Correlation<bfloat16>* parts, int64_t part_count, int64_t most) {
  constexpr int64_t kMostPositions = 512, kStagedBytes = 768 * 1024;  // in the L2 cache
  const Correlation<bfloat16>& p = parts[0];
  TilesPlan plan;
  plan.fold = taps_of_fold(parts, part_count);
  plan.chunks = divide_up(p.channels, kTileDepth);
  plan.pairs = plan.chunks * kTilePairs;
  plan.folded_pairs = divide_up(p.channels, 2);
  int64_t folds = 0, taps = 0;
  for (int64_t i = 0; i < part_count; ++i) taps += parts[i].taps;
  int64_t* memory = static_cast<int64_t*>(
      scratch(Slot::plan, sizeof(int64_t) * 4 * taps + sizeof(PartOfTiles) * part_count));
  int64_t* const offsets = memory;  // of the first tap of each whole fold
  plan.staging.stream_start = memory + taps;
  plan.staging.tap_start = memory + 2 * taps;
  int64_t* starts = memory + 3 * taps;
  plan.parts = reinterpret_cast<PartOfTiles*>(memory + 4 * taps);
  plan.steps = plan.rests = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    PartOfTiles& part = plan.parts[i];
    part = {parts[i].taps / plan.fold, parts[i].taps % plan.fold, starts, plan.steps};
    for (int64_t k = 0; k < part.whole; ++k) offsets[folds++] = parts[i].tap_offset[k * plan.fold];
    starts += part.folds();
    plan.steps += part.folds() * plan.chunks;
    plan.rests += part.rest > 0 ? 1 : 0;
  }
  for (int64_t blocks = smaller(smaller(divide_up(p.outputs, kWideColumns), most),
                                kMostPositions / kWideColumns);
       ; blocks = divide_up(blocks, 2)) {
    plan.positions = blocks * kWideColumns;
    plan_for_vectors(plan.staging, plan.positions, p.in_step, offsets, folds, kLanes<Pair>);
    plan.staged_size = plan.pairs * plan.staging.channel_pitch();
    if (blocks == 1 || plan.staged_size * static_cast<int64_t>(sizeof(Pair)) <= kStagedBytes) break;
  }
  plan.tiles = divide_up(p.outputs, plan.positions);
  for (int64_t i = 0, fold = 0, rest = 0; i < part_count; ++i) {
    PartOfTiles& part = plan.parts[i];
    for (int64_t k = 0; k < part.whole; ++k) part.column_start[k] = plan.staging.tap_start[fold++];
    if (part.rest > 0)
      part.column_start[part.whole] =
          plan.staged_size + rest++ * kTilePairs * plan.staging.channel_pitch();
  }
  return plan;
}

// Rows behind those that stage_tile() writes: zeros meet the zeros in the weights.
inline void clear_padding(const TilesPlan& plan, int64_t part_count, Pair* staged) {
  const int64_t pitch = plan.staging.channel_pitch();
  const int64_t used = plan.fold * plan.folded_pairs;
  clear(staged + used * pitch, (plan.pairs - used) * pitch);
  for (int64_t i = 0; i < part_count; ++i) {
    const PartOfTiles& part = plan.parts[i];
    const int64_t filled = part.rest * plan.folded_pairs;
    if (part.rest > 0)
      clear(staged + part.column_start[part.whole] + filled * pitch, (kTilePairs - filled) * pitch);
  }
}

inline void stage_tile(const Correlation<bfloat16>* parts, int64_t part_count,
                       const TilesPlan& plan, const bfloat16* in, int64_t q, Pair* staged) {
  const Correlation<bfloat16>& p = parts[0];
  const int64_t pitch = plan.staging.channel_pitch();
  const int64_t spacing = tap_spacing(parts, part_count);
  for (int64_t f = 0; f < plan.fold; ++f)
    stage(plan.staging, in, p.channels, p.in_channel, p.in_position, p.length,
          q * p.in_step + f * spacing, staged + f * plan.folded_pairs * pitch, plan.fold > 1);
  for (int64_t i = 0; i < part_count; ++i) {
    const PartOfTiles& part = plan.parts[i];
    for (int64_t f = 0; f < part.rest; ++f)
      stage_rows(OperandRows<Pair, bfloat16>{in, p.in_channel, p.channels}, plan.folded_pairs,
                 p.in_position, p.length,
                 parts[i].tap_offset[part.whole * plan.fold + f] + q * p.in_step, p.in_step,
                 staged + part.column_start[part.whole] + f * plan.folded_pairs * pitch, pitch,
                 plan.positions);
  }
}

// A row of a block of sums, two vectors of which go out together.
inline void finish_row_of_block(const Correlation<bfloat16>& p, float* sums, float bias,
                                int64_t count, bfloat16* out) {
  constexpr int W = kLanes<float>;
  int64_t q = 0;
  for (; p.out_step == 1 && q + 2 * W <= count; q += 2 * W) {
    Vector<float> low = load(sums + q) + bias, high = load(sums + q + W) + bias;
    if (p.activation != Activation::none) {
      low = activate(low, p.activation);
      high = activate(high, p.activation);
    }
    store(reinterpret_cast<uint16_t*>(out + q), (Vector<uint16_t>)_mm512_cvtne2ps_pbh(high, low));
  }
  if (q < count) finish_row(p, sums + q, bias, count - q, out + q * p.out_step);
}

// `parts` are one correlation, or the classes of all positions, those without taps among them, but
// not all of them.
inline void correlate_tiles(const Correlation<bfloat16>* parts, int64_t part_count) {
  // With what is staged.
  constexpr int64_t kWeightBytesInL1 = 48 * 1024, kWeightBytesInL2 = 1024 * 1024;

  const Correlation<bfloat16>& p = parts[0];
  // All classes of a stride, in order: together they are whole rows of the output.
  const bool interleaved = part_count > 1 && part_count == p.out_step;
  int64_t length = 0, taps = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    length += parts[i].outputs;
    taps += parts[i].taps;
  }
  const int64_t samples = p.batch * p.groups, blocks = divide_up(p.rows, kBlockRows);
  const int64_t multiply_adds = p.rows * p.channels * taps * p.outputs;
  const int64_t wanted = threads_for(samples * multiply_adds);
  const TilesPlan plan = plan_tiles(
      parts, part_count, divide_up(divide_up(p.outputs, kWideColumns), divide_up(wanted, samples)));
  const int64_t row_tiles = divide_up(p.rows, kTileRows), tile_weights = plan.steps * kTileSize;
  uint16_t* weights = static_cast<uint16_t*>(
      scratch(Slot::weight, sizeof(uint16_t) * p.groups * row_tiles * tile_weights));
  parallel_jobs(p.groups * row_tiles, tile_weights, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t group = job / row_tiles, row = job % row_tiles * kTileRows;
      uint16_t* out = weights + job * tile_weights;
      for (int64_t i = 0; i < part_count; ++i)
        for (int64_t k = 0; k < plan.parts[i].folds(); ++k) {
          const int64_t first = k * plan.fold;
          if (plan.fold > 1)
            pack_folded_tile(parts[i], group, row, first, smaller(parts[i].taps, first + plan.fold),
                             out);
          for (int64_t chunk = 0; plan.fold == 1 && chunk < plan.chunks; ++chunk)
            pack_tile(parts[i], group, row, first, chunk * kTileDepth, out + chunk * kTileSize);
          out += plan.chunks * kTileSize;
        }
    }
  });

  // A range of rows is a job of its own where there are fewer tiles than threads; it stages again.
  const int64_t ranges = smaller(blocks, divide_up(wanted, samples * plan.tiles));
  const int64_t weight_bytes =
      divide_up(row_tiles, ranges) * tile_weights * static_cast<int64_t>(sizeof(uint16_t));
  const bool weights_are_far = weight_bytes > kWeightBytesInL1;
  // Few rows make a block of one tile's height, and four of them wide.
  const int64_t block_columns = p.rows <= kTileRows ? kWideColumns : kBlockColumns;
  const int64_t jobs = samples * plan.tiles * ranges;
  parallel_jobs(jobs, divide_up(samples * multiply_adds, jobs), [&](int64_t begin, int64_t end) {
    const TileRegisters registers;
    const int64_t pitch = plan.staging.channel_pitch();
    Pair* staged = static_cast<Pair*>(
        scratch(Slot::staged, sizeof(Pair) * (plan.staged_size + plan.rests * kTilePairs * pitch)));
    clear_padding(plan, part_count, staged);
    float* sums = static_cast<float*>(scratch(Slot::tile, sizeof(float) * kBlockSize * part_count));
    int64_t staged_job = -1;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t range = job % ranges, tile = job / ranges % plan.tiles;
      const int64_t sample = job / ranges / plan.tiles / p.groups;
      const int64_t group = job / ranges / plan.tiles % p.groups;
      const int64_t q0 = tile * plan.positions, q1 = smaller(p.outputs, q0 + plan.positions);
      if (staged_job != job / ranges)
        stage_tile(parts, part_count, plan,
                   p.in + sample * p.in_batch + group * p.channels * p.in_channel, q0, staged);
      staged_job = job / ranges;
      const auto multiply_block = [&](int64_t block, int64_t q) {
        const int64_t row = block * kBlockRows, rows = smaller(kBlockRows, p.rows - row);
        const int64_t first_tile = group * row_tiles + row / kTileRows;
        const int64_t out_start =
            sample * p.out_batch + group * p.out_group + row * p.out_row + q * p.out_step;
        const int64_t columns = smaller(block_columns, q1 - q);
        const int64_t width = smaller(columns * p.out_step, length - q * p.out_step);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t line = 0; line < width; line += kTileDepth)
            __builtin_prefetch(p.out + out_start + i * p.out_row + line, 1);
        for (int64_t i = 0; i < part_count; ++i) {
          const Correlation<bfloat16>& part = parts[i];
          const PartOfTiles& steps = plan.parts[i];
          const int64_t count = smaller(block_columns, smaller(q1, part.outputs) - q);
          if (count <= 0) continue;
          const TapRange inside = taps_inside(part, q, q + count);
          const int64_t first = inside.first / plan.fold;
          constexpr int64_t kTileBytes = kTileSize * sizeof(uint16_t);
          float* const part_sums = sums + i * kBlockSize;
          const TileProduct product{{weights + first_tile * tile_weights +
                                         (steps.first_step + first * plan.chunks) * kTileSize,
                                     kTileBytes / kTileRows, plan.steps * kTileBytes, kTileBytes},
                                    {staged + q - q0, pitch * static_cast<int64_t>(sizeof(Pair)),
                                     kTileColumns * static_cast<int64_t>(sizeof(Pair)),
                                     kTilePairs * pitch * static_cast<int64_t>(sizeof(Pair))},
                                    steps.column_start + first,
                                    divide_up(inside.last, plan.fold) - first,
                                    plan.chunks,
                                    part_sums,
                                    block_columns,
                                    false};
          weights_are_far ? multiply_tiles<true>(product, rows, count)
                          : multiply_tiles<false>(product, rows, count);
          for (int64_t r = 0; !interleaved && r < rows; ++r)
            finish_row_of_block(part, part_sums + r * block_columns,
                                bias_of(p, group * p.rows + row + r), count,
                                part.out + out_start + r * p.out_row);
        }
        for (int64_t r = 0; interleaved && r < rows; ++r)
          interleave(sums + r * block_columns, kBlockSize, p.out_step, width,
                     p.out + out_start + r * p.out_row);
      };
      const int64_t first_block = blocks * range / ranges;
      const int64_t last_block = blocks * (range + 1) / ranges;
      if (weight_bytes <= kWeightBytesInL2)
        for (int64_t q = q0; q < q1; q += block_columns)
          for (int64_t block = first_block; block < last_block; ++block) multiply_block(block, q);
      else
        for (int64_t block = first_block; block < last_block; ++block)
          for (int64_t q = q0; q < q1; q += block_columns) multiply_block(block, q);
    }
  });
}
