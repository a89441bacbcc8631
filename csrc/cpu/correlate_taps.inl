// The correlation by taps: the products of each input position with every tap first, which are then
// added to the outputs they belong to. Where there are few rows, an input is read once for all
// their taps; where the input is short against the reach of its taps, nothing is multiplied with
// padding. For inputs that are next to each other.

// Positions that go together. Their products with a few taps stay in the first cache.
constexpr int64_t kTapPositions = 256;
// Sums of samples that go together: they stay in the second cache.
constexpr int64_t kTapSums = 64 * 1024;
// Copies of the inputs pay where they are read more often than for these.
constexpr int64_t kMostColumnsInPlace = 2 * kMaxRows;

// The outputs that are worked on at once need these inputs, in tiles.
struct TapBlocks {
  int64_t outputs, count;  // of one block, and blocks of one sample
  int64_t samples;         // that share a tile, where they are short
};

template <class S>
TapBlocks tap_blocks(const Correlation<S>& p, TapRange taps) {
  // A block reads the inputs around it again, which are few where it is long.
  const int64_t spread =
      taps.count() > 0 ? p.tap_offset[taps.last - 1] - p.tap_offset[taps.first] : 0;
  const int64_t longest = larger(8 * kTapPositions, 4 * larger(spread, -spread));
  TapBlocks b;
  b.count = p.length <= kTapPositions ? 1 : divide_up(p.outputs, longest);
  b.outputs = divide_up(p.outputs, b.count);
  const int64_t by_inputs = kTapPositions / larger(1, p.length);
  b.samples = larger(1, smaller(p.batch, smaller(by_inputs, kTapSums / (p.rows * b.outputs))));
  return b;
}

// The weight of one group as [channel][row][tap], for the taps inside.
template <class T>
struct TapWeight {
  const T* data;
  int64_t pitch;  // between channels
};

// grad_input finds it like that.
template <class S>
bool is_by_channel(const Correlation<S>& p, TapRange taps) {
  bool natural = p.weight_tap == 1 && p.weight_row == p.taps && taps.count() == p.taps;
  for (int64_t j = 0; natural && j < p.taps; ++j) natural = p.tap_index[j] == j;
  return natural;
}

template <class S>
void pack_taps(const Correlation<S>& p, TapRange taps, int64_t group, Compute<S>* out) {
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t row = 0; row < p.rows; ++row) {
      const S* source =
          p.weight + group * p.weight_group + c * p.weight_channel + row * p.weight_row;
      for (int64_t j = taps.first; j < taps.last; ++j)
        *out++ = to_compute(source[p.tap_index[j] * p.weight_tap]);
    }
}

// Copies of `length` inputs from i0 on, for some samples side by side.
template <class S>
void stage_side_by_side(const Correlation<S>& p, const S* in, int64_t samples, int64_t i0,
                        int64_t length, Compute<S>* out, int64_t pitch) {
  for (int64_t c = 0; c < p.channels; ++c, in += p.in_channel, out += pitch)
    for (int64_t i = 0; i < samples; ++i) {
      const S* row = in + i * p.in_batch;
      if (length >= kLanes<Compute<S>>)
        stage_row(row, p.in_position, p.length, i0, 1, out + i * length, length);
      else
        for (int64_t t = 0; t < length; ++t)
          out[i * length + t] = to_compute(row[(i0 + t) * p.in_position]);
    }
}

template <class T>
CONVLM_INLINE void add_to_sums(const T* from, int64_t count, T* to) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= count; i += W) store(to + i, load(to + i) + load(from + i));
  if (i == count) return;
  const int rest = static_cast<int>(count - i);
  store_partial(to + i, load_partial(to + i, rest) + load_partial(from + i, rest), rest);
}

template <class S>
void correlate_by_taps(const Correlation<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  const TapRange taps = taps_inside(p, 0, p.outputs);
  const TapBlocks blocks = tap_blocks(p, taps);
  const int64_t columns = p.rows * taps.count();
  const T* in_place_weight = is_by_channel(p, taps) ? in_place(p.weight) : nullptr;
  T* packed = nullptr;
  if (in_place_weight == nullptr) {
    packed = static_cast<T*>(scratch(Slot::weight, sizeof(T) * p.groups * p.channels * columns));
    parallel_jobs(p.groups, p.channels * columns, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group)
        pack_taps(p, taps, group, packed + group * p.channels * columns);
    });
  }
  const auto weight_of_group = [&](int64_t group) {
    return in_place_weight != nullptr
               ? TapWeight<T>{in_place_weight + group * p.weight_group, p.weight_channel}
               : TapWeight<T>{packed + group * p.channels * columns, columns};
  };
  const bool reads_in_place =
      p.in_position == 1 && columns <= kMostColumnsInPlace && blocks.samples == 1;
  const T* in_place_input = reads_in_place ? in_place(p.in) : nullptr;

  // A range of rows is a job of its own where there are fewer others than threads; it stages again.
  const int64_t tiles = divide_up(p.batch, blocks.samples) * p.groups * blocks.count;
  const int64_t ranges = smaller(p.rows, divide_up(threads(), tiles));
  const int64_t lanes = divide_up(blocks.samples * smaller(p.length, kTapPositions), W) * W;
  const int64_t in_pitch = staged_pitch(lanes, W), sum_pitch = blocks.outputs + W;
  const int64_t range_rows = divide_up(p.rows, ranges);
  parallel_jobs(
      tiles * ranges, blocks.samples * p.length * p.channels * columns / (ranges * blocks.count),
      [&](int64_t begin, int64_t end) {
        T* staged = static_cast<T*>(scratch(Slot::staged, sizeof(T) * p.channels * in_pitch));
        T* products = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kMaxRows * lanes));
        T* sums = static_cast<T*>(
            scratch(Slot::panel, sizeof(T) * blocks.samples * range_rows * sum_pitch));
        const int64_t start = 0;
        for (int64_t job = begin; job < end; ++job) {
          const int64_t range = job % ranges, block = job / ranges % blocks.count;
          const int64_t group = job / ranges / blocks.count % p.groups;
          const int64_t n0 = job / ranges / blocks.count / p.groups * blocks.samples;
          const int64_t samples = smaller(blocks.samples, p.batch - n0);
          const int64_t r0 = p.rows * range / ranges, r1 = p.rows * (range + 1) / ranges;
          const int64_t q0 = p.outputs * block / blocks.count;
          const int64_t q1 = p.outputs * (block + 1) / blocks.count;
          const TapWeight<T> weight = weight_of_group(group);
          const int64_t in_start = n0 * p.in_batch + group * p.channels * p.in_channel;
          for (int64_t i = 0; i < samples * (r1 - r0) * sum_pitch; ++i) sums[i] = 0;
          int64_t first = p.length, last = 0;  // the inputs that these outputs read
          for (int64_t j = taps.first; j < taps.last; ++j) {
            first = smaller(first, larger(0, q0 + p.tap_offset[j]));
            last = larger(last, smaller(p.length, q1 + p.tap_offset[j]));
          }
          for (int64_t i0 = first; i0 < last; i0 += kTapPositions) {
            const int64_t length = smaller(kTapPositions, last - i0);
            const int64_t vectors = divide_up(samples * length, W);
            // The last vector of a row may end past the tensor.
            const int64_t read_in_place = in_place_input == nullptr ? 0 : length / W;
            if (read_in_place < vectors)
              stage_side_by_side(p, p.in + in_start, samples, i0 + read_in_place * W,
                                 length - read_in_place * W, staged, in_pitch);
            const int64_t first_column = r0 * taps.count(), last_column = r1 * taps.count();
            for (int64_t column = first_column; column < last_column; column += kMaxRows) {
              const int count = static_cast<int>(smaller(kMaxRows, last_column - column));
              const T* rows = weight.data + column;
              const auto multiply_vectors = [&](const T* in, int64_t pitch, int64_t from,
                                                int64_t to) {
                const int64_t strips = divide_up(to - from, kMaxVectors);
                for (int64_t strip = 0; strip < strips; ++strip) {
                  const int64_t v = (to - from) * strip / strips;
                  const int width = static_cast<int>((to - from) * (strip + 1) / strips - v);
                  multiply<T, true>(
                      Product<T>{&rows, in + v * W, &start, &start, 1, p.channels, weight.pitch,
                                 pitch, products + (from + v) * W, lanes, false},
                      count, width);
                }
              };
              if (read_in_place > 0)
                multiply_vectors(in_place_input + in_start + i0, p.in_channel, 0, read_in_place);
              multiply_vectors(staged, in_pitch, read_in_place, vectors);
              for (int64_t k = column; k < column + count; ++k) {
                const int64_t row = k / taps.count() - r0;
                const int64_t offset = p.tap_offset[taps.first + k % taps.count()];
                const int64_t from = larger(i0, q0 + offset);
                const int64_t to = smaller(i0 + length, q1 + offset);
                for (int64_t i = 0; from < to && i < samples; ++i)
                  add_to_sums(products + (k - column) * lanes + i * length + from - i0, to - from,
                              sums + (i * (r1 - r0) + row) * sum_pitch + from - offset - q0);
              }
            }
          }
          for (int64_t i = 0; i < samples; ++i)
            for (int64_t row = r0; row < r1; ++row)
              finish_row(p, sums + (i * (r1 - r0) + row - r0) * sum_pitch,
                         bias_of(p, group * p.rows + row), q1 - q0,
                         p.out + (n0 + i) * p.out_batch + group * p.out_group + row * p.out_row +
                             q0 * p.out_step);
        }
      });
}
