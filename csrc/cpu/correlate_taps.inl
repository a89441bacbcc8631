// The correlation by taps: each input is multiplied by all weights that it meets first, and what
// each tap made of it is then added to the output which that tap belongs to. Where there are few
// rows, an input is read once for all their taps; where the input is short against the reach of its
// taps, nothing is multiplied with padding; and samples are joined where they are short. For inputs
// that are next to each other. All classes of positions of one grad_input go together.

// Positions that go together where a sample is long.
constexpr int64_t kTapPositions = 256;
// Copies of the inputs pay where they are read more often than for these columns. Otherwise long
// pieces of some channels are read where they are: of fewer, sums would wait for each other, and
// from afar more are not read as fast. What no cache holds is asked for ahead.
constexpr int64_t kMostColumnsInPlace = 2 * kMaxRows;
constexpr int64_t kPositionsInPlace = 512, kChannelsInPlace = 32;
constexpr int64_t kFarBytes = 16 * 1024 * 1024;
// Taps of a row that are multiplied on their own where the rows' weights are apart.
constexpr int64_t kFewestTapsInPlace = kMaxRows / 2;

// The taps of the weight that read a part of the input in some class of positions, and how far.
struct TapReach {
  int64_t first, last;      // taps
  int64_t lowest, highest;  // offsets
  int64_t count() const { return last - first; }
};

template <class S>
TapReach tap_reach(const Correlation<S>* parts, int64_t part_count) {
  TapReach reach{};
  bool any = false;
  for (int64_t i = 0; i < part_count; ++i) {
    const TapRange taps = taps_inside(parts[i], 0, parts[i].outputs);
    for (int64_t j = taps.first; j < taps.last; ++j) {
      const int64_t tap = parts[i].tap_index[j], offset = parts[i].tap_offset[j];
      reach.first = any ? smaller(reach.first, tap) : tap;
      reach.last = larger(reach.last, tap + 1);
      reach.lowest = any ? smaller(reach.lowest, offset) : offset;
      reach.highest = any ? larger(reach.highest, offset) : offset;
      any = true;
    }
  }
  return reach;
}

// ---- the weight, as [channel][row][tap] for the taps in reach ----

template <class S>
bool weight_is_by_rows(const Correlation<S>& p, const TapReach& taps) {
  return p.weight_tap == 1 && p.weight_row == taps.count();
}
template <class T, class S>
bool weight_may_stay(const Correlation<S>& p, const TapReach& taps) {
  // A power of two between the weights of two channels would have them all in one place in the
  // cache.
  return std::is_same_v<S, T> && p.weight_tap == 1 && p.weight_channel % (4 * kLanes<T>) != 0 &&
         (weight_is_by_rows(p, taps) || taps.count() >= kFewestTapsInPlace);
}

template <class T>
struct TapWeight {
  const T* data;
  int64_t group, channel, row;  // strides
};

template <class T, class S>
TapWeight<T> weight_of_taps(const Correlation<S>& p, const TapReach& taps) {
  if (weight_may_stay<T>(p, taps))
    return {if_same<const T>(p.weight) + taps.first, p.weight_group, p.weight_channel,
            p.weight_row};
  const int64_t channels = divide_up(p.channels, kDepth<T>);
  const bool by_rows = weight_is_by_rows(p, taps);
  const int64_t stretches = by_rows ? 1 : p.rows;
  const int64_t length = by_rows ? p.rows * taps.count() : taps.count();
  const int64_t pitch = staged_pitch(p.rows * taps.count(), kLanes<T>);
  T* packed = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * channels * pitch));
  parallel_jobs(p.groups * channels, pitch, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const S* source = p.weight + job / channels * p.weight_group + taps.first * p.weight_tap;
      T* out = packed + job * pitch;
      for (int64_t i = 0; i < stretches; ++i, source += p.weight_row, out += length) {
        const auto row = OperandRows<T, S>{source, p.weight_channel, p.channels}(job % channels);
        if (length >= kLanes<T>)
          stage_source(row, p.weight_tap, length, 0, 1, out, length);
        else
          for (int64_t t = 0; t < length; ++t) out[t] = row.element(t * p.weight_tap);
      }
    }
  });
  return {packed, channels * pitch, pitch, taps.count()};
}

// ---- from products to outputs ----

// What a tap adds to a vector of outputs.
template <class T>
struct Addend {
  int64_t offset;    // in the products, from the lane of the sample's first input
  Integers<T> mask;  // of the lanes that have such an input
};

// The taps that add to the outputs from `start` on, of which there is a vector, what inputs
// [begin, end) make of them; returns how many.
template <class S, class T>
int64_t addends_of(const Correlation<S>& part, const TapReach& reach, int64_t start, int64_t begin,
                   int64_t end, int64_t pitch, Addend<T>* addends) {
  constexpr int W = kLanes<T>;
  if (part.taps == 0) return 0;
  // Offsets are evenly spaced.
  const int64_t spacing = part.taps > 1 ? part.tap_offset[1] - part.tap_offset[0] : 1;
  const int64_t before = begin - start - W - part.tap_offset[0];  // too low an offset
  const int64_t after = end - start - part.tap_offset[0];         // too high a one
  const int64_t first =
      spacing > 0 ? divide_down(before, spacing) + 1 : divide_down(-after, -spacing) + 1;
  const int64_t last =
      spacing > 0 ? divide_down(after - 1, spacing) + 1 : divide_down(-before - 1, -spacing) + 1;
  Integers<T> lanes;
  using Lane = std::remove_reference_t<decltype(lanes[0])>;
  for (int l = 0; l < W; ++l) lanes[l] = l;
  int64_t count = 0;
  for (int64_t j = larger(0, first); j < smaller(part.taps, last); ++j) {
    const int64_t input = start + part.tap_offset[j] - begin, tap = part.tap_index[j] - reach.first;
    if (tap < 0 || tap >= reach.count()) continue;  // beyond the last output
    Addend<T>& addend = addends[count++];
    addend.offset = tap * pitch + input;
    const Integers<T> inputs = lanes + static_cast<Lane>(input);
    addend.mask = (inputs >= 0) & (inputs < static_cast<Lane>(end - begin));
  }
  return count;
}

// out[row] = the sum of the addends in products[row], and of what is there already: a vector, of
// which `stored` lanes.
template <class T, class Out>
void add_up(const T* products, int64_t pitch, const Addend<T>* addends, int64_t count, int64_t rows,
            Out* out, int64_t out_pitch, int stored, bool accumulate) {
  const auto addend = [&](int64_t row, int64_t a) {
    const Vector<T> product = load(products + row * pitch + addends[a].offset);
    return (Vector<T>)((Integers<T>)product & addends[a].mask);
  };
  const auto store_sums = [&](const auto& sum_of) {
    if (stored == kLanes<T>)
      for (int64_t row = 0; row < rows; ++row) store(out + row * out_pitch, sum_of(row));
    else
      for (int64_t row = 0; row < rows; ++row)
        store_partial(out + row * out_pitch, sum_of(row), stored);
  };
  // A loop over one or two would cost more than they do.
  if (!accumulate && count == 1) return store_sums([&](int64_t row) { return addend(row, 0); });
  if (!accumulate && count == 2)
    return store_sums([&](int64_t row) { return addend(row, 0) + addend(row, 1); });
  store_sums([&](int64_t row) {
    Vector<T> sum{};
    if (accumulate) sum = load(out + row * out_pitch);
    for (int64_t a = 0; a < count; ++a) sum += addend(row, a);
    return sum;
  });
}

// How many samples a tile has: as many as fill its vectors best, and a tile for each thread.
inline int64_t samples_of_tile(int64_t batch, int64_t length, int64_t lanes) {
  int64_t samples = 1;
  for (int64_t n = 2; n <= smaller(batch, kJoinedVectors * lanes / length); ++n)
    if (n * divide_up(samples * length, lanes) >= samples * divide_up(n * length, lanes))
      samples = n;
  const int64_t tiles = divide_up(batch, samples * threads()) * threads();
  return divide_up(batch, smaller(batch, tiles));
}

// `parts` are one correlation, or the classes of all positions, those without taps among them.
template <class T, class S>
void correlate_by_taps(const Correlation<S>* parts, int64_t part_count) {
  using R = Sum<T>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kProductBytes = 64 * 1024;

  const Correlation<S>& p = parts[0];
  const int64_t channels = divide_up(p.channels, kDepth<T>);
  const TapReach taps = tap_reach(parts, part_count);
  const TapWeight<T> weight = weight_of_taps<T>(p, taps);
  const bool by_rows = weight.row == taps.count();
  int64_t outputs = 0;
  for (int64_t i = 0; i < part_count; ++i) outputs = larger(outputs, parts[i].outputs);

  // A block of outputs reads the inputs around it again, which are few where it is long.
  const bool is_long = p.length > kTapPositions;
  // Where the sums begin and end shows in the bits: whether inputs can stay must not decide it.
  const bool few_columns = is_long && p.rows * taps.count() <= kMostColumnsInPlace;
  const int64_t stretch_positions = few_columns ? kPositionsInPlace : kTapPositions;
  const int64_t piece = few_columns ? kChannelsInPlace : channels;
  const T* input = few_columns && p.in_position == 1 ? if_same<const T>(p.in) : nullptr;
  const bool is_far =
      p.batch * p.groups * p.channels * p.length * static_cast<int64_t>(sizeof(S)) > kFarBytes;
  const int64_t longest = larger(8 * kTapPositions, 4 * (taps.highest - taps.lowest));
  const int64_t blocks = is_long ? divide_up(outputs, longest) : 1;
  const int64_t samples = is_long ? 1 : samples_of_tile(p.batch, p.length, W);
  const int64_t tiles = divide_up(p.batch, samples);
  const int64_t pitch = staged_pitch(is_long ? stretch_positions : samples * p.length, W);
  const int64_t chunk = larger(
      1, kProductBytes / (static_cast<int64_t>(sizeof(R)) * larger(1, taps.count()) * pitch));
  const int64_t chunks = divide_up(p.rows, chunk);
  const int64_t ranges = smaller(chunks, divide_up(threads(), tiles * p.groups * blocks));
  // Sums are outputs at once where nothing more is to be done with them.
  const bool at_once =
      !is_long && p.out_step == 1 && p.bias == nullptr && p.activation == Activation::none;
  const int64_t part_pitch = (divide_up(divide_up(outputs, blocks), W) + 1) * W;
  const int64_t row_size = samples * part_count * part_pitch;
  const int64_t sum_rows = is_long ? divide_up(chunks, ranges) * chunk : chunk;

  int64_t zero = 0, sample_starts[2];
  Staging sample;
  sample.stream_start = sample_starts;
  sample.tap_start = sample_starts + 1;
  plan_for_vectors(sample, smaller(p.length, stretch_positions), 1, &zero, 1, W);

  parallel_jobs(
      tiles * p.groups * blocks * ranges,
      p.rows * taps.count() * p.channels * samples * p.length / (ranges * blocks),
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::panel, sizeof(T) * channels * pitch));
        // Vectors that begin before a sample's first input, or end after its last one, may reach
        // beyond the products.
        R* products = static_cast<R*>(
                          scratch(Slot::tile, sizeof(R) * (chunk * taps.count() * pitch + 2 * W))) +
                      W;
        Addend<R>* addends =
            static_cast<Addend<R>*>(scratch(Slot::starts, sizeof(Addend<R>) * taps.count()));
        R* sums =
            static_cast<R*>(scratch(Slot::partial, at_once ? 0 : sizeof(R) * sum_rows * row_size));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t range = job % ranges, block = job / ranges % blocks;
          const int64_t group = job / ranges / blocks % p.groups;
          const int64_t tile = job / ranges / blocks / p.groups;
          const int64_t first_sample = p.batch * tile / tiles;
          const int64_t last_sample = p.batch * (tile + 1) / tiles;
          const int64_t q0 = outputs * block / blocks, q1 = outputs * (block + 1) / blocks;
          const int64_t range_row = p.rows * (chunks * range / ranges) / chunks;
          // The inputs that these outputs read, in stretches where a sample is long.
          const int64_t low = is_long ? larger(0, q0 + taps.lowest) : 0;
          const int64_t high =
              is_long ? larger(low, smaller(p.length, q1 + taps.highest)) : p.length;
          const int64_t stretches = larger(1, divide_up(high - low, stretch_positions));
          for (int64_t stretch = 0; stretch < stretches; ++stretch) {
            const int64_t i0 = low + (high - low) * stretch / stretches;
            const int64_t i1 = low + (high - low) * (stretch + 1) / stretches;
            const int64_t lanes = (last_sample - first_sample) * (i1 - i0);
            const int64_t vectors = divide_up(lanes, W);
            const S* in = p.in + group * p.channels * p.in_channel;
            // The last vector of a row may end past the tensor.
            const int64_t in_place = input == nullptr ? 0 : lanes / W;
            if (in_place < vectors) {
              const int64_t from = first_sample * p.length + i0 + in_place * W;
              const JoinedInput<S> rest{in,         p.in_batch, p.in_channel, p.in_position,
                                        p.channels, p.length,   p.length,     1,
                                        1,          &zero,      sample};
              stage_joined<T>(rest, Runs(p.length, from, from + lanes - in_place * W), staged,
                              pitch);
            }
            for (int64_t k = chunks * range / ranges; k < chunks * (range + 1) / ranges; ++k) {
              const int64_t first = p.rows * k / chunks, count = p.rows * (k + 1) / chunks - first;
              const T* rows = weight.data + group * weight.group + first * weight.row;
              LinesAhead ahead;
              const auto multiply_columns = [&](const T* column, int64_t to, int height,
                                                int64_t first_channel, int64_t channel_count) {
                column += first_channel * weight.channel;
                const auto multiply_vectors = [&](const T* vector, int64_t step, int64_t from,
                                                  int64_t end) {
                  const int64_t strips = divide_up(end - from, kMaxVectors);
                  for (int64_t strip = 0; strip < strips; ++strip) {
                    const int64_t v = (end - from) * strip / strips;
                    const int width = static_cast<int>((end - from) * (strip + 1) / strips - v);
                    ahead.ask<LinesAhead::kIntoL2>(divide_up(ahead.count(), strips));
                    multiply<T, true>(Product<T>{&column, vector + first_channel * step + v * W,
                                                 &zero, &zero, 1, channel_count, weight.channel,
                                                 step, products + to * pitch + (from + v) * W,
                                                 pitch, first_channel > 0},
                                      height, width);
                  }
                };
                if (in_place > 0)
                  multiply_vectors(
                      input + first_sample * p.in_batch + group * p.channels * p.in_channel + i0,
                      p.in_channel, 0, in_place);
                multiply_vectors(staged, pitch, in_place, vectors);
              };
              // Blocks of columns, of several rows where their weights lie together.
              const int64_t length = by_rows ? count * taps.count() : taps.count();
              const int64_t column_blocks = divide_up(length, kMaxRows);
              for (int64_t c = 0; c < channels; c += piece) {
                const int64_t next = c + piece;
                if (is_far && in_place > 0 && next < channels)
                  ahead =
                      LinesAhead(input + first_sample * p.in_batch +
                                     (group * p.channels + next) * p.in_channel + i0,
                                 smaller(piece, channels - next), p.in_channel, 1, 0, in_place * W);
                for (int64_t row = 0; row < (by_rows ? 1 : count); ++row)
                  for (int64_t b = 0; b < column_blocks; ++b) {
                    const int64_t column = length * b / column_blocks;
                    multiply_columns(rows + row * weight.row + column, row * length + column,
                                     static_cast<int>(length * (b + 1) / column_blocks - column), c,
                                     smaller(piece, channels - c));
                  }
              }
              R* chunk_sums = sums + (is_long ? first - range_row : 0) * row_size;
              for (int64_t i = 0; i < part_count; ++i) {
                const int64_t last = smaller(q1, parts[i].outputs);
                for (int64_t q = q0; q < last; q += W) {
                  // The last vector of an output overlaps the one before it, where there is one.
                  const int64_t start = at_once ? larger(0, smaller(q, last - W)) : q;
                  const int stored = at_once ? static_cast<int>(smaller(W, last)) : W;
                  const int64_t terms = addends_of(parts[i], taps, start, i0, i1, pitch, addends);
                  if (stretch > 0 && terms == 0) continue;
                  for (int64_t n = first_sample; n < last_sample; ++n) {
                    const R* in_lane = products + (n - first_sample) * (i1 - i0);
                    if (at_once)
                      add_up(
                          in_lane, taps.count() * pitch, addends, terms, count,
                          p.out + n * p.out_batch + group * p.out_group + first * p.out_row + start,
                          p.out_row, stored, false);
                    else
                      add_up(in_lane, taps.count() * pitch, addends, terms, count,
                             chunk_sums + ((n - first_sample) * part_count + i) * part_pitch +
                                 start - q0,
                             row_size, W, stretch > 0);
                  }
                }
              }
              for (int64_t row = 0; !at_once && stretch + 1 == stretches && row < count; ++row)
                for (int64_t n = first_sample; n < last_sample; ++n) {
                  R* phases =
                      chunk_sums + row * row_size + (n - first_sample) * part_count * part_pitch;
                  S* out = p.out + n * p.out_batch + group * p.out_group +
                           (first + row) * p.out_row + q0 * p.out_step;
                  if (p.out_step == 1)
                    finish_row(p, phases, bias_of(p, group * p.rows + first + row), q1 - q0, out);
                  else
                    interleave(phases, part_pitch, p.out_step,
                               smaller(p.out_row, q1 * p.out_step) - q0 * p.out_step, out);
                }
            }
          }
        }
      });
}
