// Products of small matrices and elementwise functions on one core.
//
// A product is computed in tiles of a few rows and vectors of columns that stay in registers. The
// left factor is read number by number, so that its strides are free; the right one is read in
// rows and turned round first where it is its columns that are contiguous. Meant for factors that
// fit the caches.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

// A loop over numbers that do not depend on one another.
#define EACH(i, n) _Pragma("omp simd") for (idx i = 0; i < (n); i++)

namespace nl {

using idx = std::ptrdiff_t;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 6, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6, TILE_VECTORS = 2;
#else
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 4, TILE_VECTORS = 2;
#endif

template <class T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

// A real number among the whole ones of a call.
inline double real(int64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Memory that a thread keeps from call to call, in blocks: what malloc takes and gives back in many
// sizes it has to look for, and the system zeroes it page by page. Hidden: every kernel has
// blocks of its own, as another may be of another version.
class Blocks {
 public:
  struct Place {
    std::size_t block, used;
  };
  static __attribute__((visibility("hidden"))) Blocks& own() {
    static thread_local Blocks blocks;
    return blocks;
  }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;
  ~Blocks() { shrink(0); }

  void* take(std::size_t bytes) {
    while (place_.block < blocks_.size() && place_.used + bytes > blocks_[place_.block].size)
      place_ = {place_.block + 1, 0};
    if (place_.block == blocks_.size()) {
      const std::size_t size = bytes > LEAST ? bytes : LEAST;
      void* at = std::aligned_alloc(64, size);
      if (!at) std::abort();
      blocks_.push_back({static_cast<char*>(at), size});
    }
    void* piece = blocks_[place_.block].at + place_.used;
    place_.used += bytes;
    return piece;
  }
  Place place() const { return place_; }
  // What was taken since is free.
  void back_to(Place place) {
    place_ = place;
    std::size_t kept = 0, count = 0;
    while (count < blocks_.size() && kept + blocks_[count].size <= MOST)
      kept += blocks_[count++].size;
    if (!place.block && !place.used) shrink(count);
  }

 private:
  static constexpr std::size_t LEAST = std::size_t(1) << 20, MOST = std::size_t(1) << 26;
  struct Block {
    char* at;
    std::size_t size;
  };
  Blocks() = default;
  void shrink(std::size_t count) {
    for (; blocks_.size() > count; blocks_.pop_back()) std::free(blocks_.back().at);
  }
  std::vector<Block> blocks_;
  Place place_{0, 0};
};

// Memory of one thread for one call; every piece begins where a cache line begins.
template <class T>
class Arena {
 public:
  Arena() : before_(Blocks::own().place()) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { Blocks::own().back_to(before_); }
  T* take(idx count) {
    const std::size_t bytes = ((std::size_t)count * sizeof(T) + 127) / 64 * 64;
    return static_cast<T*>(Blocks::own().take(bytes));
  }

 private:
  Blocks::Place before_;
};

// A matrix in memory: element (i, j) is at[i * row + j * col].
template <class T>
struct View {
  const T* at;
  idx row, col;
  View turned() const { return {at, col, row}; }
};

template <class T>
inline View<T> rows_of(const T* at, idx row) {
  return {at, row, 1};
}

template <class T, int MR, int NV>
inline __attribute__((always_inline)) void tile(idx k, View<T> a, const T* b, idx b_row, T* c,
                                                idx c_row, T alpha, bool add) {
  typedef T vec __attribute__((vector_size(VECTOR_BYTES)));
  typedef T loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  constexpr int L = LANES<T>;
  vec sum[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) sum[i][v] = vec{};
  for (idx p = 0; p < k; p++) {
    vec right[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) right[v] = *(const loose*)(b + p * b_row + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      const T left = a.at[i * a.row + p * a.col];
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
      loose* to = (loose*)(c + i * c_row + v * L);
      *to = add ? *to + alpha * sum[i][v] : alpha * sum[i][v];
    }
}

template <class T, int NV>
void stripe(idx m, idx k, View<T> a, const T* b, idx b_row, T* c, idx c_row, T alpha, bool add) {
  idx i = 0;
  auto left = [&] { return View<T>{a.at + i * a.row, a.row, a.col}; };
  for (; i + TILE_ROWS <= m; i += TILE_ROWS)
    tile<T, TILE_ROWS, NV>(k, left(), b, b_row, c + i * c_row, c_row, alpha, add);
  for (; i + 4 <= m; i += 4) tile<T, 4, NV>(k, left(), b, b_row, c + i * c_row, c_row, alpha, add);
  for (; i + 2 <= m; i += 2) tile<T, 2, NV>(k, left(), b, b_row, c + i * c_row, c_row, alpha, add);
  for (; i < m; i++) tile<T, 1, NV>(k, left(), b, b_row, c + i * c_row, c_row, alpha, add);
}

// Two vectors in pieces of 16 bytes, with numbers of both in turn, UNIT together: processors have
// single instructions for this and for `split`, not for just any order.
template <class T, int UNIT, class V>
inline __attribute__((always_inline)) void weave(V& one, V& two) {
  typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type whole;
  typedef whole mask __attribute__((vector_size(VECTOR_BYTES)));
  constexpr int L = LANES<T>, Q = 16 / sizeof(T);
  mask low, high;
#pragma GCC unroll 16
  for (int q = 0; q < L; q++) {
    const int unit = q % Q / UNIT, first = q / Q * Q + unit / 2 * UNIT + q % UNIT;
    low[q] = first + unit % 2 * L;
    high[q] = low[q] + Q / 2;
  }
  const V a = one, b = two;
  one = __builtin_shuffle(a, b, low);
  two = __builtin_shuffle(a, b, high);
}

// The even pieces of 16 bytes of both vectors, and the odd ones.
template <class T, class V>
inline __attribute__((always_inline)) void split(V& one, V& two) {
  typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type whole;
  typedef whole mask __attribute__((vector_size(VECTOR_BYTES)));
  constexpr int L = LANES<T>, Q = 16 / sizeof(T);
  mask even, odd;
#pragma GCC unroll 16
  for (int q = 0; q < L; q++) {
    even[q] = q / Q * 2 * Q + q % Q;
    odd[q] = even[q] + Q;
  }
  const V a = one, b = two;
  one = __builtin_shuffle(a, b, even);
  two = __builtin_shuffle(a, b, odd);
}

// A square of vectors turned round: within pieces of 16 bytes, then the pieces.
template <class T, class V>
inline __attribute__((always_inline)) void turn_square(V (&r)[LANES<T>]) {
  constexpr int L = LANES<T>, Q = 16 / sizeof(T);
#pragma GCC unroll 16
  for (int q = 0; q < L; q += 2) weave<T, 1>(r[q], r[q + 1]);
  if (Q == 4) {
#pragma GCC unroll 16
    for (int q = 0; q < L; q += 4) {
      weave<T, Q / 2>(r[q], r[q + 2]);
      weave<T, Q / 2>(r[q + 1], r[q + 3]);
      const V second = r[q + 2];
      r[q + 2] = r[q + 1];
      r[q + 1] = second;
    }
  }
#pragma GCC unroll 4
  for (int s = Q; s < L; s *= 2)
#pragma GCC unroll 16
    for (int q = 0; q < L; q++)
      if (!(q & s)) split<T>(r[q], r[q | s]);
}

// to (n x m, rows apart by to_row) = from (m x n) turned round, in squares of vectors.
template <class T>
void turn(T* to, idx to_row, const T* from, idx from_row, idx m, idx n) {
  typedef T vec __attribute__((vector_size(VECTOR_BYTES)));
  typedef T loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  constexpr int L = LANES<T>;
  idx i = 0;
  for (; i + L <= m; i += L) {
    idx j = 0;
    for (; j + L <= n; j += L) {
      vec r[L];
#pragma GCC unroll 16
      for (int q = 0; q < L; q++) r[q] = *(const loose*)(from + (i + q) * from_row + j);
      turn_square<T>(r);
#pragma GCC unroll 16
      for (int q = 0; q < L; q++) *(loose*)(to + (j + q) * to_row + i) = r[q];
    }
    for (; j < n; j++)
      for (int q = 0; q < L; q++) to[j * to_row + i + q] = from[(i + q) * from_row + j];
  }
  for (; i < m; i++)
    for (idx j = 0; j < n; j++) to[j * to_row + i] = from[i * from_row + j];
}

// A product with fewer columns than a vector has numbers.
template <class T>
void last_columns(idx m, idx n, idx k, View<T> a, View<T> b, T* c, idx c_row, T alpha, bool add) {
  constexpr int L = LANES<T>;
  static thread_local std::vector<T> padded;
  if ((idx)padded.size() < k * L) padded.resize(k * L);
  for (idx p = 0; p < k; p++)
    for (idx j = 0; j < L; j++) padded[p * L + j] = j < n ? b.at[p * b.row + j * b.col] : T(0);
  T made[TILE_ROWS * L];
  for (idx i = 0; i < m; i += TILE_ROWS) {
    const idx rows = m - i < TILE_ROWS ? m - i : TILE_ROWS;
    stripe<T, 1>(rows, k, View<T>{a.at + i * a.row, a.row, a.col}, padded.data(), L, made, L, alpha,
                 false);
    for (idx q = 0; q < rows; q++)
      for (idx j = 0; j < n; j++) {
        T* to = c + (i + q) * c_row + j;
        *to = add ? *to + made[q * L + j] : made[q * L + j];
      }
  }
}

// c (m x n) = alpha a (m x k) b (k x n), or c += that. `room`: k n numbers, for a turned b.
template <class T>
void product(T* c, idx c_row, idx m, idx n, idx k, View<T> a, View<T> b, T* room, T alpha,
             bool add) {
  constexpr int L = LANES<T>;
  const bool turned = b.col != 1;
  // The columns from j on that one stripe needs, in rows.
  auto right = [&](idx j, idx width) {
    if (!turned) return rows_of(b.at + j, b.row);
    turn(room, width, b.at + j * b.col, b.col, width, k);
    return rows_of<T>(room, width);
  };
  idx j = 0;
  for (; j + TILE_VECTORS * L <= n; j += TILE_VECTORS * L) {
    const View<T> panel = right(j, TILE_VECTORS * L);
    stripe<T, TILE_VECTORS>(m, k, a, panel.at, panel.row, c + j, c_row, alpha, add);
  }
  for (; j + 2 * L <= n; j += 2 * L) {
    const View<T> panel = right(j, 2 * L);
    stripe<T, 2>(m, k, a, panel.at, panel.row, c + j, c_row, alpha, add);
  }
  for (; j + L <= n; j += L) {
    const View<T> panel = right(j, L);
    stripe<T, 1>(m, k, a, panel.at, panel.row, c + j, c_row, alpha, add);
  }
  if (j < n)
    last_columns(m, n - j, k, a, View<T>{b.at + j * b.col, b.row, b.col}, c + j, c_row, alpha, add);
}

inline double exponential(double x) { return std::exp(x); }

// e^x to about one unit in the last place, without branches; NaN stays NaN.
inline float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float turns = x * 1.44269504f + 12582912.f;
  int32_t bits;
  std::memcpy(&bits, &turns, 4);
  const float n = turns - 12582912.f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  bits = (int32_t)((uint32_t)bits << 23) + (127 << 23);
  float scale;
  std::memcpy(&scale, &bits, 4);
  return y * scale;
}

template <class T>
inline T sigmoid(T x) {
  return T(1) / (T(1) + exponential(-x));
}

// sum of a b, in pieces: long sums of single precision lose digits.
template <class T>
T inner(const T* a, const T* b, idx n) {
  constexpr idx piece = 256;
  double total = 0;
  for (idx start = 0; start < n; start += piece) {
    const idx end = start + piece < n ? start + piece : n;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (idx i = start; i < end; i++) sum += a[i] * b[i];
    total += sum;
  }
  return (T)total;
}

}  // namespace nl
