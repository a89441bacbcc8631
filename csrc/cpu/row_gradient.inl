// The gradient of a weight from rows: those of the input times those of the result's gradient.

// sums[channel][:] = sum over rows of in[row][channel] * grad[row][:], for a few channels, or that
// more.
template <class T>
struct RowGradient {
  const T* const* in;
  const T* const* grad;
  int64_t rows, channel, column;  // the first ones
  T* sums;
  int64_t sums_pitch;
  bool add;  // to what `sums` holds
};

template <class T, int VECTORS, int CHANNELS, bool NARROW>
void row_gradient(const RowGradient<T>& p) {
  RowSums<T, CHANNELS, VECTORS, NARROW> sums;
  sums.clear();
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* in = p.in[r] + p.channel;
    sums.add_products([&](int i) { return in[i]; }, p.grad[r] + p.column);
  }
  put_sums<T>(p.sums, p.sums_pitch, sums, p.add);
}

// Rows of the result that are added up in registers, and stay in the first cache.
constexpr int64_t kGradientRows = 64;
// Rows whose sum goes to a total then: sums of 64 sums of 64 rows err little.
constexpr int64_t kRowsOfSum = 64 * kGradientRows;

// Whether the rows [first, last) end with a sum that goes to the total.
inline bool fills_sum(int64_t first, int64_t last) {
  return last / kRowsOfSum > first / kRowsOfSum;
}

// Channels at a time where there are fewer than fill the registers.
constexpr int kFewChannels = 4;

// The gradient of a weight as it is summed: [channel][tap][pitch], then the bias. The last few
// channels may reach past the last one, into rows that nobody reads.
template <class T>
struct WeightSums {
  int64_t channels, taps, columns;
  Panels<T> panels;
  T* data;
  int64_t total;  // how far behind a sum its total is; 0 where there are too few rows for one

  int64_t pitch() const { return panels.columns(); }
  int64_t size() const { return ((channels + kFewChannels) * taps + 1) * pitch(); }
  T* row(int64_t channel, int64_t tap) const { return data + (channel * taps + tap) * pitch(); }
  T* bias() const { return row(channels + kFewChannels, 0); }

  void add_to_total(T* sums, int64_t count) const {
    for (int64_t i = 0; total > 0 && i < count; ++i) {
      sums[total + i] += sums[i];
      sums[i] = 0;
    }
  }
};

template <class T, int... V>
CONVLM_INLINE void add_gradient_block(RowGradient<T> p, const WeightSums<T>& sums, int64_t tap,
                                      int64_t first, int64_t last,
                                      std::integer_sequence<int, V...>) {
  static constexpr void (*many[2][sizeof...(V)])(const RowGradient<T>&) = {
      {&row_gradient<T, V + 1, kRowsAtOnce<V + 1>, false>...},
      {&row_gradient<T, V + 1, kRowsAtOnce<V + 1>, true>...}};
  static constexpr void (*few[2][sizeof...(V)])(const RowGradient<T>&) = {
      {&row_gradient<T, V + 1, kFewChannels, false>...},
      {&row_gradient<T, V + 1, kFewChannels, true>...}};
  static constexpr int channels_at_once[] = {kRowsAtOnce<V + 1>...};
  p.sums_pitch = sums.taps * sums.pitch();
  for (int64_t panel = 0; panel < sums.panels.count; ++panel) {
    const int width = sums.panels.width(panel);
    const bool narrow = sums.panels.ends_narrow(panel);
    p.column = sums.panels.first(panel) * kLanes<T>;
    for (p.channel = first; p.channel < last;) {
      p.sums = sums.row(p.channel, tap) + p.column;
      const bool fill = last - p.channel >= channels_at_once[width - 1];
      (fill ? many : few)[narrow][width - 1](p);
      p.channel += fill ? channels_at_once[width - 1] : kFewChannels;
    }
  }
}

// sums += the gradient from `count` rows of the result, after `before` others, or = it, after none.
// in.at(tap, row) was multiplied by the tap, grad.at(tap, row) is the gradient of that product.
// Where either is padding there is nothing to add, not even if the other is infinite. Cut by taps
// and channels, a few more in the last piece: a sum is made by one thread, in the order of the
// rows.
template <class T, class Rows, class GradientRows>
void add_weight_gradient(const Rows& in, const GradientRows& grad, int64_t before, int64_t count,
                         const WeightSums<T>& sums) {
  const int64_t blocks = larger(1, sums.channels / kTileRows);
  const auto first_channel = [&](int64_t block) {
    return block < blocks ? block * kTileRows : sums.channels;
  };
  parallel_jobs(
      sums.taps * blocks, count * kTileRows * sums.columns, [&](int64_t begin, int64_t end) {
        const T** rows =
            static_cast<const T**>(scratch(Slot::plan, sizeof(T*) * 2 * kGradientRows));
        for (int64_t job = begin; job < end;) {
          const int64_t tap = job / blocks, first = job % blocks;
          const int64_t last = smaller(blocks, first + end - job);
          int64_t row = 0;
          do {
            const int64_t first_row = row;
            RowGradient<T> p{rows, rows + kGradientRows,  0, 0, 0, nullptr,
                             0,    before + first_row > 0};
            for (; row < count && p.rows < kGradientRows; ++row) {
              const T *from = in.at(tap, row), *to = grad.at(tap, row);
              if (from == in.zeros || to == grad.zeros) continue;
              rows[p.rows] = from;
              rows[kGradientRows + p.rows++] = to;
            }
            for (int64_t block = first; block < last; ++block)
              add_gradient_block(p, sums, tap, first_channel(block), first_channel(block + 1),
                                 std::make_integer_sequence<int, kWidestPanel>{});
            if (!fills_sum(before + first_row, before + row)) continue;
            for (int64_t c = first_channel(first); c < first_channel(last); ++c)
              sums.add_to_total(sums.row(c, tap), sums.pitch());
          } while (row < count);
          job += last - first;
        }
      });
}
