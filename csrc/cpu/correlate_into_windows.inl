// The correlation with a turned weight, as in grad_input: what each input adds to its window is a
// sum of the weight's rows, read as they lie. For inputs that are next to each other. All classes
// of positions of one grad_input go together.

// Rows of the correlation with the taps in reach, one behind the other.
template <class S>
int64_t columns_of(const Correlation<S>& p, const TapReach& reach, int64_t rows) {
  return (rows - 1) * p.weight_row + reach.count();
}

// Whole samples make a tile of no more positions than these.
constexpr int64_t kMostWindowInputs = 48;

// tile[i][:] += sum over steps of scalars[i][step] * weight[step][:]
template <class S>
struct WeightRows {
  const Compute<S>* const* scalars;
  int64_t scalar_step;
  const S* weight;
  int64_t weight_step, steps;
  int lanes;  // of a lone vector
  Compute<S>* tile;
  int64_t tile_pitch;
  bool accumulate;  // or write
};

template <class S, int ROWS, int VECTORS>
void add_weight_rows(const WeightRows<S>& p) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  // The next rows are too far apart for the processor to foresee.
  constexpr int64_t kAhead = 16;
  constexpr int kLine = 64;
  Vector<T> sum[ROWS][VECTORS];
  const T* scalars[ROWS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    scalars[i] = p.scalars[i];
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = Vector<T>{};
  }
  const S* weight = p.weight;
  const auto vector = [&](int j) {
    if (j * W * static_cast<int>(sizeof(S)) % kLine == 0)
      __builtin_prefetch(weight + kAhead * p.weight_step + j * W, 0, 2);
    return VECTORS == 1 && p.lanes < W ? load_partial(weight, p.lanes) : load(weight + j * W);
  };
  // Registers are left for either the scalars or, with fewer of them, for the vectors.
  constexpr bool kScalarsStay = CONVLM_VECTOR_BYTES == 64;
  for (int64_t s = 0; s < p.steps; ++s, weight += p.weight_step) {
    Vector<T> v[VECTORS];
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; ++j) {
      v[j] = vector(j);
      if constexpr (ROWS > (kScalarsStay ? 1 : 2)) keep(v[j]);
#pragma GCC unroll 16
      for (int i = 0; kScalarsStay && i < ROWS; ++i)
        sum[i][j] = multiply_add(sum[i][j], scalars[i][s * p.scalar_step], v[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; !kScalarsStay && i < ROWS; ++i) {
      const T scalar = scalars[i][s * p.scalar_step];
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = multiply_add(sum[i][j], scalar, v[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; ++j) {
      T* out = p.tile + i * p.tile_pitch + j * W;
      store(out, p.accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
}

// Vectors of the weight that all positions of a tile take before the next ones, how many of them
// have their sums in registers together, and how many where not as many are left.
constexpr int kStripVectors = 12;
constexpr int strip_vectors(int rows) {
  return kStripVectors / (CONVLM_VECTOR_BYTES == 64 ? (rows + 1) / 2 : rows);
}
constexpr int rest_vectors(int rows) { return strip_vectors(rows) == kStripVectors ? 4 : 2; }

// As many of the `vectors` as go together; returns how many.
template <class S, int... I>
CONVLM_INLINE int64_t add_weight_rows(const WeightRows<S>& p, int rows, int64_t vectors,
                                      std::integer_sequence<int, I...>) {
  using Function = void (*)(const WeightRows<S>&);
  static constexpr Function strip[] = {&add_weight_rows<S, I + 1, strip_vectors(I + 1)>...};
  static constexpr Function rest[] = {&add_weight_rows<S, I + 1, rest_vectors(I + 1)>...};
  static constexpr Function lone[] = {&add_weight_rows<S, I + 1, 1>...};
  const bool fills_strip = vectors >= strip_vectors(rows),
             fills_rest = vectors >= rest_vectors(rows);
  (fills_strip ? strip : fills_rest ? rest : lone)[rows - 1](p);
  return fills_strip ? strip_vectors(rows) : fills_rest ? rest_vectors(rows) : 1;
}

// How outputs are put together from the windows of one sample, the same for all rows.
struct Addends {
  struct Output {
    int64_t at, last;  // where, and the end of its addends, which begin where others end
  };
  int64_t outputs;
  Output* output;
  int64_t* addend;  // where it is in the windows of a row
};

template <class S>
Addends addends_of_windows(const Correlation<S>* parts, int64_t part_count, const TapReach& reach,
                           int64_t pitch) {
  Addends all{};
  for (int64_t i = 0; i < part_count; ++i) all.outputs += parts[i].outputs;
  all.output = static_cast<Addends::Output*>(scratch(
      Slot::starts,
      sizeof(Addends::Output) * all.outputs + sizeof(int64_t) * parts[0].length * reach.count()));
  all.addend = reinterpret_cast<int64_t*>(all.output + all.outputs);
  Addends::Output* output = all.output;
  int64_t count = 0;
  for (int64_t i = 0; i < part_count; ++i)
    for (int64_t q = 0; q < parts[i].outputs; ++q) {
      for (int64_t j = 0; j < parts[i].taps; ++j) {
        const int64_t input = q + parts[i].tap_offset[j];
        if (input >= 0 && input < parts[i].length)
          all.addend[count++] = input * pitch + parts[i].tap_index[j] - reach.first;
      }
      *output++ = {parts[i].out - parts[0].out + q * parts[i].out_step, count};
    }
  return all;
}

template <class S>
void add_windows(const Addends& all, const Compute<S>* windows, S* out) {
  int64_t i = 0;
  for (int64_t o = 0; o < all.outputs; ++o) {
    Compute<S> sum = 0;
    for (; i < all.output[o].last; ++i) sum += windows[all.addend[i]];
    from_compute(sum, out[all.output[o].at]);
  }
}

// `parts` are one correlation, or the classes of all positions, those without taps among them.
template <class S>
void correlate_into_windows(const Correlation<S>* parts, int64_t part_count) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kColumns = 2 * kStripVectors * W;

  const Correlation<S>& p = parts[0];
  const TapReach reach = tap_reach(parts, part_count);
  const int64_t samples = larger(1, kMostWindowInputs / p.length);
  const int64_t tiles = divide_up(p.batch, samples);
  const int64_t tile_positions = divide_up(p.batch, tiles) * p.length;
  // Vectors of columns end where a chunk does.
  const int64_t chunk = larger(1, kColumns / (W * p.weight_row)) * W;
  const int64_t chunks = divide_up(p.rows, chunk);
  const int64_t pitch = divide_up(columns_of(p, reach, smaller(chunk, p.rows)), W) * W;
  const Addends addends = addends_of_windows(parts, part_count, reach, pitch);
  const bool in_place = std::is_same_v<S, T>;
  const int64_t zero = 0;

  parallel_jobs(
      p.groups * chunks * tiles, p.rows * reach.count() * p.channels * tile_positions / chunks,
      [&](int64_t begin, int64_t end) {
        T* scalars = static_cast<T*>(
            scratch(Slot::staged, in_place ? 0 : sizeof(T) * tile_positions * p.channels));
        T* windows = static_cast<T*>(scratch(Slot::tile, sizeof(T) * tile_positions * pitch));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t tile = job % tiles, index = job / tiles % chunks;
          const int64_t group = job / tiles / chunks;
          const int64_t first_sample = p.batch * tile / tiles;
          const int64_t positions = (p.batch * (tile + 1) / tiles - first_sample) * p.length;
          const int64_t first = index * chunk, rows = smaller(chunk, p.rows - first);
          const Windows<S> in{p.in + first_sample * p.in_batch + group * p.channels * p.in_channel,
                              p.in_batch,
                              p.in_channel,
                              p.in_position,
                              p.channels,
                              p.length,
                              p.length,
                              1,
                              1,
                              &zero};
          const T* input[kMostWindowInputs];
          for (int64_t i = 0; i < positions; ++i)
            input[i] = in_place ? if_same<const T>(in.start(i)) : scalars + i * p.channels;
          if (!in_place) in.stage(0, positions, scalars, p.channels);
          const int64_t blocks = divide_up(positions, kMaxRows);
          const int64_t row_step = in_place ? p.in_channel : 1;
          const S* weight = p.weight + group * p.weight_group + first * p.weight_row + reach.first;
          const int64_t columns = columns_of(p, reach, rows);
          for (int64_t strip = 0; strip < columns; strip += kStripVectors * W)
            for (int64_t c = 0; c < p.channels; c += kChain)
              for (int64_t block = 0; block < blocks; ++block) {
                const int64_t i = positions * block / blocks;
                const int height = static_cast<int>(positions * (block + 1) / blocks - i);
                const T* start[kMaxRows];
                for (int j = 0; j < height; ++j) start[j] = input[i + j] + c * row_step;
                const int64_t end = smaller(columns, strip + kStripVectors * W);
                for (int64_t column = strip; column < end;) {
                  const WeightRows<S> sums{start,
                                           row_step,
                                           weight + c * p.weight_channel + column,
                                           p.weight_channel,
                                           smaller(kChain, p.channels - c),
                                           static_cast<int>(smaller(W, end - column)),
                                           windows + i * pitch + column,
                                           pitch,
                                           c > 0};
                  column += W * add_weight_rows(sums, height, (end - column) / W,
                                                std::make_integer_sequence<int, kMaxRows>{});
                }
              }
          for (int64_t n = 0; n < positions / p.length; ++n)
            for (int64_t m = 0; m < rows; ++m)
              add_windows(addends, windows + n * p.length * pitch + m * p.weight_row,
                          p.out + (first_sample + n) * p.out_batch + group * p.out_group +
                              (first + m) * p.out_row);
        }
      });
}
