// Products of rows, the core of fused stacks: a row holds the channels of a position, and rows are
// found through pointers, so that padding, dilation and rows shared by several positions all look
// alike here.

// Rows at a time for each number of vectors, so that the sums fill the registers.
template <int VECTORS>
constexpr int kRowsAtOnce = (CONVLM_VECTOR_BYTES == 64 ? 24 : 12) / VECTORS;
// The widest panel of columns: its sums, a row of the weight and a factor fill the registers.
constexpr int kWidestPanel = CONVLM_VECTOR_BYTES == 64 ? 4 : 3;
// Rows of a tile: whole strips of each of these.
constexpr int64_t kTileRows = CONVLM_VECTOR_BYTES == 64 ? 48 : 24;
// The additions that one register takes before its sum goes elsewhere.
constexpr int64_t kRowChain = 128;

// Rows begin at cache lines.
template <class T>
constexpr int64_t row_pitch(int64_t channels) {
  constexpr int64_t line = LinesAhead::kLine / sizeof(T);
  return divide_up(channels, line) * line;
}

// Columns of a weight, cut into panels of at most kWidestPanel vectors. The last vector may be
// narrow.
template <class T>
struct Panels {
  int64_t vectors, count;
  bool narrow;

  explicit Panels(int64_t columns)
      : vectors(divide_up(columns, kLanes<T>)),
        count(divide_up(vectors, kWidestPanel)),
        narrow(columns <= (vectors - 1) * kLanes<T> + kNarrowLanes<T>) {}
  int64_t first(int64_t panel) const { return vectors * panel / count; }
  int width(int64_t panel) const { return static_cast<int>(first(panel + 1) - first(panel)); }
  bool ends_narrow(int64_t panel) const { return narrow && panel + 1 == count; }
  int64_t columns() const { return vectors * kLanes<T>; }
};

// A weight as the core reads it: [panel][tap][channel][the panel's columns]. What one tap reads is
// in one piece, or the first cache would not hold it: rows at some distances share few of its
// places.
template <class T>
struct PackedWeight {
  Panels<T> panels;
  int64_t channels, taps;
  const T* data;

  int64_t size() const { return channels * taps * panels.columns(); }
  int64_t pitch(int64_t panel) const { return panels.width(panel) * kLanes<T>; }
  int64_t start(int64_t panel, int64_t tap) const {
    return (panels.first(panel) * kLanes<T> * taps + tap * pitch(panel)) * channels;
  }
};

// A chain of taps of one strip of rows.
template <class T>
struct RowProduct {
  const T* const* rows;  // [tap][kTileRows]
  const T* zeros;        // where a row points that is nothing but padding
  const T* weight;
  int64_t taps, channels;
  int64_t tap_step, channel_step;  // of the weight
  T* out;
  int64_t out_pitch;
  bool add;  // to what `out` holds
};

// tile[i][:] = sums[i][:], or that more.
template <class T, class Sums>
CONVLM_INLINE void put_sums(T* tile, int64_t pitch, const Sums& sums, bool add) {
#pragma GCC unroll 32
  for (int i = 0; i < Sums::kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Sums::kVectors; ++j) {
      T* out = tile + i * pitch + j * kLanes<T>;
      store(out, add ? load(out) + sums.at(i, j) : sums.at(i, j));
    }
}

// sums[i][:] += sum over the channels [first, last) of row_i[channel] * weight[channel][:].
template <class T, class Sums>
CONVLM_INLINE void add_chain(const T* const* rows, const T* weight, int64_t channel_step,
                             int64_t first, int64_t last, Sums& sums) {
  weight += first * channel_step;
  for (int64_t c = first; c < last; ++c, weight += channel_step)
    sums.add_products([&](int i) { return rows[i][c]; }, weight);
}

// out[i][:] = sum over taps and channels of rows[tap][i][channel] * weight[channel][tap][:].
// CHAINS: one tap of more channels than a chain has.
template <class T, int ROWS, int VECTORS, bool NARROW, bool CHAINS>
void row_product(const RowProduct<T>& p) {
  using Sums = RowSums<T, ROWS, VECTORS, NARROW>;
  Sums sums;
  sums.clear();
  bool any = false;
  for (int64_t k = 0; k < p.taps; ++k) {
    const T* const* rows = p.rows + k * kTileRows;
    bool padding = true;
#pragma GCC unroll 32
    for (int i = 0; i < ROWS; ++i) padding = padding && rows[i] == p.zeros;
    if (padding) continue;
    any = true;
    const T* weight = p.weight + k * p.tap_step;
    add_chain<T>(rows, weight, p.channel_step, 0, CHAINS ? kRowChain : p.channels, sums);
    for (int64_t first = kRowChain; CHAINS && first < p.channels; first += kRowChain) {
      Sums more;
      more.clear();
      const int64_t last = smaller(p.channels, first + kRowChain);
      add_chain<T>(rows, weight, p.channel_step, first, last, more);
      sums.add(more);
    }
  }
  if (any || !p.add) put_sums<T>(p.out, p.out_pitch, sums, p.add);
}

template <class T>
using RowProductFunction = void (*)(const RowProduct<T>&);

// By the vectors of a panel, for as many rows as fill the registers, or half of them.
template <class T, int HALVES, int... V>
CONVLM_INLINE RowProductFunction<T> row_product_of(int vectors, bool narrow, bool chains,
                                                   std::integer_sequence<int, V...>) {
  static constexpr RowProductFunction<T> table[2][2][sizeof...(V)] = {
      {{&row_product<T, HALVES * kRowsAtOnce<V + 1> / 2, V + 1, false, false>...},
       {&row_product<T, HALVES * kRowsAtOnce<V + 1> / 2, V + 1, true, false>...}},
      {{&row_product<T, HALVES * kRowsAtOnce<V + 1> / 2, V + 1, false, true>...},
       {&row_product<T, HALVES * kRowsAtOnce<V + 1> / 2, V + 1, true, true>...}}};
  return table[chains][narrow][vectors - 1];
}

// The rows of one tile, in strips, times all panels of a weight. Some taps at a time go through all
// strips, so that their part of a panel stays in the first cache, and form one chain.
template <class T, int... V>
CONVLM_INLINE void multiply_tile(RowProduct<T> p, const PackedWeight<T>& weight, int64_t first_tap,
                                 int64_t rows, int64_t taps_of_chain,
                                 std::integer_sequence<int, V...> widths) {
  static constexpr int rows_at_once[] = {kRowsAtOnce<V + 1>...};
  const T* const* first_row = p.rows;
  T* const out = p.out;
  const int64_t taps = p.taps;
  for (int64_t panel = 0; panel < weight.panels.count; ++panel) {
    const int width = weight.panels.width(panel);
    p.channel_step = weight.pitch(panel);
    p.tap_step = weight.channels * p.channel_step;
    const bool narrow = weight.panels.ends_narrow(panel), chains = weight.channels > kRowChain;
    const auto product = row_product_of<T, 2>(width, narrow, chains, widths);
    const auto half_product = row_product_of<T, 1>(width, narrow, chains, widths);
    const int64_t strip = rows_at_once[width - 1];
    for (int64_t k = 0; k < taps; k += taps_of_chain) {
      p.weight = weight.data + weight.start(panel, first_tap + k);
      p.taps = smaller(taps_of_chain, taps - k);
      p.add = k > 0;
      for (int64_t i = 0; i < rows; i += strip) {
        p.rows = first_row + k * kTileRows + i;
        p.out = out + i * p.out_pitch + weight.panels.first(panel) * kLanes<T>;
        (rows - i > strip / 2 ? product : half_product)(p);
      }
    }
  }
}

// Rows in another order than that of memory.
struct RowOrder {
  const int32_t* rows = nullptr;  // null: as they come

  int64_t operator[](int64_t i) const { return rows == nullptr ? i : rows[i]; }
};

// Rows, and which of them each row of a result reads with each tap.
template <class T>
struct LinkedRows {
  const T* data;
  int64_t pitch, tap_pitch;  // tap_pitch: where each tap has rows of its own
  const T* zeros;
  const int32_t* links;  // [tap][link_pitch]; null: row r reads row r
  int64_t link_pitch;
  RowOrder order = {};  // in which the rows of the result are made
  const T* at(int64_t tap, int64_t row) const {
    const int64_t link = links == nullptr ? row : links[tap * link_pitch + row];
    return link < 0 ? zeros : data + tap * tap_pitch + link * pitch;
  }
};

// Calls body(rows, first, count) for each tile of `count` linked rows: pointers to them,
// [tap][row], with rows of zeros to the end of the tile.
template <class T, class Body>
CONVLM_INLINE void for_tiles(const LinkedRows<T>& in, int64_t count, int64_t taps,
                             int64_t multiply_adds, const Body& body) {
  parallel_jobs(
      divide_up(count, kTileRows), kTileRows * multiply_adds, [&](int64_t begin, int64_t end) {
        const T** rows = static_cast<const T**>(scratch(Slot::plan, sizeof(T*) * taps * kTileRows));
        for (int64_t job = begin; job < end; ++job) {
          const int64_t first = job * kTileRows, tile_rows = smaller(kTileRows, count - first);
          for (int64_t k = 0; k < taps; ++k)
            for (int64_t i = 0; i < kTileRows; ++i)
              rows[k * kTileRows + i] = i < tile_rows ? in.at(k, in.order[first + i]) : in.zeros;
          body(rows, first, tile_rows);
        }
      });
}

// How many taps one chain takes where taps need not be summed by themselves.
inline int64_t taps_of_chain(int64_t channels) { return larger(1, kRowChain / channels); }

// Calls finish(tile, pitch, first, count) for each tile of the product of `count` linked rows with
// a weight. With one tap to a chain it makes no difference to the bits whether products are
// gathered after the multiplication or rows before it.
template <class T, class Finish>
CONVLM_INLINE void multiply_rows(const LinkedRows<T>& in, int64_t count,
                                 const PackedWeight<T>& weight, int64_t chained_taps,
                                 const Finish& finish) {
  // One vector more than there are columns: what reads the second half of a gated row may pass the
  // end.
  const int64_t pitch = weight.panels.columns() + kLanes<T>;
  const int64_t work = weight.taps * weight.channels * weight.panels.columns();
  for_tiles(in, count, weight.taps, work, [&](const T** rows, int64_t first, int64_t tile_rows) {
    T* tile = static_cast<T*>(scratch(Slot::tile, sizeof(T) * kTileRows * pitch));
    multiply_tile({rows, in.zeros, nullptr, weight.taps, weight.channels, 0, 0, tile, pitch, false},
                  weight, 0, tile_rows, chained_taps,
                  std::make_integer_sequence<int, kWidestPanel>{});
    finish(tile, pitch, first, tile_rows);
  });
}

// out[row] = row times one tap of a weight, for rows without links. Up to a tile of rows after the
// last one is overwritten.
template <class T>
void multiply_rows_into(const LinkedRows<T>& in, int64_t count, const PackedWeight<T>& weight,
                        int64_t tap, T* out, int64_t pitch) {
  const int64_t work = weight.channels * weight.panels.columns();
  for_tiles(in, count, 1, work, [&](const T** rows, int64_t first, int64_t tile_rows) {
    multiply_tile(
        {rows, in.zeros, nullptr, 1, weight.channels, 0, 0, out + first * pitch, pitch, false},
        weight, tap, tile_rows, 1, std::make_integer_sequence<int, kWidestPanel>{});
  });
}
