// grad_input of joined samples: each output is multiplied by all weights that it met, and what each
// tap made of it is added to the position which that tap read. Nothing is multiplied but outputs,
// where a correlation would multiply their padding, too, and weights are read as they lie.

// What a tap adds to a vector of positions.
template <class T>
struct Addend {
  int64_t offset;    // in the products, from the lane of the sample's first output
  Integers<T> mask;  // of the lanes that have such an output
};

// The taps that add to the positions from `start` on, of which there is a vector; returns how many.
template <class S, class T>
int64_t addends_of(const Correlation<S>& part, int64_t start, int64_t pitch, Addend<T>* addends) {
  constexpr int W = kLanes<T>;
  int64_t count = 0;
  for (int64_t j = 0; j < part.taps; ++j) {
    const int64_t output = start + part.tap_offset[j];
    if (output <= -W || output >= part.length) continue;
    Addend<T>& addend = addends[count++];
    addend.offset = part.tap_index[j] * pitch + output;
    for (int l = 0; l < W; ++l)
      addend.mask[l] = output + l >= 0 && output + l < part.length ? -1 : 0;
  }
  return count;
}

// out[row] = the sum of the addends in products[row]: a vector, of which `stored` lanes.
template <class T, class Out>
void add_up(const T* products, int64_t pitch, const Addend<T>* addends, int64_t count, int64_t rows,
            Out* out, int64_t out_pitch, int stored) {
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
  if (count == 1) return store_sums([&](int64_t row) { return addend(row, 0); });
  if (count == 2) return store_sums([&](int64_t row) { return addend(row, 0) + addend(row, 1); });
  store_sums([&](int64_t row) {
    Vector<T> sum{};
    for (int64_t a = 0; a < count; ++a) sum += addend(row, a);
    return sum;
  });
}

// Puts the classes of positions, of which the first ones may have one position more than the
// others, together again.
template <class S, class T>
void interleave(const Correlation<S>& p, int64_t part_count, const T* phases, int64_t pitch,
                S* out) {
  const int64_t length = p.out_row, whole = length / p.out_step;
  transpose(phases, pitch, part_count, whole, out, p.out_step);
  for (int64_t i = whole * p.out_step; i < length; ++i)
    from_compute(phases[i % p.out_step * pitch + whole], out[i]);
}

// How many samples a tile has: as many as fill its vectors best, and a tile for each thread.
inline int64_t samples_of_tile(int64_t batch, int64_t outputs, int64_t lanes) {
  int64_t samples = 1;
  for (int64_t n = 2; n <= smaller(batch, kJoinedVectors * lanes / outputs); ++n)
    if (n * divide_up(samples * outputs, lanes) >= samples * divide_up(n * outputs, lanes))
      samples = n;
  const int64_t tiles = divide_up(batch, samples * threads()) * threads();
  return divide_up(batch, smaller(batch, tiles));
}

// `parts` are the classes of all positions, those without taps among them.
template <class T, class S>
void grad_input_joined(const Correlation<S>* parts, int64_t part_count) {
  using R = Sum<T>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kProductBytes = 64 * 1024;

  const Correlation<S>& p = parts[0];
  const int64_t channels = divide_up(p.channels, kDepth<T>), outputs = p.length;
  int64_t taps = 0, positions = 0;
  for (int64_t i = 0; i < part_count; ++i) {
    positions = larger(positions, parts[i].outputs);
    for (int64_t j = 0; j < parts[i].taps; ++j) taps = larger(taps, parts[i].tap_index[j] + 1);
  }
  const int64_t samples = samples_of_tile(p.batch, outputs, W);
  const int64_t tiles = divide_up(p.batch, samples);
  const int64_t pitch = staged_pitch(samples * outputs, W);
  const int64_t chunk = larger(1, kProductBytes / (static_cast<int64_t>(sizeof(R)) * taps * pitch));
  const int64_t chunks = divide_up(p.rows, chunk);
  const int64_t ranges = smaller(chunks, divide_up(threads(), tiles * p.groups));

  int64_t zero = 0;
  int64_t sample_starts[2];
  Staging sample;
  sample.stream_start = sample_starts;
  sample.tap_start = sample_starts + 1;
  plan_for_vectors(sample, outputs, 1, &zero, 1, W);

  // A power of two between the weights of two channels would have them all in one place in the
  // cache.
  const bool together = p.weight_tap == 1 && p.weight_row == taps;
  const T* weights = if_same<const T>(const_cast<S*>(p.weight));
  int64_t weight_group = p.weight_group, weight_step = p.weight_channel;
  if (!together || weights == nullptr || weight_step % (4 * W) == 0) {
    weight_step = staged_pitch(p.rows * taps, W);
    weight_group = channels * weight_step;
    T* packed = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * weight_group));
    parallel_jobs(p.groups * channels, weight_step, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const S* source = p.weight + job / channels * p.weight_group;
        T* out = packed + job * weight_step;
        const int64_t stretch = together ? p.rows * taps : taps;
        for (int64_t i = 0; i < p.rows * taps; i += stretch, source += p.weight_row)
          stage_source(OperandRows<T, S>{source, p.weight_channel, p.channels}(job % channels),
                       p.weight_tap, stretch, 0, 1, out + i, stretch);
      }
    });
    weights = packed;
  }

  const int64_t row_pitch = divide_up(positions, W) * W;
  parallel_jobs(
      tiles * p.groups * ranges, p.rows * taps * p.channels * samples * outputs / ranges,
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::panel, sizeof(T) * channels * pitch));
        // Vectors that begin before a sample's first output, or end after its last one, may reach
        // beyond the products.
        R* products =
            static_cast<R*>(scratch(Slot::tile, sizeof(R) * (chunk * taps * pitch + 2 * W))) + W;
        Addend<R>* addends =
            static_cast<Addend<R>*>(scratch(Slot::partial, sizeof(Addend<R>) * taps));
        R* phases = static_cast<R*>(
            scratch(Slot::last, sizeof(R) * chunk * samples * part_count * row_pitch));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t range = job % ranges, group = job / ranges % p.groups;
          const int64_t tile = job / ranges / p.groups;
          const int64_t first_sample = p.batch * tile / tiles;
          const int64_t last_sample = p.batch * (tile + 1) / tiles;
          const int64_t vectors = divide_up((last_sample - first_sample) * outputs, W);
          const int64_t strips = divide_up(vectors, kMaxVectors);
          const Runs runs(outputs, first_sample * outputs, last_sample * outputs);
          const JoinedInput<S> in{p.in + group * p.channels * p.in_channel,
                                  p.in_batch,
                                  p.in_channel,
                                  p.in_position,
                                  p.channels,
                                  outputs,
                                  outputs,
                                  1,
                                  1,
                                  &zero,
                                  sample};
          stage_joined<T>(in, runs, staged, pitch);
          for (int64_t k = chunks * range / ranges; k < chunks * (range + 1) / ranges; ++k) {
            const int64_t first = p.rows * k / chunks, count = p.rows * (k + 1) / chunks - first;
            const int64_t blocks = divide_up(count * taps, kMaxRows);
            for (int64_t block = 0; block < blocks; ++block) {
              const int64_t row = count * taps * block / blocks;
              const int rows = static_cast<int>(count * taps * (block + 1) / blocks - row);
              const T* weight = weights + group * weight_group + first * taps + row;
              for (int64_t strip = 0; strip < strips; ++strip) {
                const int64_t v = vectors * strip / strips;
                const int width = static_cast<int>(vectors * (strip + 1) / strips - v);
                const Product<T> product{&weight,
                                         staged + v * W,
                                         &zero,
                                         &zero,
                                         1,
                                         channels,
                                         weight_step,
                                         pitch,
                                         products + row * pitch + v * W,
                                         pitch,
                                         false};
                multiply<T, true>(product, rows, width);
              }
            }
            for (int64_t i = 0; i < part_count; ++i)
              for (int64_t q = 0; q < parts[i].outputs; q += W) {
                // The last vector overlaps the one before it, where there is one.
                const int64_t start = larger(0, smaller(q, parts[i].outputs - W));
                const int stored = static_cast<int>(smaller(W, parts[i].outputs));
                const int64_t terms = addends_of(parts[i], start, pitch, addends);
                for (const Run& run : runs) {
                  const R* in_lane = products + run.lane;
                  if (p.out_step == 1)
                    add_up(in_lane, taps * pitch, addends, terms, count,
                           p.out + run.sample * p.out_batch + group * p.out_group +
                               first * p.out_row + start,
                           p.out_row, stored);
                  else
                    add_up(
                        in_lane, taps * pitch, addends, terms, count,
                        phases + ((run.sample - first_sample) * part_count + i) * row_pitch + start,
                        samples * part_count * row_pitch, W);
                }
              }
            for (int64_t c = 0; p.out_step > 1 && c < count; ++c)
              for (const Run& run : runs)
                interleave(
                    p, part_count,
                    phases + (c * samples + run.sample - first_sample) * part_count * row_pitch,
                    row_pitch,
                    p.out + run.sample * p.out_batch + group * p.out_group +
                        (first + c) * p.out_row);
          }
        }
      });
}
