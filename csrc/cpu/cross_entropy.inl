// The softmax cross-entropy of looked-up logits, and its gradient, without the logits ever leaving
// the cache: a tile of them is summed up, becomes the gradient in place, and is added to the
// gradient of the table. The idea is that of Liger-Kernel's fused linear cross-entropy (Hsu et al.,
// 2024, arXiv 2410.10989).

// exp of x <= 0.
CONVLM_INLINE Vector<float> exponential_below_one(Vector<float> x) {
#if CONVLM_VECTOR_BYTES == 64
  return exponential<float>(x);
#else
  // No less than 2^-125: next to the largest, which is 1, less is nothing. Errs by little more than
  // a rounding of x would change it; the polynomial is a least-maximum fit of 2^r.
  const Vector<float> exponent = x * Exp<float>::kLog2E, least = broadcast(-125.0f);
  const Vector<float> e = exponent < least ? least : exponent;  // NaN passes
  const Vector<float> shifted = e + Exp<float>::kRound;
  const Vector<float> r = e - (shifted - Exp<float>::kRound);
  const Vector<float> power =
      polynomial<float>(r, {1.0f, 0.693147182f, 0.240226462f, 0.0555032864f, 0.00961848907f,
                            0.00133999309f, 0.000153458081f});
  return power * (Vector<float>)(((Integers<float>)shifted << Exp<float>::kMantissa) +
                                 (Exp<float>::kBias << Exp<float>::kMantissa));
#endif
}
CONVLM_INLINE Vector<double> exponential_below_one(Vector<double> x) {
  return exponential<double>(x);
}

// Natural logarithm of normal numbers; NaN for NaN and infinity. In float 1 ulp: x is 2^n * (1 + z)
// with z around 0, and the polynomial a least-maximum fit of (log(1 + z) - z + z^2 / 2) / z^3.
CONVLM_INLINE Vector<float> logarithm(Vector<float> x) {
  constexpr int32_t kRootOfHalf = 0x3f3504f3;
  const Integers<float> bits = (Integers<float>)x - kRootOfHalf;
  const Vector<float> n = __builtin_convertvector(bits >> Exp<float>::kMantissa, Vector<float>);
  const Vector<float> z = (Vector<float>)((bits & 0x7fffff) + kRootOfHalf) - 1.0f;
  const Vector<float> tail =
      polynomial<float>(z, {0.333333313f, -0.250008225f, 0.200012267f, -0.166233554f, 0.142017677f,
                            -0.131602094f, 0.127615184f, -0.076343514f});
  const Vector<float> log1p = (z * z) * (z * tail - 0.5f) + n * Exp<float>::kLn2Low + z;
  return n * Exp<float>::kLn2High + log1p + (x - x);
}
CONVLM_INLINE Vector<double> logarithm(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

// Of the rows of a tile of logits: the largest of each, and sums of exp(logit - the largest).
template <class T>
struct Softmax {
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kRows = 64;  // a multiple of the lanes of every instruction set
  int64_t padded;
  Integers<T> exists;  // the lanes of the last vector that have a channel
  T largest[kRows], sum[kRows], log_sum[kRows];

  explicit Softmax(int64_t channels) : padded(divide_up(channels, W) * W) {
    Integers<T> lanes{};
    for (int i = 0; i < W; ++i) lanes[i] = padded - W + i < channels ? -1 : 0;
    exists = lanes;
  }

  // `keep`: logits become exponentials, of which gradients are made.
  CONVLM_INLINE void run(T* tile, int64_t pitch, int64_t rows, bool keep) {
    keep ? run<true>(tile, pitch, rows) : run<false>(tile, pitch, rows);
  }

  // Those of `scale` times the losses, from rows of exponentials.
  CONVLM_INLINE void gradients(const T* tile, int64_t pitch, int64_t rows, const int64_t* target,
                               T scale, T* out, int64_t out_pitch) {
    for (int64_t i = 0; i < rows; i += W) store(sum + i, scale / load(sum + i));
    for (int64_t i = 0; i < rows; ++i) {
      const Vector<T> factor = broadcast(sum[i]);
      for (int64_t c = 0; c < padded; c += W)
        store(out + i * out_pitch + c, load(tile + i * pitch + c) * factor);
      out[i * out_pitch + target[i]] -= scale;
    }
  }

 private:
  // As many rows at a time as a vector has lanes: the tile has room for them.
  template <bool KEEP>
  CONVLM_INLINE void run(T* tile, int64_t pitch, int64_t rows) {
    for (int64_t first = 0; first < rows; first += W) {
      Vector<T> most[W], total[W];
      for (int i = 0; i < W; ++i) most[i] = largest_lanes(tile + (first + i) * pitch);
      store(largest + first, combine_lanes<T, Largest>(most));
      for (int i = 0; i < W; ++i)
        total[i] = exponentials<KEEP>(tile + (first + i) * pitch, broadcast(largest[first + i]));
      const Vector<T> sums = combine_lanes<T, Total>(total);
      store(sum + first, sums);
      store(log_sum + first, logarithm(sums));
    }
  }

  CONVLM_INLINE Vector<T> largest_lanes(const T* row) const {
    // A lane without a channel repeats the first logit.
    Vector<T> most = choose<T>(exists, load(row + padded - W), broadcast(row[0]));
    for (int64_t c = 0; c < padded - W; c += W) most = Largest<T>::of(load(row + c), most);
    return most;
  }

  template <bool KEEP>
  CONVLM_INLINE Vector<T> exponentials(T* row, Vector<T> most) const {
    Vector<T> total{};
    for (int64_t c = 0; c < padded - W; c += W) {
      const Vector<T> e = exponential_below_one(load(row + c) - most);
      if (KEEP) store(row + c, e);
      total += e;
    }
    const Vector<T> last = choose<T>(exists, load(row + padded - W), most);
    const Vector<T> e = choose<T>(exists, exponential_below_one(last - most), Vector<T>{});
    if (KEEP) store(row + padded - W, e);
    return total + e;
  }
};

// The mean of losses, in float64, in order: the same bits for any number of threads.
template <class T>
T mean_of(const T* losses, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += losses[i];
  return static_cast<T>(sum / count);
}

template <class T>
struct CrossEntropy {
  static constexpr int W = kLanes<T>;

  const CrossEntropyArguments& a;
  const Conv1dGeometry& g;
  const Table<T> table;
  const T* bias;
  const TableSums<T> sums;  // without data where no gradient is wanted

  static void run(const CrossEntropyArguments& a) {
    const Conv1dGeometry& g = a.geometry;
    const Table<T> table(a);
    const bool gradients = a.gradient.mean != nullptr;
    const int64_t positions = g.batch * g.out_length;
    const int64_t pieces = gradients ? table_pieces(g, table.padded) : divide_up(positions, 256);
    const T* bias = stage_bias<T>(a.bias, g.out_channels, table.padded);
    const CrossEntropy self{a, g, table, bias,
                            gradients ? table_sums<T>(g, pieces, table.padded) : TableSums<T>{}};
    const int64_t work = divide_up(positions, larger(1, pieces)) * table.padded;
    parallel_jobs(pieces, work * (2 * g.kernel_size + 16), [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece)
        self.add_piece(piece, positions * piece / pieces, positions * (piece + 1) / pieces);
    });
    if (!gradients) return;
    const T mean = mean_of(static_cast<const T*>(a.losses), positions);
    *static_cast<T*>(a.gradient.mean) = mean;
    if (a.gradient.as_step && !__builtin_isfinite(mean)) return;
    const TableSums<T> sums = add_pieces(self.sums, pieces);
    const PutGradient<T> put(a.gradient.as_step, a.gradient.lr);
    table.put_gradients(sums.table(0), put);
    if (a.grad_bias.data != nullptr)
      put.row(sums.bias(0), 1, g.out_channels, static_cast<T*>(a.grad_bias.data),
              a.grad_bias.stride[0]);
  }

  // The positions [begin, end) of all samples, a tile at a time: the tables of logits and of
  // gradients take turns in the first cache, which seldom holds both.
  void add_piece(int64_t piece, int64_t begin, int64_t end) const {
    if (sums.data != nullptr) sums.clear(piece);
    Softmax<T> softmax(g.out_channels);
    T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * softmax.kRows * table.padded));
    for (int64_t i = 0; i < softmax.kRows * table.padded; i += W) store(tile + i, Vector<T>{});
    for_chains(g, begin, end, [&](int64_t from, int64_t to) {
      for (int64_t first = from; first < to; first += softmax.kRows)
        add_tile_of(piece, first, smaller(softmax.kRows, to - first), softmax, tile);
      sums.add_to_total(piece, 0, table.padded);
    });
  }

  void add_tile_of(int64_t piece, int64_t position, int64_t count, Softmax<T>& softmax,
                   T* tile) const {
    const int64_t* target = a.target + position;
    T* loss = static_cast<T*>(a.losses) + position;
    for_rows(position, count, tile, [&](const Walk& walk, int64_t first, int64_t rows, T* row) {
      sum_tile(table.data, walk, first, rows, bias, table.padded, row, table.padded);
    });
    for (int64_t t = 0; t < count; ++t) loss[t] = tile[t * table.padded + target[t]];
    softmax.run(tile, table.padded, count, sums.data != nullptr);
    for (int64_t t = 0; t < count; ++t)
      loss[t] = softmax.log_sum[t] - (loss[t] - softmax.largest[t]);
    if (sums.data == nullptr) return;
    const T scale = T(1) / (g.batch * g.out_length);
    softmax.gradients(tile, table.padded, count, target, scale, tile, table.padded);
    for_rows(position, count, tile, [&](const Walk& walk, int64_t first, int64_t rows, T* row) {
      add_tile_to_rows(row, table.padded, table.padded, walk, first, rows, sums.table(piece));
    });
    add_tile(tile, table.padded, count, table.padded, sums.bias(piece));
  }

  // Calls body(walk, first, rows, their part of the tile) for each sample of a tile.
  template <class Body>
  CONVLM_INLINE void for_rows(int64_t position, int64_t count, T* tile, const Body& body) const {
    for_stretches(
        g, position, position + count, count, [&](int64_t n, int64_t first, int64_t rows) {
          const Walk walk{g, a.tokens + n * g.length, table.padded};
          body(walk, first, rows, tile + (n * g.out_length + first - position) * table.padded);
        });
  }
};

void cross_entropy(const CrossEntropyArguments& a) {
#if defined(CONVLM_DOT_BFLOAT16)
  CONVLM_DOT_BFLOAT16.cross_entropy(a);
#else
  a.dtype == ScalarType::float64 ? CrossEntropy<double>::run(a) : CrossEntropy<float>::run(a);
#endif
}
