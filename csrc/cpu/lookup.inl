// y[n][o][t] = bias[o] + sum over k of table[k][tokens[n][input_position(t, k)]][o], without the
// taps that read padding: the convolution of one-hot vectors, as sums of rows of its weight.

// The taps of one output that read a token: a range, as the others read padding to its left and
// right.
struct Taps {
  int64_t first, last;
  int64_t position;  // that `first` reads
};

inline Taps taps_of(const Conv1dGeometry& g, int64_t t) {
  const int64_t start = input_position(t, 0, g.stride, g.dilation, g.pad_left);
  const int64_t end = start + g.kernel_size * g.dilation;
  if (start >= 0 && end <= g.length) return {0, g.kernel_size, start};  // no division
  const int64_t first = start < 0 ? divide_up(-start, g.dilation) : 0;
  const int64_t last = start < g.length ? divide_up(g.length - start, g.dilation) : 0;
  return {first, smaller(g.kernel_size, last), start + first * g.dilation};
}

// What outputs that are next to each other look up. Row k * vocab + token of the table is tap k's.
struct Walk {
  const Conv1dGeometry& geometry;
  const int64_t* tokens;  // of one sample
  int64_t pitch;          // of the table's rows

  // For each tap in order calls body(offsets of the rows of N outputs, all with these taps).
  template <int N, class Body>
  CONVLM_INLINE void for_each_tap(const Taps& taps, const Body& body) const {
    // All in locals: the compiler must take a store of a vector for one to anything in memory.
    const int64_t tap_size = geometry.in_channels * pitch, row_size = pitch;
    const int64_t dilation = geometry.dilation, stride = geometry.stride;
    const int64_t* token = tokens + taps.position;
    for (int64_t start = taps.first * tap_size; start < taps.last * tap_size; start += tap_size) {
      int64_t row[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) row[i] = start + token[i * stride] * row_size;
      body(row);
      token += dilation;
    }
  }

  // Calls body(integral constant N, index, taps) for the outputs first + [index, index + N): N is
  // MOST where all of these have every tap, and else 1.
  template <int MOST, class Body>
  CONVLM_INLINE void for_outputs(int64_t first, int64_t count, const Body& body) const {
    for (int64_t t = 0; t < count;) {
      const Taps taps = taps_of(geometry, first + t);
      if (t + MOST <= count && has_all(taps) && has_all(taps_of(geometry, first + t + MOST - 1))) {
        body(std::integral_constant<int, MOST>{}, t, taps);
        t += MOST;
      } else {
        body(std::integral_constant<int, 1>{}, t, taps);
        ++t;
      }
    }
  }

  bool has_all(const Taps& taps) const {
    return taps.first == 0 && taps.last == geometry.kernel_size;
  }
};

// How many vectors of channels are worked on at once, and of how many outputs: what the registers
// hold.
constexpr int kRowVectors = 4;
template <int VECTORS>
constexpr int kRowOutputs = VECTORS > 2 ? 2 : 4;

// Calls body(integral constant VECTORS, first channel) for blocks of at most kRowVectors vectors.
template <int VECTORS = kRowVectors, class Body>
CONVLM_INLINE void for_blocks(int64_t vectors, int64_t lanes, const Body& body, int64_t c = 0) {
  for (; vectors >= VECTORS; vectors -= VECTORS, c += VECTORS * lanes)
    body(std::integral_constant<int, VECTORS>{}, c);
  if constexpr (VECTORS > 1) for_blocks<VECTORS - 1>(vectors, lanes, body, c);
}

// out = start + the sum of the rows, for N outputs. PARTIAL: the last vector has only `last` lanes
// in the table.
template <int VECTORS, bool PARTIAL, int N, class S>
CONVLM_INLINE void sum_rows(const S* table, const Walk& walk, const Taps& taps,
                            const Compute<S>* start, int last, Compute<S>* out, int64_t out_pitch) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  Vector<T> sum[N][VECTORS];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = load(start + j * W);
  walk.for_each_tap<N>(taps, [&](const int64_t* row) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j)
        sum[i][j] += PARTIAL && j == VECTORS - 1 ? load_partial(table + row[i] + j * W, last)
                                                 : load(table + row[i] + j * W);
  });
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) store(out + i * out_pitch + j * W, sum[i][j]);
}

// A tile of sums, a row per output; its rows and `start` have room for whole vectors.
template <class S>
void sum_tile(const S* table, const Walk& walk, int64_t first, int64_t count,
              const Compute<S>* start, int64_t channels, Compute<S>* tile, int64_t tile_pitch) {
  constexpr int W = kLanes<Compute<S>>;
  for_blocks(divide_up(channels, W), W, [&](auto vectors, int64_t c) {
    constexpr int kVectors = decltype(vectors)::value;
    const int missing = static_cast<int>(larger(0, c + kVectors * W - channels));
    walk.for_outputs<kRowOutputs<kVectors>>(first, count, [&](auto n, int64_t t, const Taps& taps) {
      constexpr int kOutputs = decltype(n)::value;
      Compute<S>* out = tile + t * tile_pitch + c;
      if (missing == 0)
        sum_rows<kVectors, false, kOutputs>(table + c, walk, taps, start + c, W, out, tile_pitch);
      else
        sum_rows<kVectors, true, kOutputs>(table + c, walk, taps, start + c, W - missing, out,
                                           tile_pitch);
    });
  });
}

// The bias in the compute type, with zeros up to `padded`; zeros where there is none.
template <class S>
const Compute<S>* stage_bias(const ConstTensor& bias, int64_t channels, int64_t padded) {
  using T = Compute<S>;
  T* staged = static_cast<T*>(scratch(Slot::panel, sizeof(T) * padded));
  const S* in = static_cast<const S*>(bias.data);
  for (int64_t o = 0; o < padded; ++o)
    staged[o] = in != nullptr && o < channels ? to_compute(in[o * bias.stride[0]]) : T(0);
  return staged;
}

template <class S>
struct Lookup {
  static void run(const LookupArguments& a) {
    using T = Compute<S>;
    constexpr int W = kLanes<T>;
    constexpr int64_t kPositions = 32;  // of one tile
    const Conv1dGeometry& g = a.geometry;
    const int64_t channels = g.out_channels, padded = divide_up(channels, W) * W;
    const int64_t blocks = divide_up(g.out_length, kPositions);
    const T* bias = stage_bias<S>(a.bias, channels, padded);
    const S* table = static_cast<const S*>(a.table);
    parallel_jobs(g.batch * blocks, kPositions * g.kernel_size * channels,
                  [&](int64_t begin, int64_t end) {
                    T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kPositions * padded));
                    for (int64_t job = begin; job < end; ++job) {
                      const int64_t n = job / blocks, first = job % blocks * kPositions;
                      const int64_t count = smaller(kPositions, g.out_length - first);
                      const Walk walk{g, a.tokens + n * g.length, channels};
                      sum_tile(table, walk, first, count, bias, channels, tile, padded);
                      if (a.activation != Activation::none)
                        for (int64_t i = 0; i < count * padded; i += W)
                          store(tile + i, activate(load(tile + i), a.activation));
                      S* y = static_cast<S*>(a.y) + n * channels * g.out_length + first;
                      transpose(tile, padded, count, channels, y, g.out_length);
                    }
                  });
  }
};

void lookup(const LookupArguments& arguments) { for_dtype<Lookup>(arguments, &Kernels::lookup); }
