// Products of whole tiles of bfloat16: AMX multiplies 16 rows of 32 elements with 16 rows of 16
// pairs, and adds to 16 x 16 floats, as fast as twelve vectors could. It reads denormals as zeros
// and leaves zeros for them, as the dot products of pairs do.

constexpr int64_t kTileRows = 16, kTileColumns = 16;  // of sums, and of pairs
constexpr int64_t kTileDepth = 32;                    // elements of a reduction at a time
constexpr int64_t kTilePairs = kTileDepth / 2;
constexpr int64_t kTileSize = kTileRows * kTileDepth;  // of operands
// A block of two by two tiles of sums loads as many operands as it multiplies. One tile of rows
// takes four of columns, or its sums would wait for one another.
constexpr int64_t kBlockRows = 2 * kTileRows, kBlockColumns = 2 * kTileColumns;
constexpr int64_t kWideColumns = 4 * kTileColumns;
constexpr int64_t kBlockSize = kBlockRows * kBlockColumns;  // of sums

inline int64_t in_tiles(int64_t count, int64_t size) { return divide_up(count, size) * size; }

// Eight registers of full size, of this thread and for as long as this lives.
class TileRegisters {
 public:
  TileRegisters() {
    constexpr int kCount = 8;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < kCount; ++i) {
      shapes.row_bytes[i] = kTileColumns * sizeof(float);
      shapes.rows[i] = kTileRows;
    }
    __asm__ volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// A matrix that tiles are loaded from; strides are in bytes.
struct TileSource {
  const void* start;
  int64_t row;    // from one row of a tile to the next
  int64_t block;  // to the other tile of a block
  int64_t step;   // to the next step of the reduction

  const char* at(int64_t block_index, int64_t offset) const {
    return static_cast<const char*>(start) + block_index * block + offset;
  }
};

// sums[i][j] (+)= sum over steps of row_i[step][:] . column_j[step][:]. The reduction is a list of
// `outer` starts of the columns, each followed by `inner` regular steps; rows go on regularly.
struct TileProduct {
  TileSource rows, columns;
  const int64_t* column_start;  // in pairs
  int64_t outer, inner;
  float* sums;
  int64_t pitch;  // of sums, in floats
  bool accumulate;
};

// Rows that are far, in the L2 cache, and are read once, leave the L1 cache to the columns.
template <int ROWS, int COLUMNS, bool ROWS_ARE_FAR>
void multiply_tiles(const TileProduct& p) {
  static_assert(ROWS * COLUMNS <= 4 && ROWS <= 2);
  // Sums are in registers 0 to 3, row by row; the names of registers must be literals.
  constexpr bool kSecond = ROWS * COLUMNS > 1, kThird = ROWS * COLUMNS > 2;
  constexpr bool kFourth = ROWS * COLUMNS > 3;
  // The compiler does not know what the loads of tiles read.
  __asm__ volatile("" : : : "memory");
  const int64_t pitch = p.pitch * static_cast<int64_t>(sizeof(float));
  const auto sums = [&](int i) {
    return p.sums + i / COLUMNS * kTileRows * p.pitch + i % COLUMNS * kTileColumns;
  };
  if (p.accumulate) {
    _tile_loadd(0, sums(0), pitch);
    if constexpr (kSecond) _tile_loadd(1, sums(1), pitch);
    if constexpr (kThird) _tile_loadd(2, sums(2), pitch);
    if constexpr (kFourth) _tile_loadd(3, sums(3), pitch);
  } else {
    _tile_zero(0);
    if constexpr (kSecond) _tile_zero(1);
    if constexpr (kThird) _tile_zero(2);
    if constexpr (kFourth) _tile_zero(3);
  }
  int64_t row = 0;
  for (int64_t o = 0; o < p.outer; ++o) {
    int64_t column = p.column_start[o] * static_cast<int64_t>(sizeof(Pair));
    for (int64_t s = 0; s < p.inner; ++s, row += p.rows.step, column += p.columns.step) {
      _tile_loadd(6, p.columns.at(0, column), p.columns.row);
      if constexpr (ROWS_ARE_FAR)
        _tile_stream_loadd(4, p.rows.at(0, row), p.rows.row);
      else
        _tile_loadd(4, p.rows.at(0, row), p.rows.row);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (COLUMNS > 1) {
        _tile_loadd(7, p.columns.at(1, column), p.columns.row);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (COLUMNS > 2) {
        _tile_loadd(5, p.columns.at(2, column), p.columns.row);
        _tile_dpbf16ps(2, 4, 5);
      }
      if constexpr (COLUMNS > 3) {
        _tile_loadd(6, p.columns.at(3, column), p.columns.row);
        _tile_dpbf16ps(3, 4, 6);
      }
      if constexpr (ROWS > 1) {
        if constexpr (ROWS_ARE_FAR)
          _tile_stream_loadd(5, p.rows.at(1, row), p.rows.row);
        else
          _tile_loadd(5, p.rows.at(1, row), p.rows.row);
        if constexpr (COLUMNS == 1) _tile_dpbf16ps(1, 5, 6);
        if constexpr (COLUMNS == 2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (COLUMNS == 2) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums(0), pitch);
  if constexpr (kSecond) _tile_stored(1, sums(1), pitch);
  if constexpr (kThird) _tile_stored(2, sums(2), pitch);
  if constexpr (kFourth) _tile_stored(3, sums(3), pitch);
}

// How many of the block are wanted: up to two tiles of each, or one of `rows` and four of
// `columns`.
template <bool ROWS_ARE_FAR>
void multiply_tiles(const TileProduct& p, int64_t rows, int64_t columns) {
  const int64_t across = divide_up(columns, kTileColumns);
  if (rows > kTileRows)
    return across > 1 ? multiply_tiles<2, 2, ROWS_ARE_FAR>(p)
                      : multiply_tiles<2, 1, ROWS_ARE_FAR>(p);
  switch (across) {
    case 1:
      return multiply_tiles<1, 1, ROWS_ARE_FAR>(p);
    case 2:
      return multiply_tiles<1, 2, ROWS_ARE_FAR>(p);
    case 3:
      return multiply_tiles<1, 3, ROWS_ARE_FAR>(p);
    default:
      return multiply_tiles<1, 4, ROWS_ARE_FAR>(p);
  }
}
