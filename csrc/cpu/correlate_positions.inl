// The correlation with vectors of positions: weights are packed and are the scalars.

template <class A>
CONVLM_INLINE A* if_same(A* p) {
  return p;
}
template <class A>
CONVLM_INLINE A* if_same(const void*) {
  return nullptr;
}

struct PartOfPositions {
  Reduction reduction;
  int64_t weight_offset;  // within those of a block of rows
};

// What is staged at a time, and the blocks of rows and the strips that read it.
struct PieceOfTile {
  int64_t tile, sample, group;
  int64_t first_block, last_block, first_strip, last_strip;
  int64_t channel, last_channel;  // or pairs of them
};

// The correlations of several classes of positions go together: they stage the same input, and
// write to the same cache lines. They differ in taps and outputs alone; the taps of all lie in one
// array, and the first has the most outputs.
template <class T, class S>
void correlate_vectors_of_positions(const Correlation<S>* parts, int64_t part_count) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kJobs =
      16;  // enough for the threads of a common processor; the bits do not depend on it
  constexpr int64_t kFewestRowsOfPiece = 128;

  const Correlation<S>& p = parts[0];
  const BlockShape shape = tile_shape(p);
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
  TilePlan plan =
      plan_tile<T>(p, shape, p.batch, part_count, taps, divide_up(strips, fewest_tiles), staging);
  const int64_t tiles = divide_up(strips, plan.strips);
  const bool in_place = part_count == 1 && is_read_in_place<T>(p, shape);
  if (in_place) {
    plan_in_place(staging, p.in_channel, p.in_position, p.in_step, p.tap_offset, p.taps);
    // Few enough rows of memory at a time for a processor to fetch them ahead.
    plan.piece = Chains(taps, channels, kForwardChain<T>).inner;
  }
  const int64_t pieces = divide_up(channels, plan.piece);
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

  const auto pack_block = [&](int64_t group, int64_t block, int64_t channel, int64_t last_channel,
                              T* out) {
    const int64_t first = p.rows * block / blocks, last = p.rows * (block + 1) / blocks;
    for (int64_t i = 0; i < part_count; ++i) {
      const Correlation<S> part = with_weights_of<T>(parts[i], channel, last_channel);
      pack_rows(part, taps_inside(part, 0, part.outputs), group, first, last - first, last - first,
                weight_pitch, out + plans[i].weight_offset + channel * part.taps * weight_pitch);
    }
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
        pack_block(job / blocks, job % blocks, 0, channels, weights + job * block_size);
    });
  }

  // One class has its weights of a piece in one place.
  const bool weights_are_far = pieces > 1 && part_count == 1 && !packed_late;
  const int64_t sum_tiles = part_count * (pieces > 1 ? plan.strips : 1);
  const int64_t block_bytes = sum_tiles * tile_size * static_cast<int64_t>(sizeof(Sum<T>));
  const int64_t tile_jobs = larger(1, samples * tiles);
  const int64_t shares = divide_up(kJobs, tile_jobs);
  // Each stages its pieces again: no more than threads need, and sums that wait.
  const int64_t shares_of_pieces =
      larger(divide_up(blocks * block_bytes, kSumBytes),
             threads() == 1 ? 1
                            : smaller(shares, larger(divide_up(threads(), tile_jobs),
                                                     divide_up(p.rows, kFewestRowsOfPiece))));
  const int64_t splits = smaller(blocks, pieces == 1 ? shares : shares_of_pieces);
  parallel_jobs(
      samples * tiles * splits,
      divide_up(p.rows, splits) * p.channels * taps * plan.strips * shape.vectors * W,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(
            scratch(Slot::staged, in_place ? 0 : sizeof(T) * plan.piece * staging.channel_pitch()));
        Sum<T>* sums = static_cast<Sum<T>*>(
            scratch(Slot::tile, block_bytes * (pieces > 1 ? divide_up(blocks, splits) : 1)));
        const auto piece_at = [&](int64_t index) {
          const int64_t job = index / pieces, tile_job = job / splits, tile = tile_job % tiles;
          const int64_t channel = index % pieces * plan.piece;
          return PieceOfTile{tile_job,
                             tile_job / tiles / p.groups,
                             tile_job / tiles % p.groups,
                             blocks * (job % splits) / splits,
                             blocks * (job % splits + 1) / splits,
                             strips * tile / tiles,
                             strips * (tile + 1) / tiles,
                             channel,
                             smaller(channels, channel + plan.piece)};
        };
        const auto first_vector = [&](int64_t strip) { return vectors * strip / strips; };
        const auto input_of = [&](const PieceOfTile& t) {
          return p.in + t.sample * p.in_batch +
                 (t.group * p.channels + t.channel * kDepth<T>)*p.in_channel;
        };
        const auto position_of = [&](const PieceOfTile& t) {
          return first_vector(t.first_strip) * W * p.in_step;
        };
        const auto weight_of = [&](const PieceOfTile& t, int64_t block) {
          return weights + (t.group * blocks + block) * block_size;
        };
        LinesAhead in_ahead, weight_ahead;
        int64_t staged_tile = -1;
        for (int64_t index = begin * pieces; index < end * pieces; ++index) {
          const PieceOfTile t = piece_at(index);
          const bool has_next = index + 1 < end * pieces;
          const PieceOfTile next = has_next ? piece_at(index + 1) : t;
          const bool is_first = t.channel == 0, is_last = t.last_channel == channels;
          if (!in_place && (pieces > 1 || staged_tile != t.tile))
            stage(staging, input_of(t), channels_of<T>(p, t.channel, t.last_channel), p.in_channel,
                  p.in_position, p.length, position_of(t), staged, false);
          staged_tile = t.tile;
          in_ahead = {};
          if (has_next && (pieces > 1 || next.tile != t.tile))
            in_ahead = lines_to_stage(staging, input_of(next),
                                      channels_of<T>(p, next.channel, next.last_channel),
                                      p.in_channel, p.in_position, position_of(next));
          const int64_t first = first_vector(t.first_strip);
          const T* const source =
              in_place ? if_same<const T>(input_of(t)) + position_of(t) : staged;
          const int64_t tile_strips = t.last_strip - t.first_strip;
          const int64_t in_share =
              divide_up(in_ahead.count(), divide_up(blocks, splits) * tile_strips);
          for (int64_t block = t.first_block; block < t.last_block; ++block) {
            const int64_t row = p.rows * block / blocks;
            const int rows = static_cast<int>(p.rows * (block + 1) / blocks - row);
            T* const weight = packed_late ? weights_of(1) : weight_of(t, block);
            if (packed_late) pack_block(t.group, block, t.channel, t.last_channel, weight);
            const bool same = block + 1 < t.last_block;
            weight_ahead = {};
            if (weights_are_far && (same || has_next)) {
              const PieceOfTile& of_next = same ? t : next;
              const int64_t channel_size = taps * weight_pitch;
              weight_ahead =
                  LinesAhead(weight_of(of_next, same ? block + 1 : of_next.first_block) +
                                 of_next.channel * channel_size,
                             1, 0, 1, 0, (of_next.last_channel - of_next.channel) * channel_size);
            }
            const int64_t weight_share = divide_up(weight_ahead.count(), tile_strips);
            Sum<T> bias[kTallRows];
            for (int i = 0; i < rows; ++i) bias[i] = bias_of(p, t.group * p.rows + row + i);
            int64_t next_vector = first;
            for (int64_t strip = t.first_strip; strip < t.last_strip; ++strip) {
              const int64_t v = next_vector;
              next_vector = first_vector(strip + 1);
              const int width = static_cast<int>(next_vector - v);
              in_ahead.ask(in_share);
              weight_ahead.template ask<LinesAhead::kIntoL2>(weight_share);
              const int64_t waiting =
                  pieces > 1 ? (block - t.first_block) * plan.strips + strip - t.first_strip : 0;
              Sum<T>* const strip_sums = sums + waiting * part_count * tile_size;
              for (int64_t part = 0; part < part_count; ++part) {
                const Correlation<S>& q = parts[part];
                const int64_t count = smaller(width * W, q.outputs - v * W);
                if (count <= 0) continue;
                Sum<T>* tile = strip_sums + part * tile_size;
                const Reduction& reduction = plans[part].reduction;
                // Read in place, nothing lies behind the last output: its vectors begin before.
                const int64_t before = in_place ? width * W - count : 0;
                const Steps steps =
                    overlap(reduction.of_channels(t.channel, t.last_channel),
                            steps_of(reduction, taps_inside(q, v * W, v * W + count)));
                const T* part_weight = weight + plans[part].weight_offset;
                S* out = q.out + t.sample * q.out_batch + t.group * q.out_group + row * q.out_row +
                         v * W * q.out_step;
                const bool plain = is_last && q.out_step == 1 && q.activation == Activation::none &&
                                   count == width * W;
                Product<T> product{
                    &part_weight,
                    source + ((v - first) * W - before - t.channel * staging.channel_pitch()),
                    reduction.weight_start,
                    reduction.in_start,
                    reduction.outer,
                    reduction.inner,
                    reduction.weight_step,
                    reduction.in_step,
                    tile,
                    width * W,
                    !is_first,
                    plain ? if_same<Stored<T>>(out) : nullptr,
                    q.out_row,
                    bias};
                multiply_block(shape, product, rows, width, steps);
                for (int i = 0; is_last && product.out == nullptr && !interleaved && i < rows; ++i)
                  finish_row(q, tile + i * width * W + before, bias[i], count, out + i * q.out_row);
              }
              for (int i = 0; is_last && interleaved && i < rows; ++i)
                interleave(strip_sums + i * width * W, tile_size, p.out_step,
                           smaller(width * W * p.out_step, length - v * W * p.out_step),
                           p.out + t.sample * p.out_batch + t.group * p.out_group +
                               (row + i) * p.out_row + v * W * p.out_step);
            }
          }
        }
      });
}
