// The register-blocked core that all three functions share: a tile of ROWS x VECTORS vectors
// gathers
//   tile[i][:] += sum over steps of row_i[step] * vector[step][:]
// in registers. Forward reads weights as rows and positions as vectors, or the other way round;
// grad_weight reads input positions as rows and output channels as vectors.

template <class T>
struct Product {
  const T* const*
      rows;  // where each row's scalars start (with contiguous rows only rows[0] counts)
  const T* vectors;
  // The reduction is a list of `outer` starts, each followed by `inner` regular steps.
  const int64_t* row_start;
  const int64_t* vector_start;
  int64_t outer, inner;
  int64_t row_step, vector_step;
  Sum<T>* tile;
  int64_t tile_pitch;
  bool accumulate;  // add to the tile instead of writing it
  // Where not null, the sums go there at once instead of to the tile, each row with its bias. For
  // contiguous rows only.
  Stored<T>* out = nullptr;
  int64_t out_pitch = 0;
  const Sum<T>* bias = nullptr;
};

// Contiguous rows: row i is rows[0] + i, as in packed weights; else rows are anywhere.
template <class T, int ROWS, int VECTORS, bool CONTIGUOUS_ROWS>
void outer_product(const Product<T>& p) {
  constexpr int W = kLanes<T>;
  Vector<Sum<T>> sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = Vector<Sum<T>>{};
  const T* row[ROWS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) row[i] = CONTIGUOUS_ROWS ? p.rows[0] + i : p.rows[i];

  for (int64_t o = 0; o < p.outer; ++o) {
    int64_t r = p.row_start[o];
    const T* vector = p.vectors + p.vector_start[o];
    for (int64_t s = 0; s < p.inner; ++s) {
      Vector<T> v[VECTORS];
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; ++j) {
        v[j] = load(vector + j * W);
        if constexpr (ROWS > 1) keep(v[j]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const T scalar = row[i][r];
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) sum[i][j] = multiply_add(sum[i][j], scalar, v[j]);
      }
      r += p.row_step;
      vector += p.vector_step;
    }
  }

  if constexpr (CONTIGUOUS_ROWS)
    if (p.out != nullptr) {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
          if (p.accumulate) sum[i][j] += load(p.tile + i * p.tile_pitch + j * W);
          store(p.out + i * p.out_pitch + j * W, sum[i][j] + p.bias[i]);
        }
      return;
    }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; ++j) {
      Sum<T>* out = p.tile + i * p.tile_pitch + j * W;
      store(out, p.accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
}

// The largest tile whose sums, vectors and one scalar fit in the registers of this instruction set.
constexpr int kMaxRows = CONVLM_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int kMaxVectors = 3;
// Another shape for contiguous rows, whose scalars AVX-512 takes from memory as it multiplies: next
// to nothing is read twice, so operands may come from the L2 cache.
constexpr int kTallRows = CONVLM_VECTOR_BYTES == 64 ? 16 : kMaxRows;
constexpr int kTallVectors = CONVLM_VECTOR_BYTES == 64 ? 1 : kMaxVectors;

// What a tile of contiguous rows has at most.
struct BlockShape {
  bool tall;
  int64_t rows, vectors;
  explicit BlockShape(bool is_tall)
      : tall(is_tall),
        rows(tall ? kTallRows : kMaxRows),
        vectors(tall ? kTallVectors : kMaxVectors) {}
};

template <class T>
using ProductFunction = void (*)(const Product<T>&);

template <class T, bool CONTIGUOUS_ROWS, int MAX_VECTORS, int... I>
CONVLM_INLINE ProductFunction<T> select_product(int rows, int vectors,
                                                std::integer_sequence<int, I...>) {
  static constexpr ProductFunction<T> table[] = {
      &outer_product<T, I / MAX_VECTORS + 1, I % MAX_VECTORS + 1, CONTIGUOUS_ROWS>...};
  return table[(rows - 1) * MAX_VECTORS + vectors - 1];
}

// A longer chain of additions in one register loses accuracy: past this many steps the tile
// in memory takes the sum and the registers start again. Chains of 64 err no more than oneDNN's
// forward; its grad_weight errs more than chains of 256, and so does rounding to a bfloat16: there
// several taps of up to 64 channels, or pairs of them, make a chain.
constexpr int64_t kChain = 64;
constexpr int64_t kGradWeightChain = 256;
constexpr int64_t kPairsChain = 256;
template <class T>
constexpr int64_t kForwardChain = kDepth<T> == 1 ? kChain : kPairsChain;

// Some of the steps of a reduction: the others would add zeros.
struct Steps {
  int64_t first_outer, last_outer, first_inner, last_inner;
};

// A chain is some of the inner steps of some outer ones: what several taps read stays in the L1
// cache between them.
struct Chains {
  int64_t outer, inner;

  Chains(int64_t all_outer, int64_t all_inner, int64_t chain)
      : outer(larger(1, all_outer)), inner(larger(1, all_inner)) {
    if (all_outer * all_inner <= chain) return;
    inner = divide_up(all_inner, divide_up(all_inner, smaller(chain, kChain)));
    outer = larger(1, chain / inner);
  }
};

// Runs the reduction of `p` in chains, of which it takes no more than `steps`; `rows` <= MAX_ROWS,
// `vectors` <= MAX_VECTORS. Where chains begin does not depend on the steps, and so no bits do.
template <class T, bool CONTIGUOUS_ROWS, int MAX_ROWS = kMaxRows, int MAX_VECTORS = kMaxVectors>
CONVLM_INLINE void multiply(Product<T> p, int rows, int vectors, const Steps& steps,
                            int64_t chain) {
  const ProductFunction<T> product = select_product<T, CONTIGUOUS_ROWS, MAX_VECTORS>(
      rows, vectors, std::make_integer_sequence<int, MAX_ROWS * MAX_VECTORS>{});
  const Product<T> whole = p;
  const T* start[MAX_ROWS];
  p.rows = start;
  const auto run = [&](int64_t outer, int64_t last_outer, int64_t inner, int64_t last_inner) {
    p.row_start = whole.row_start + outer;
    p.vector_start = whole.vector_start + outer;
    p.outer = last_outer - outer;
    p.inner = last_inner - inner;
    for (int i = 0; i < (CONTIGUOUS_ROWS ? 1 : rows); ++i)
      start[i] = whole.rows[i] + inner * p.row_step;
    p.vectors = whole.vectors + inner * p.vector_step;
    const bool is_last = last_outer >= steps.last_outer && last_inner >= steps.last_inner;
    p.out = is_last ? whole.out : nullptr;
    product(p);
    p.accumulate = true;
  };
  if (steps.first_outer >= steps.last_outer || steps.first_inner >= steps.last_inner)
    return run(steps.last_outer, steps.last_outer, steps.last_inner, steps.last_inner);  // zeros
  const Chains chains(whole.outer, whole.inner, chain);
  for (int64_t s = steps.first_inner / chains.inner * chains.inner; s < steps.last_inner;
       s += chains.inner)
    for (int64_t o = steps.first_outer / chains.outer * chains.outer; o < steps.last_outer;
         o += chains.outer)
      run(larger(o, steps.first_outer), smaller(o + chains.outer, steps.last_outer),
          larger(s, steps.first_inner), smaller(s + chains.inner, steps.last_inner));
}

// All of it.
template <class T, bool CONTIGUOUS_ROWS, int MAX_ROWS = kMaxRows, int MAX_VECTORS = kMaxVectors>
CONVLM_INLINE void multiply(const Product<T>& p, int rows, int vectors,
                            int64_t chain = kForwardChain<T>) {
  multiply<T, CONTIGUOUS_ROWS, MAX_ROWS, MAX_VECTORS>(p, rows, vectors, {0, p.outer, 0, p.inner},
                                                      chain);
}

// Such a tile of contiguous rows.
template <class T>
CONVLM_INLINE void multiply_block(const BlockShape& shape, const Product<T>& p, int rows,
                                  int vectors, const Steps& steps) {
  if (shape.tall)
    multiply<T, true, kTallRows, kTallVectors>(p, rows, vectors, steps, kForwardChain<T>);
  else
    multiply<T, true>(p, rows, vectors, steps, kForwardChain<T>);
}
