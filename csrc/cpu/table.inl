// The table of an embedding followed by a convolution, table[k][v][o] = sum over e of
// embedding[v][e] * weight[o][e][k], and the gradients of both from that of the table. Rows of
// tables are padded to whole vectors.

// Every tile of rows x vectors of a product: row i of its scalars starts at first_row + i *
// row_pitch.
template <class T>
void multiply_tiles(Product<T> p, const T* first_row, int64_t row_pitch, int64_t rows,
                    int64_t vectors) {
  T* const tile = p.tile;
  const T* const all_vectors = p.vectors;
  const int64_t width = divide_up(vectors, divide_up(vectors, kMaxVectors));
  for (int64_t i = 0; i < rows; i += kMaxRows) {
    const int count = static_cast<int>(smaller(kMaxRows, rows - i));
    const T* row[kMaxRows];
    for (int r = 0; r < count; ++r) row[r] = first_row + (i + r) * row_pitch;
    p.rows = row;
    for (int64_t v = 0; v < vectors; v += width) {
      p.vectors = all_vectors + v * kLanes<T>;
      p.tile = tile + i * p.tile_pitch + v * kLanes<T>;
      multiply<T, false>(p, count, static_cast<int>(smaller(width, vectors - v)));
    }
  }
}

template <class T>
struct Table {
  static constexpr int W = kLanes<T>;

  const CrossEntropyArguments& a;
  int64_t taps, vocab, channels, embedding_dim;
  int64_t padded;  // channels
  T* data;         // (taps, vocab, padded)

  explicit Table(const CrossEntropyArguments& arguments)
      : a(arguments),
        taps(a.geometry.kernel_size),
        vocab(a.geometry.in_channels),
        channels(a.geometry.out_channels),
        embedding_dim(a.embedding_dim),
        padded(divide_up(channels, W) * W),
        data(static_cast<T*>(scratch(Slot::table, sizeof(T) * taps * vocab * padded))) {
    const T* weight =
        packed(Slot::weight, embedding_dim, a.weight.stride[1], channels, a.weight.stride[0]);
    parallel_jobs(taps, vocab * embedding_dim * padded, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        multiply_tiles<T>(product(weight + k * embedding_dim * padded, padded, embedding_dim,
                                  a.embedding.stride[1], data + k * vocab * padded, padded),
                          embedding(), a.embedding.stride[0], vocab, padded / W);
    });
  }

  // Both are summed before either goes out: a step changes what the other one is made of.
  void put_gradients(const T* grad_table, const PutGradient<T>& put) const {
    const int64_t width = divide_up(embedding_dim, W) * W;
    T* of_weight = static_cast<T*>(
        scratch(Slot::staged, sizeof(T) * (taps * embedding_dim * padded + vocab * width)));
    T* of_embedding = of_weight + taps * embedding_dim * padded;
    sum_weight(grad_table, of_weight);
    sum_embedding(grad_table, width, of_embedding);
    put_weight(of_weight, put);
    T* out = static_cast<T*>(a.grad_embedding.data);
    for (int64_t v = 0; v < vocab; ++v)
      put.row(of_embedding + v * width, 1, embedding_dim, out + v * a.grad_embedding.stride[0],
              a.grad_embedding.stride[1]);
  }

 private:
  const T* embedding() const { return static_cast<const T*>(a.embedding.data); }

  // sums[tap][embedding channel][padded].
  void sum_weight(const T* grad_table, T* sums) const {
    parallel_jobs(taps, vocab * embedding_dim * padded, [&](int64_t begin, int64_t end) {
      int64_t* words = static_cast<int64_t*>(scratch(Slot::plan, sizeof(int64_t) * 2 * vocab));
      for (int64_t k = begin; k < end; ++k) {
        T* sum = sums + k * embedding_dim * padded;
        Product<T> p = product(grad_table + k * vocab * padded, 0, 1, 0, sum, padded);
        p.outer = list_words(p.vectors, words, words + vocab);
        p.row_start = words;
        p.vector_start = words + vocab;
        multiply_tiles<T>(p, embedding(), a.embedding.stride[1], embedding_dim, padded / W);
      }
    });
  }

  void put_weight(const T* sums, const PutGradient<T>& put) const {
    T* out = static_cast<T*>(a.grad_weight.data);
    const int64_t* stride = a.grad_weight.stride;
    if (stride[1] == 1 && stride[2] == embedding_dim)
      return put.turned(sums, padded, taps * embedding_dim, channels, out, stride[0]);
    for (int64_t k = 0; k < taps; ++k)
      for (int64_t e = 0; e < embedding_dim; ++e)
        put.row(sums + (k * embedding_dim + e) * padded, 1, channels,
                out + e * stride[1] + k * stride[2], stride[0]);
  }

  // sums[word][width].
  void sum_embedding(const T* grad_table, int64_t width, T* sums) const {
    const T* weight =
        packed(Slot::weight, channels, a.weight.stride[0], embedding_dim, a.weight.stride[1]);
    int64_t* starts = static_cast<int64_t*>(scratch(Slot::taps, sizeof(int64_t) * 2 * taps));
    for (int64_t k = 0; k < taps; ++k) {
      starts[k] = k * vocab * padded;
      starts[taps + k] = k * channels * width;
    }
    parallel_jobs(divide_up(vocab, kMaxRows), kMaxRows * taps * channels * width,
                  [&](int64_t begin, int64_t end) {
                    const int64_t first = begin * kMaxRows;
                    Product<T> p = product(weight, width, channels, 1, sums + first * width, width);
                    p.row_start = starts;
                    p.vector_start = starts + taps;
                    p.outer = taps;
                    multiply_tiles<T>(p, grad_table + first * padded, padded,
                                      smaller(vocab, end * kMaxRows) - first, width / W);
                  });
  }

  // Where the embeddings and the gradients of the words with a gradient begin; returns how many
  // there are. The embedding of a word that is not read may be infinite.
  int64_t list_words(const T* gradients, int64_t* embeddings, int64_t* rows) const {
    int64_t count = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      const T* row = gradients + v * padded;
      int64_t c = 0;
      while (c < channels && row[c] == 0) ++c;
      if (c == channels) continue;
      embeddings[count] = v * a.embedding.stride[0];
      rows[count++] = v * padded;
    }
    return count;
  }

  // The weight as [tap][row][column], rows padded with zeros to whole vectors.
  const T* packed(Slot slot, int64_t rows, int64_t row_stride, int64_t columns,
                  int64_t column_stride) const {
    const int64_t width = divide_up(columns, W) * W;
    T* out = static_cast<T*>(scratch(slot, sizeof(T) * taps * rows * width));
    const T* weight = static_cast<const T*>(a.weight.data);
    if (row_stride == 1 && a.weight.stride[2] == rows) {
      for (int64_t i = 0; columns < width && i < taps * rows; ++i)
        store(out + (i + 1) * width - W, Vector<T>{});
      transpose(weight, column_stride, columns, taps * rows, out, width);
      return out;
    }
    for (int64_t k = 0; k < taps; ++k)
      for (int64_t r = 0; r < rows; ++r) {
        const T* in = weight + k * a.weight.stride[2] + r * row_stride;
        T* row = out + (k * rows + r) * width;
        for (int64_t c = 0; c < columns; ++c) row[c] = in[c * column_stride];
        for (int64_t c = columns; c < width; ++c) row[c] = T(0);
      }
    return out;
  }

  // One reduction over `steps` rows of `vectors`.
  static Product<T> product(const T* vectors, int64_t vector_step, int64_t steps, int64_t row_step,
                            T* tile, int64_t tile_pitch) {
    static constexpr int64_t kZero = 0;
    Product<T> p{};
    p.vectors = vectors;
    p.row_start = p.vector_start = &kZero;
    p.outer = 1;
    p.inner = steps;
    p.row_step = row_step;
    p.vector_step = vector_step;
    p.tile = tile;
    p.tile_pitch = tile_pitch;
    return p;
  }
};
