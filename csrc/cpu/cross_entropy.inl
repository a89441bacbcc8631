// The softmax cross-entropy of looked-up logits, and its gradient, without the logits ever leaving
// the cache: a tile of them is summed up, becomes the gradient in place, and is added to the
// gradient of the table. The idea is that of Liger-Kernel's fused linear cross-entropy (Hsu et al.,
// 2024, arXiv 2410.10989).

template <class T>
struct Largest {
  static CONVLM_INLINE Vector<T> of(Vector<T> a, Vector<T> b) { return a > b ? a : b; }
};
template <class T>
struct Total {
  static CONVLM_INLINE Vector<T> of(Vector<T> a, Vector<T> b) { return a + b; }
};

// Every lane of the result combines all lanes of v.
template <class T, template <class> class Combine, int HALF, int... L>
CONVLM_INLINE Vector<T> combine_halves(Vector<T> v, std::integer_sequence<int, L...> lanes) {
  v = Combine<T>::of(v, __builtin_shufflevector(v, v, (L ^ HALF)...));
  if constexpr (HALF > 1) return combine_halves<T, Combine, HALF / 2>(v, lanes);
  return v;
}
template <class T, template <class> class Combine>
CONVLM_INLINE Vector<T> combine_lanes(Vector<T> v) {
  return combine_halves<T, Combine, kLanes<T> / 2>(v, std::make_integer_sequence<int, kLanes<T>>{});
}

CONVLM_INLINE float logarithm(float v) { return __builtin_logf(v); }
CONVLM_INLINE double logarithm(double v) { return __builtin_log(v); }

// The rows of a tile of logits become exp(logit - the largest of the row). Each step is a pass over
// the tile, because the rows are independent of each other, and the steps of one row are not.
template <class T>
struct Softmax {
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kRows = 32;
  int64_t channels, padded;
  Integers<T> exists;  // the lanes of the last vector that have a channel
  T largest[kRows], sum[kRows];

  explicit Softmax(int64_t channels_of_a_row)
      : channels(channels_of_a_row), padded(divide_up(channels_of_a_row, W) * W) {
    Integers<T> lanes{};
    for (int i = 0; i < W; ++i) lanes[i] = padded - W + i < channels ? -1 : 0;
    exists = lanes;
  }

  CONVLM_INLINE void run(T* tile, int64_t pitch, int64_t rows) {
    for (int64_t t = 0; t < rows; ++t) {
      const T* row = tile + t * pitch;
      // A lane without a channel repeats the first logit.
      Vector<T> most = choose<T>(exists, load(row + padded - W), broadcast(row[0]));
      for (int64_t c = 0; c < padded - W; c += W) most = Largest<T>::of(load(row + c), most);
      largest[t] = combine_lanes<T, Largest>(most)[0];
    }
    for (int64_t t = 0; t < rows; ++t) {
      T* row = tile + t * pitch;
      const Vector<T> most = broadcast(largest[t]);
      Vector<T> total{};
      for (int64_t c = 0; c < padded - W; c += W) {
        const Vector<T> e = exponential_below_one<T>(load(row + c) - most);
        store(row + c, e);
        total += e;
      }
      const Vector<T> last = choose<T>(exists, load(row + padded - W), most);
      const Vector<T> e = choose<T>(exists, exponential_below_one<T>(last - most), Vector<T>{});
      store(row + padded - W, e);
      sum[t] = combine_lanes<T, Total>(total + e)[0];
    }
  }
};

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
    const bool gradients = a.grad_embedding != nullptr;
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
    add_pieces(self.sums, pieces);
    table.grad_weight(self.sums.table(0));
    table.grad_embedding(self.sums.table(0));
    if (a.grad_bias != nullptr)
      store_rows(self.sums.bias(0), table.padded, 1, g.out_channels, static_cast<T*>(a.grad_bias));
  }

  // The positions [begin, end) of all samples.
  void add_piece(int64_t piece, int64_t begin, int64_t end) const {
    if (sums.data != nullptr) sums.clear(piece);
    Softmax<T> softmax(g.out_channels);
    T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * softmax.kRows * table.padded));
    for_stretches(g, begin, end, softmax.kRows, [&](int64_t n, int64_t first, int64_t count) {
      const int64_t* target = a.target + n * g.out_length + first;
      T* loss = static_cast<T*>(a.losses) + n * g.out_length + first;
      for (int64_t t = 0; t < count; ++t) {
        sum_rows(table.data, rows(n, first + t), bias, g.out_channels, tile + t * table.padded);
        loss[t] = -tile[t * table.padded + target[t]];
      }
      softmax.run(tile, table.padded, count);
      for (int64_t t = 0; t < count; ++t) loss[t] += softmax.largest[t] + logarithm(softmax.sum[t]);
      if (sums.data != nullptr) add_gradients(piece, n, first, count, softmax, target, tile);
    });
  }

  // Turns a tile of exponentials into the gradients of its logits, and adds them to the sums.
  void add_gradients(int64_t piece, int64_t n, int64_t first, int64_t count,
                     const Softmax<T>& softmax, const int64_t* target, T* tile) const {
    const T scale = T(1) / (g.batch * g.out_length);
    for (int64_t t = 0; t < count; ++t) {
      T* row = tile + t * table.padded;
      for (int64_t c = 0; c < table.padded; c += W)
        store(row + c, load(row + c) * (scale / softmax.sum[t]));
      row[target[t]] -= scale;
    }
    for (int64_t t = 0; t < count; ++t)
      add_to_rows(tile + t * table.padded, table.padded, rows(n, first + t), sums.table(piece));
    add_tile(tile, table.padded, count, table.padded, sums.bias(piece));
  }

  CONVLM_INLINE Rows rows(int64_t n, int64_t t) const {
    return {g, a.tokens + n * g.length, taps_of(g, t), table.padded};
  }
};

void cross_entropy(const CrossEntropyArguments& a) {
#if defined(CONVLM_DOT_BFLOAT16)
  CONVLM_DOT_BFLOAT16.cross_entropy(a);
#else
  a.dtype == ScalarType::float64 ? CrossEntropy<double>::run(a) : CrossEntropy<float>::run(a);
#endif
}
