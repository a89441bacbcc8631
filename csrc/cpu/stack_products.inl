// Rows that are sums of products which lie in memory: where several rows share one, or where fewer
// products than taps make a row.

// Products of every input row with each tap, [tap][row].
template <class T>
int64_t tap_products_size(const StackLayer& layer) {
  if (!layer.multiply_first()) return 0;
  return (layer.kernel_size * layer.in_rows + kTileRows) * row_pitch<T>(layer.columns);
}

// out = the sum of the products that a row is made of.
template <class T>
CONVLM_INLINE void add_products(const LinkedRows<T>& products, int64_t row, int64_t taps,
                                int64_t columns, T* out) {
  constexpr int W = kLanes<T>;
  const T *first = products.at(0, row), *second = taps > 1 ? products.at(1, row) : products.zeros;
  for (int64_t c = 0; c < columns; c += W) store(out + c, load(first + c) + load(second + c));
  for (int64_t k = 2; k < taps; ++k) {
    const T* product = products.at(k, row);
    for (int64_t c = 0; c < columns; c += W) store(out + c, load(out + c) + load(product + c));
  }
}

// Calls finish(tile, pitch, first, count) for each tile of `rows` rows, made by make(row, out).
template <class T, class Make, class Finish>
CONVLM_INLINE void make_rows(int64_t rows, int64_t columns, int64_t additions, const Make& make,
                             const Finish& finish) {
  constexpr int64_t kFinish = 24;  // multiply-adds that take as long as to finish an element
  parallel_jobs(divide_up(rows, kTileRows),
                kTileRows * columns * (kMemoryOperation * additions + kFinish),
                [&](int64_t begin, int64_t end) {
                  const int64_t pitch = columns + kLanes<T>;
                  T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kTileRows * pitch));
                  for (int64_t job = begin; job < end; ++job) {
                    const int64_t first = job * kTileRows, count = smaller(kTileRows, rows - first);
                    for (int64_t i = 0; i < count; ++i) make(first + i, tile + i * pitch);
                    finish(tile, pitch, first, count);
                  }
                });
}

// The same of rows that are sums of linked products.
template <class T, class Finish>
void gather_products(const LinkedRows<T>& products, int64_t taps, int64_t rows, int64_t columns,
                     const Finish& finish) {
  make_rows<T>(
      rows, columns, taps,
      [&](int64_t row, T* out) { add_products<T>(products, row, taps, columns, out); }, finish);
}

template <class T, class Finish>
void multiply_then_gather(const StackLayer& layer, const LinkedRows<T>& in,
                          const PackedWeight<T>& weight, T* products, const Finish& finish) {
  const int64_t pitch = row_pitch<T>(layer.columns), tap_pitch = layer.in_rows * pitch;
  LinkedRows<T> every = in;
  every.links = nullptr;
  for (int64_t k = 0; k < layer.kernel_size; ++k)
    multiply_rows_into(every, layer.in_rows, weight, k, products + k * tap_pitch, pitch);
  gather_products<T>({products, pitch, tap_pitch, in.zeros, in.links, in.link_pitch},
                     layer.kernel_size, layer.out_rows, weight.panels.columns(), finish);
}
