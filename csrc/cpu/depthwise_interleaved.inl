// grad_input of few channels with a stride: each class of positions is a correlation of its own,
// whose outputs lie a stride apart. They are computed side by side and stored in their turn.

// `parts` are those of one grad_input that have taps, of one channel of x per group. A part of
// several rows stands for as many classes.
template <class S>
void correlate_interleaved(const Correlation<S>* parts, int64_t count, S* grad_input) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr int64_t kTile = 2048;  // positions, which with their strips stay in the L1 cache
  const Correlation<S>& p = parts[0];
  const int64_t step = p.out_step, length = p.out_group;
  int64_t numbers = 0, products = 0;
  for (int64_t i = 0; i < count; ++i) {
    numbers += sliding_input_numbers(parts[i]);
    products += parts[i].rows * parts[i].products();
  }
  int64_t* memory = static_cast<int64_t*>(
      scratch(Slot::plan, sizeof(int64_t) * numbers + sizeof(SlidingInput) * count));
  SlidingInput* inputs = reinterpret_cast<SlidingInput*>(memory + numbers);
  for (int64_t i = 0; i < count; ++i) {
    inputs[i] = sliding_input(parts[i], memory);
    memory += sliding_input_numbers(parts[i]);
  }
  const int64_t outputs = divide_up(length, step);
  const int64_t tile = larger(W, kTile / step / W * W), pitch = staged_pitch(tile, W);
  const int64_t tiles = divide_up(outputs, tile);
  const int64_t blocks = divide_up(outputs, 16 * 1024);  // of a row, for threads to share
  parallel_jobs(
      p.batch * p.groups * blocks, products * divide_up(outputs, blocks),
      [&](int64_t begin, int64_t end) {
        T* weight = static_cast<T*>(scratch(Slot::weight, sizeof(T) * products));
        T* strips = static_cast<T*>(scratch(Slot::tile, sizeof(T) * step * pitch));
        for (int64_t i = 0; i < step * pitch; ++i) strips[i] = 0;  // of classes without taps
        for (int64_t job = begin; job < end; ++job) {
          const int64_t block = job % blocks, group = job / blocks % p.groups;
          const int64_t n = job / blocks / p.groups;
          T* packed = weight;
          for (int64_t i = 0; i < count; ++i)
            for (int64_t m = 0; m < parts[i].rows; ++m, packed += parts[i].products())
              pack_row(parts[i], group, m, packed);
          for (int64_t t = tiles * block / blocks; t < tiles * (block + 1) / blocks; ++t) {
            const int64_t first = t * tile, last = smaller(outputs, first + tile);
            packed = weight;
            for (int64_t i = 0; i < count; ++i) {
              const Correlation<S>& part = parts[i];
              T* out = strips + (part.out - grad_input) * pitch;
              for_each_stretch(
                  inputs[i], input_of(part, n, group), first, smaller(last, part.outputs),
                  [&](auto* in, const int64_t* offset, int64_t q, int64_t outputs) {
                    for (int64_t m = 0; m < part.rows; ++m)
                      correlate_row(in, packed + m * part.products(), offset, part.products(), T(0),
                                    Activation::none, outputs, out + m * pitch + q - first);
                  });
              packed += part.rows * part.products();
            }
            interleave(strips, pitch, step, smaller(length - first * step, tile * step),
                       grad_input + n * p.out_batch + group * p.out_group + first * step);
          }
        }
      });
}
