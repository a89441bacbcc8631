// The correlation with vectors of positions: weights are packed and are the scalars.

template <class A>
CONVLM_INLINE A* if_same(A* p) {
  return p;
}
template <class A>
CONVLM_INLINE A* if_same(void*) {
  return nullptr;
}

struct PartOfPositions {
  Reduction reduction;
  int64_t weight_offset;  // within those of a block of rows
};

// The shape of the core's tiles: few rows need several vectors each, or they wait for their sums,
// and of few products each tile should have many.
struct TileShape {
  static constexpr int64_t kFewProducts = 32;
  bool tall;
  int64_t rows, vectors;  // at most
  template <class S>
  explicit TileShape(const Correlation<S>& p)
      : tall(p.rows > kMaxRows && p.products() > kFewProducts),
        rows(tall ? kTallRows : kMaxRows),
        vectors(tall ? kTallVectors : kMaxVectors) {}
};

// Strips of positions are as wide as the core, and a tile is staged for several of them: how many,
// but no more than `most`, which must not show in the bits. What few rows read soon again need not
// stay in the L2 cache: that less is staged twice counts for more.
template <class T, class S>
int64_t plan_tile(const Correlation<S>& p, int64_t taps, int64_t most, Staging& staging) {
  constexpr int W = kLanes<T>;
  // A quarter of the L2 cache: weights and outputs need the rest.
  constexpr int64_t kFewRows = 32, kStagedBytes = 256 * 1024, kStagedBytesOfFewRows = 2048 * 1024;
  constexpr int64_t kMaxTileVectors = 128;
  const TileShape shape(p);
  const int64_t vectors = divide_up(p.outputs, W), channels = divide_up(p.channels, kDepth<T>);
  const auto plan = [&](int64_t strips) {
    plan_for_vectors(staging, smaller(vectors, strips * shape.vectors) * W, p.in_step, p.tap_offset,
                     taps, W);
    return channels * staging.channel_pitch() * static_cast<int64_t>(sizeof(T)) <=
           (p.rows <= kFewRows ? kStagedBytesOfFewRows : kStagedBytes);
  };
  int64_t strips = smaller(divide_up(vectors, shape.vectors), kMaxTileVectors / shape.vectors);
  if (!plan(strips)) {
    int64_t too_many = strips;
    strips = 1;
    while (too_many - strips > 1) {
      const int64_t middle = (strips + too_many) / 2;
      if (plan(middle))
        strips = middle;
      else
        too_many = middle;
    }
    plan(strips);
  }
  if (most >= strips) return strips;
  // With a step, the width of a tile has a say in its streams, and these in the order of sums.
  const int64_t streams = staging.streams;
  plan(most);
  if (p.in_step == 1 || staging.streams == streams) return most;
  plan(strips);
  return strips;
}

// The correlations of several classes of positions go together: they stage the same input, and
// write to the same cache lines. They differ in taps and outputs alone; the taps of all lie in one
// array, and the first has the most outputs.
template <class T, class S>
void correlate_vectors_of_positions(const Correlation<S>* parts, int64_t part_count) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kJobs =
      16;  // enough for the threads of a common processor; the bits do not depend on it

  const Correlation<S>& p = parts[0];
  const TileShape shape(p);
  const int64_t tile_size = W * shape.rows * shape.vectors;
  // All classes of a stride, in order: together they are whole rows of the output.
  const bool interleaved = part_count > 1 && part_count == p.out_step;
  int64_t length = 0;
  for (int64_t i = 0; i < part_count; ++i) length += parts[i].outputs;
  const int64_t channels = divide_up(p.channels, kDepth<T>);
  int64_t taps = 0, starts = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    taps += parts[i].taps;
    starts += larger(parts[i].taps, channels);
  }
  int64_t* memory = static_cast<int64_t*>(scratch(
      Slot::plan, sizeof(int64_t) * 2 * (taps + starts) + sizeof(PartOfPositions) * part_count));
  PartOfPositions* plans = reinterpret_cast<PartOfPositions*>(memory + 2 * (taps + starts));
  Staging staging;
  staging.stream_start = memory;
  staging.tap_start = memory + taps;

  const int64_t vectors = divide_up(p.outputs, W);
  const int64_t strips = divide_up(vectors, shape.vectors);
  const int64_t samples = p.batch * p.groups;
  const int64_t fewest_tiles =
      divide_up(threads_for(samples * p.rows * p.channels * taps * p.outputs), samples);
  const int64_t tile_strips = plan_tile<T>(p, taps, divide_up(strips, fewest_tiles), staging);
  const int64_t tiles = divide_up(strips, tile_strips);
  const int64_t blocks = divide_up(p.rows, shape.rows);
  const int64_t weight_pitch = divide_up(p.rows, blocks);
  const int64_t block_size = channels * taps * weight_pitch;
  Staging of_part = staging;
  int64_t* start = memory + 2 * taps;
  int64_t weight_offset = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    Reduction& reduction = plans[i].reduction;
    reduction.weight_start = start;
    reduction.in_start = start + larger(parts[i].taps, channels);
    start += 2 * larger(parts[i].taps, channels);
    plan_reduction(reduction, of_part, channels, parts[i].taps, weight_pitch);
    of_part.tap_start += parts[i].taps;
    plans[i].weight_offset = weight_offset;
    weight_offset += channels * parts[i].taps * weight_pitch;
  }

  const auto pack_block = [&](int64_t group, int64_t block, T* out) {
    const int64_t first = p.rows * block / blocks, last = p.rows * (block + 1) / blocks;
    for (int64_t i = 0; i < part_count; ++i)
      pack_rows(parts[i], taps_inside(parts[i], 0, parts[i].outputs), group, first, last - first,
                last - first, weight_pitch, out + plans[i].weight_offset);
  };
  // What one tile alone multiplies is packed when it does, and need not leave the caches.
  const bool packed_late = p.batch * tiles == 1;
  const auto weights_of = [&](int64_t packed_blocks) {
    return static_cast<T*>(scratch(Slot::weight, sizeof(T) * packed_blocks * block_size));
  };
  T* weights = nullptr;
  if (!packed_late) {
    weights = weights_of(p.groups * blocks);
    parallel_jobs(p.groups * blocks, block_size, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job)
        pack_block(job / blocks, job % blocks, weights + job * block_size);
    });
  }

  const int64_t splits = smaller(blocks, divide_up(kJobs, larger(1, samples * tiles)));
  const int64_t jobs = samples * tiles * splits;
  parallel_jobs(
      jobs, divide_up(p.rows, splits) * p.channels * taps * tile_strips * shape.vectors * W,
      [&](int64_t begin, int64_t end) {
        T* staged =
            static_cast<T*>(scratch(Slot::staged, sizeof(T) * channels * staging.channel_pitch()));
        Sum<T>* sums = static_cast<Sum<T>*>(
            scratch(Slot::tile, sizeof(Sum<T>) * tile_size * (interleaved ? part_count : 1)));
        const auto first_strip_of = [&](int64_t tile_job) {
          return strips * (tile_job % tiles) / tiles;
        };
        const auto first_of = [&](int64_t tile_job) {
          return vectors * first_strip_of(tile_job) / strips;
        };
        const auto input_of = [&](int64_t tile_job) {
          const int64_t group = tile_job / tiles % p.groups, n = tile_job / tiles / p.groups;
          return p.in + n * p.in_batch + group * p.channels * p.in_channel;
        };
        LinesAhead in_ahead;
        int64_t staged_job = -1;
        for (int64_t job = begin; job < end; ++job) {
          const int64_t split = job % splits, tile_job = job / splits;
          const int64_t t = tile_job % tiles, group = tile_job / tiles % p.groups,
                        n = tile_job / tiles / p.groups;
          const int64_t first_strip = strips * t / tiles, last_strip = strips * (t + 1) / tiles;
          const int64_t first = vectors * first_strip / strips;
          if (staged_job != tile_job)
            stage(staging, input_of(tile_job), p.channels, p.in_channel, p.in_position, p.length,
                  first * W * p.in_step, staged, false);
          staged_job = tile_job;
          const int64_t next_job = (job + 1) / splits;
          if (job + 1 < end)
            in_ahead = lines_to_stage(staging, input_of(next_job), p.channels, p.in_channel,
                                      p.in_position, first_of(next_job) * W * p.in_step);
          const int64_t in_share =
              divide_up(in_ahead.count(), divide_up(blocks, splits) * (last_strip - first_strip));
          for (int64_t block = blocks * split / splits; block < blocks * (split + 1) / splits;
               ++block) {
            const int64_t row = p.rows * block / blocks;
            const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
            T* const weight =
                packed_late ? weights_of(1) : weights + (group * blocks + block) * block_size;
            if (packed_late) pack_block(group, block, weight);
            Sum<T> bias[kTallRows];
            for (int i = 0; i < rows; ++i) bias[i] = bias_of(p, group * p.rows + row + i);
            int64_t v = first;
            for (int64_t strip = first_strip; strip < last_strip; ++strip) {
              const int64_t next = vectors * (strip + 1) / strips;
              const int width = static_cast<int>(next - v);
              in_ahead.ask(in_share);
              for (int64_t part = 0; part < part_count; ++part) {
                const Correlation<S>& q = parts[part];
                const int64_t count = smaller(width * W, q.outputs - v * W);
                if (count <= 0) continue;
                Sum<T>* tile = sums + (interleaved ? part * tile_size : 0);
                const Reduction& reduction = plans[part].reduction;
                const Steps steps = steps_of(reduction, taps_inside(q, v * W, v * W + count));
                const T* part_weight = weight + plans[part].weight_offset;
                S* out = q.out + n * q.out_batch + group * q.out_group + row * q.out_row +
                         v * W * q.out_step;
                const bool plain =
                    q.out_step == 1 && q.activation == Activation::none && count == width * W;
                Product<T> product{&part_weight,
                                   staged + (v - first) * W,
                                   reduction.weight_start,
                                   reduction.in_start,
                                   reduction.outer,
                                   reduction.inner,
                                   reduction.weight_step,
                                   reduction.in_step,
                                   tile,
                                   width * W,
                                   false,
                                   plain ? if_same<Stored<T>>(out) : nullptr,
                                   q.out_row,
                                   bias};
                if (shape.tall)
                  multiply<T, true, kTallRows, kTallVectors>(product, rows, width, steps,
                                                             kForwardChain<T>);
                else
                  multiply<T, true>(product, rows, width, steps, kForwardChain<T>);
                for (int i = 0; product.out == nullptr && !interleaved && i < rows; ++i)
                  finish_row(q, tile + i * width * W, bias[i], count, out + i * q.out_row);
              }
              for (int i = 0; interleaved && i < rows; ++i)
                interleave(sums + i * width * W, tile_size, p.out_step,
                           smaller(width * W * p.out_step, length - v * W * p.out_step),
                           p.out + n * p.out_batch + group * p.out_group + (row + i) * p.out_row +
                               v * W * p.out_step);
              v = next;
            }
          }
        }
      });
}
