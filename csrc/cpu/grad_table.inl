// grad_table[k][v][o] = the sum of grad_output[n][o][t] over all n, t whose tap k reads token v,
// and grad_bias[o] = the sum over all n, t. The positions are cut into pieces with a table each, by
// geometry alone, and the tables are added in order: any number of threads gives the same bits. The
// table of a long piece goes to a total now and then, or the sum of a frequent word would be one
// chain of additions.

// To clear a table and to add it up takes time, so it gets many positions for each of its rows.
constexpr int64_t kPositionsPerToken = 16;

inline int64_t table_pieces(const Conv1dGeometry& g, int64_t padded) {
  constexpr int64_t kMaxPieces = 32;
  constexpr int64_t kMaxSums = 4 * 1024 * 1024;  // of all pieces together, without totals
  const int64_t by_work = g.batch * g.out_length / (kPositionsPerToken * g.in_channels);
  const int64_t by_room = kMaxSums / (g.kernel_size * g.in_channels * padded);
  return larger(1, smaller(kMaxPieces, smaller(by_work, by_room)));
}

// Those after which a table goes to its total: twice as many as make a piece, or small batches
// would have totals too.
inline int64_t positions_of_chain(const Conv1dGeometry& g) {
  constexpr int64_t kFewest = 512;
  return larger(kFewest, 2 * kPositionsPerToken * g.in_channels);
}

// Each row that N outputs look up += the outputs' rows of g. Where sequences are padded, outputs
// next to each other often look up the same row: it is loaded and stored once then.
template <int VECTORS, int N, class T>
CONVLM_INLINE void add_to_rows(const T* g, int64_t g_pitch, const Walk& walk, const Taps& taps,
                               T* table) {
  constexpr int W = kLanes<T>;
  Vector<T> v[N][VECTORS];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) v[i][j] = load(g + i * g_pitch + j * W);
  Vector<T> total[VECTORS];
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; ++j) {
    total[j] = v[0][j];
#pragma GCC unroll 4
    for (int i = 1; i < N; ++i) total[j] += v[i][j];
  }
  walk.for_each_tap<N>(taps, [&](const int64_t* row) {
    int64_t differ = 0;
#pragma GCC unroll 4
    for (int i = 1; i < N; ++i) differ |= row[i] ^ row[0];
    if (N > 1 && differ == 0) {
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j)
        store(table + row[0] + j * W, load(table + row[0] + j * W) + total[j]);
      return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)  // in order: two outputs may look up the same row
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j)
        store(table + row[i] + j * W, load(table + row[i] + j * W) + v[i][j]);
  });
}

// The same for a tile of rows of whole vectors.
template <class T>
void add_tile_to_rows(const T* tile, int64_t tile_pitch, int64_t padded, const Walk& walk,
                      int64_t first, int64_t count, T* table) {
  for_blocks(padded / kLanes<T>, kLanes<T>, [&](auto vectors, int64_t c) {
    constexpr int kVectors = decltype(vectors)::value;
    walk.for_outputs<kRowOutputs<kVectors>>(first, count, [&](auto n, int64_t t, const Taps& taps) {
      add_to_rows<kVectors, decltype(n)::value>(tile + t * tile_pitch + c, tile_pitch, walk, taps,
                                                table + c);
    });
  });
}

// sum += the rows of a tile.
template <class T>
CONVLM_INLINE void add_tile(const T* tile, int64_t pitch, int64_t rows, int64_t padded, T* sum) {
  constexpr int W = kLanes<T>;
  for_blocks(padded / W, W, [&](auto vectors, int64_t c) {
    constexpr int kVectors = decltype(vectors)::value;
    Vector<T> total[kVectors] = {};
    for (int64_t t = 0; t < rows; ++t)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) total[j] += load(tile + t * pitch + c + j * W);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(sum + c + j * W, load(sum + c + j * W) + total[j]);
  });
}

// The sums of one or more pieces: for each its table (kernel_size, vocab, padded), then its bias.
template <class T>
struct TableSums {
  T* data;
  int64_t rows, padded;
  int64_t total;  // how far behind a sum its total is; 0 where there are too few positions for one

  int64_t size() const { return (rows + 1) * padded; }
  T* table(int64_t piece) const { return data + piece * (size() + total); }
  T* bias(int64_t piece) const { return table(piece) + rows * padded; }
  void clear(int64_t piece) const {
    for (int64_t i = 0; i < size() + total; i += kLanes<T>) store(table(piece) + i, Vector<T>{});
  }

  // Of the columns [first, first + count) of all rows.
  void add_to_total(int64_t piece, int64_t first, int64_t count) const {
    for (T* row = table(piece) + first; total > 0 && row <= bias(piece) + first; row += padded)
      for (int64_t c = 0; c < count; c += kLanes<T>) {
        store(row + total + c, load(row + total + c) + load(row + c));
        store(row + c, Vector<T>{});
      }
  }
};

template <class T>
TableSums<T> table_sums(const Conv1dGeometry& g, int64_t pieces, int64_t padded) {
  TableSums<T> sums{nullptr, g.kernel_size * g.in_channels, padded, 0};
  if (g.batch * g.out_length > pieces * positions_of_chain(g)) sums.total = sums.size();
  sums.data =
      static_cast<T*>(scratch(Slot::partial, sizeof(T) * pieces * (sums.size() + sums.total)));
  return sums;
}

// The first piece, to which the others are added in order.
template <class T>
TableSums<T> add_pieces(TableSums<T> sums, int64_t pieces) {
  constexpr int W = kLanes<T>;
  sums.data += sums.total;
  if (pieces == 1) return sums;
  parallel_jobs(sums.size() / W, pieces * W, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * W; i < end * W; i += W) {
      Vector<T> sum = load(sums.table(0) + i);
      for (int64_t piece = 1; piece < pieces; ++piece) sum += load(sums.table(piece) + i);
      store(sums.table(0) + i, sum);
    }
  });
  return sums;
}

// Copies `rows` rows out of their padding, into the storage type.
template <class S>
void store_rows(const Compute<S>* in, int64_t padded, int64_t rows, int64_t channels, S* out) {
  constexpr int W = kLanes<Compute<S>>;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < channels; c += W) {
      const Vector<Compute<S>> v = load(in + row * padded + c);
      if (c + W <= channels)
        store(out + row * channels + c, v);
      else
        store_partial(out + row * channels + c, v, static_cast<int>(channels - c));
    }
}

// Calls body(begin, end) for the positions [begin, end), those of a chain at a time.
template <class Body>
CONVLM_INLINE void for_chains(const Conv1dGeometry& g, int64_t begin, int64_t end,
                              const Body& body) {
  const int64_t positions = positions_of_chain(g);
  for (; begin < end; begin += positions) body(begin, smaller(end, begin + positions));
}

// Calls body(sample, first position, count) for the positions [begin, end) of all samples, in
// stretches of one sample of at most `most`.
template <class Body>
CONVLM_INLINE void for_stretches(const Conv1dGeometry& g, int64_t begin, int64_t end, int64_t most,
                                 const Body& body) {
  for (int64_t position = begin, count; position < end; position += count) {
    const int64_t n = position / g.out_length, t = position % g.out_length;
    count = smaller(most, smaller(g.out_length - t, end - position));
    body(n, t, count);
  }
}

template <class S>
struct GradTable {
  using T = Compute<S>;
  static constexpr int64_t kPositions = 32;  // of one tile
  static constexpr int64_t kChannels = kRowVectors * kLanes<T>;

  static void run(const GradTableArguments& a) {
    const Conv1dGeometry& g = a.geometry;
    const int64_t padded = divide_up(g.out_channels, kLanes<T>) * kLanes<T>;
    const int64_t pieces = table_pieces(g, padded), blocks = divide_up(g.out_channels, kChannels);
    const int64_t positions = g.batch * g.out_length;
    TableSums<T> sums = table_sums<T>(g, pieces, padded);
    parallel_jobs(pieces, sums.size(), [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) sums.clear(piece);
    });
    parallel_jobs(pieces * blocks, positions / pieces * g.kernel_size * smaller(padded, kChannels),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t job = begin; job < end; ++job) {
                      const int64_t piece = job / blocks, c = job % blocks * kChannels;
                      add_positions(a, sums, piece, positions * piece / pieces,
                                    positions * (piece + 1) / pieces, c);
                    }
                  });
    sums = add_pieces(sums, pieces);
    store_rows(sums.table(0), padded, sums.rows, g.out_channels, static_cast<S*>(a.grad_table));
    if (a.grad_bias != nullptr)
      store_rows(sums.bias(0), padded, 1, g.out_channels, static_cast<S*>(a.grad_bias));
  }

  // The positions [begin, end) of all samples, up to kChannels channels from c on.
  static void add_positions(const GradTableArguments& a, const TableSums<T>& sums, int64_t piece,
                            int64_t begin, int64_t end, int64_t c) {
    const Conv1dGeometry& g = a.geometry;
    const int64_t channels = smaller(kChannels, g.out_channels - c);
    const int64_t padded = divide_up(channels, kLanes<T>) * kLanes<T>;
    T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kPositions * kChannels));
    for (int64_t i = 0; i < kPositions * kChannels; ++i) tile[i] = 0;  // lanes without a channel
    for_chains(g, begin, end, [&](int64_t from, int64_t to) {
      for_stretches(g, from, to, kPositions, [&](int64_t n, int64_t first, int64_t count) {
        stage(a.grad_output, n, c, channels, first, count, tile);
        const Walk walk{g, a.tokens + n * g.length, sums.padded};
        add_tile_to_rows(tile, kChannels, padded, walk, first, count, sums.table(piece) + c);
        add_tile(tile, kChannels, count, padded, sums.bias(piece) + c);
      });
      sums.add_to_total(piece, c, padded);
    });
  }

  // A row per position.
  static void stage(const ConstTensor& grad_output, int64_t n, int64_t c, int64_t channels,
                    int64_t first, int64_t count, T* tile) {
    const int64_t* stride = grad_output.stride;
    const S* in =
        static_cast<const S*>(grad_output.data) + n * stride[0] + c * stride[1] + first * stride[2];
    if (stride[2] == 1) return transpose(in, stride[1], channels, count, tile, kChannels);
    for (int64_t t = 0; t < count; ++t)
      for (int64_t o = 0; o < channels; ++o)
        tile[t * kChannels + o] = to_compute(in[o * stride[1] + t * stride[2]]);
  }
};

void grad_table(const GradTableArguments& arguments) {
  for_dtype<GradTable>(arguments, &Kernels::grad_table);
}
