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

// The row of the table that tap k looks up is k * vocab + its token.
struct Rows {
  const Conv1dGeometry& geometry;
  const int64_t* tokens;  // of one sample
  Taps taps;
  int64_t pitch;  // of the table

  // Calls body(offset of the row) for each tap, in order.
  template <class Body>
  CONVLM_INLINE void for_each(const Body& body) const {
    // All in locals: the compiler must take a store of a vector for one to anything in memory.
    const int64_t tap_size = geometry.in_channels * pitch, row_size = pitch;
    const int64_t dilation = geometry.dilation, end = taps.last * tap_size;
    const int64_t* token = tokens + taps.position;
    for (int64_t start = taps.first * tap_size; start < end; start += tap_size) {
      body(start + *token * row_size);
      token += dilation;
    }
  }
};

// How many vectors of channels are summed up in registers at once.
constexpr int kRowVectors = 4;

// Calls body(integral constant VECTORS) for vectors == VECTORS <= kRowVectors.
template <int VECTORS = kRowVectors, class Body>
CONVLM_INLINE void with_vectors(int64_t vectors, const Body& body) {
  if (vectors == VECTORS) return body(std::integral_constant<int, VECTORS>{});
  if constexpr (VECTORS > 1) with_vectors<VECTORS - 1>(vectors, body);
}

// out = start + the sum of the rows. The last vector has `last` lanes in the table.
template <int VECTORS, bool PARTIAL, class S>
CONVLM_INLINE void sum_vectors(const S* table, const Rows& rows, const Compute<S>* start, int last,
                               Compute<S>* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  Vector<T> sum[VECTORS];
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; ++j) sum[j] = load(start + j * W);
  rows.for_each([&](int64_t offset) {
    const S* row = table + offset;
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j)
      sum[j] += PARTIAL && j == VECTORS - 1 ? load_partial(row + j * W, last) : load(row + j * W);
  });
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; ++j) store(out + j * W, sum[j]);
}

// The same for any number of channels; `start` and `out` have room for whole vectors.
template <class S>
CONVLM_INLINE void sum_rows(const S* table, const Rows& rows, const Compute<S>* start,
                            int64_t channels, Compute<S>* out) {
  constexpr int W = kLanes<Compute<S>>;
  int64_t c = 0;
  for (; c + kRowVectors * W <= channels; c += kRowVectors * W)
    sum_vectors<kRowVectors, false>(table + c, rows, start + c, W, out + c);
  const int last = static_cast<int>((channels - c) % W);
  with_vectors(divide_up(channels - c, W), [&](auto vectors) {
    if (last == 0)
      sum_vectors<decltype(vectors)::value, false>(table + c, rows, start + c, W, out + c);
    else
      sum_vectors<decltype(vectors)::value, true>(table + c, rows, start + c, last, out + c);
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
    parallel_jobs(
        g.batch * blocks, kPositions * g.kernel_size * channels, [&](int64_t begin, int64_t end) {
          T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kPositions * padded));
          for (int64_t job = begin; job < end; ++job) {
            const int64_t n = job / blocks, first = job % blocks * kPositions;
            const int64_t count = smaller(kPositions, g.out_length - first);
            for (int64_t t = 0; t < count; ++t) {
              const Rows rows{g, a.tokens + n * g.length, taps_of(g, first + t), channels};
              sum_rows(table, rows, bias, channels, tile + t * padded);
            }
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
