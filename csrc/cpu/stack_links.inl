// Gradients along the links between rows: sums for the rows that several link to, and an order of
// those that one does.

// How many rows of a result are added to those that they link to before these sums are added to
// others: where there are more, sums would grow long.
constexpr int64_t rows_between_totals(int64_t linked) { return larger(kRowsOfSum, 16 * linked); }

// Vectors of a row whose sums are in registers at the same time.
constexpr int kLinkVectors = 8;

// sums[link] += the rows that have this link, in order, for some vectors of columns. Rows of padded
// samples often have the link of the row before: their sum stays in registers.
template <int VECTORS, class T>
CONVLM_INLINE void add_runs(const T* rows, int64_t pitch, const int32_t* links, int64_t count,
                            T* sums) {
  constexpr int W = kLanes<T>;
  Vector<T> sum[VECTORS];
  for (int64_t r = 0; r < count;) {
    const int64_t link = links[r];
    if (link < 0) {
      ++r;
      continue;
    }
    T* to = sums + link * pitch;
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) sum[j] = load(to + j * W);
    for (; r < count && links[r] == link; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) sum[j] += load(rows + r * pitch + j * W);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) store(to + j * W, sum[j]);
  }
}

// sums[tap][link] = the sum of the rows that have this link, zero where there are none; cut by taps
// and columns. `parts` has room for as much where there are more rows than between totals.
template <class T>
void add_to_links(const T* rows, int64_t pitch, int64_t count, const int32_t* links,
                  int64_t link_pitch, int64_t taps, int64_t linked, T* sums, T* parts) {
  constexpr int W = kLanes<T>;
  const int64_t vectors = pitch / W, together = rows_between_totals(linked);
  const int64_t blocks = divide_up(vectors, kLinkVectors);
  parallel_jobs(taps * blocks, kMemoryOperation * (count + linked) * kLinkVectors * W,
                [&](int64_t begin, int64_t end) {
                  for (int64_t job = begin; job < end; ++job) {
                    const int64_t tap = job / blocks, first = job % blocks * kLinkVectors;
                    const int64_t width = smaller(kLinkVectors, vectors - first);
                    T* total = sums + tap * linked * pitch + first * W;
                    for (int64_t r0 = 0; r0 < larger(1, count); r0 += together) {
                      T* to = r0 == 0 ? total : parts + tap * linked * pitch + first * W;
                      for (int64_t i = 0; i < linked; ++i) clear(to + i * pitch, width * W);
                      for_blocks<kLinkVectors>(width, W, [&](auto block, int64_t c) {
                        add_runs<decltype(block)::value>(rows + r0 * pitch + first * W + c, pitch,
                                                         links + tap * link_pitch + r0,
                                                         smaller(count - r0, together), to + c);
                      });
                      for (int64_t i = 0; r0 > 0 && i < linked; ++i)
                        for (int64_t c = 0; c < width * W; c += W)
                          store(total + i * pitch + c,
                                load(total + i * pitch + c) + load(to + i * pitch + c));
                    }
                  }
                });
}

// present[tap][row] = row where a tap reads this row for any of the result, else none.
inline void find_present(const StackLayer& layer, int32_t* present) {
  parallel_jobs(layer.kernel_size, layer.in_rows + layer.out_rows, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      int32_t* at = present + k * layer.in_rows;
      for (int64_t i = 0; i < layer.in_rows; ++i) at[i] = StackLayer::kNone;
      for (int64_t r = 0; r < layer.out_rows; ++r) {
        const int32_t link = layer.links[k * layer.link_pitch + r];
        if (link >= 0) at[link] = link;
      }
    }
  });
}

// Rows of the input in an order that puts those together which the same taps read: short samples
// have edges that some taps do not reach, and a strip of such rows skips these taps. As they come
// where there are too few to be worth it.
inline RowOrder order_by_readers(const StackLayer& layer, int32_t* order) {
  constexpr int64_t kMostTaps = 8;
  const int64_t taps = layer.kernel_size;
  if (taps > kMostTaps) return {};
  // Rows of consecutive positions are read by consecutive taps: [first, last].
  const auto readers_of = [&](int64_t row) {
    int64_t first = 0, last = taps - 1;
    while (first < last && layer.readers[first * layer.reader_pitch + row] < 0) ++first;
    while (first < last && layer.readers[last * layer.reader_pitch + row] < 0) --last;
    return first * kMostTaps + last;
  };
  int64_t start[kMostTaps * kMostTaps + 1] = {}, unread = 0;
  for (int64_t row = 0; row < layer.in_rows; ++row) {
    const int64_t readers = readers_of(row);
    ++start[readers + 1];
    unread += taps - 1 - readers % kMostTaps + readers / kMostTaps;
  }
  if (16 * unread < layer.in_rows * taps) return {};
  for (int64_t i = 0; i < kMostTaps * kMostTaps; ++i) start[i + 1] += start[i];
  for (int64_t row = 0; row < layer.in_rows; ++row)
    order[start[readers_of(row)]++] = static_cast<int32_t>(row);
  return {order};
}
