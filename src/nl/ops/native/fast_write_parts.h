// What the memories of a chunk share when they are written: see fast_write.cpp.
#pragma once
#include "elementwise.h"

namespace nl {

constexpr double LOG_DECAY_MIN = -80.0, NORM_EPS = 1e-6;
constexpr idx FEW_OUTPUTS = 4, DIAGONAL = 16;
enum Output { DECAY, DELTA, DELTA_ERROR };

struct Memory {
  idx hidden, outputs, count;
  bool skip;
};

struct Sizes {
  idx rows, heads, width, tokens;
  bool gelu, dot, anchored;
  int output;
  double clip;
};

struct Bank {
  Memory memory;
  std::size_t group, writer;
};

// What the numbers say; the tensors follow in the order of nl/ops/fast_write_native.py.
struct Plan {
  Sizes sizes;
  std::vector<bool> same;
  std::vector<Bank> banks;
  std::vector<Memory> kinds;
  idx rates = 0, largest;

  // Memories of one size use the same room.
  std::size_t writer(const Memory& memory) {
    for (std::size_t i = 0; i < kinds.size(); i++)
      if (kinds[i].hidden == memory.hidden && kinds[i].outputs == memory.outputs) return i;
    kinds.push_back(memory);
    return kinds.size() - 1;
  }

  explicit Plan(const int64_t* n) {
    sizes = {n[0], n[1], n[2], n[3], n[4] != 0, n[5] != 0, n[6] != 0, (int)n[7], real(n[8])};
    largest = sizes.width > sizes.tokens ? sizes.width : sizes.tokens;
    const int64_t groups = n[9];
    n += 10;
    for (int g = 0; g < groups; g++) {
      same.push_back(n[0] != 0);
      rates += n[0] ? 1 : 2;
      const int64_t count = n[1];
      n += 2;
      for (int64_t b = 0; b < count; b++, n += 4) {
        const Memory memory{n[1], n[2], n[0], n[3] != 0};
        banks.push_back({memory, (std::size_t)g, writer(memory)});
        for (idx size : {n[1], n[2]}) largest = size > largest ? size : largest;
      }
    }
  }
};

// (I + L)^-1 for a strictly lower triangular L (n x n), block row by block row.
template <class T>
void unit_lower_inverse(T* x, const T* lower, idx n, T* room, T* part) {
  std::memset(x, 0, n * n * sizeof(T));
  for (idx b = 0; b < n; b += DIAGONAL) {
    const idx size = n - b < DIAGONAL ? n - b : DIAGONAL;
    for (idx i = b; i < b + size; i++) {
      x[i * n + i] = 1;
      for (idx j = b; j < i; j++) {
        const T less = lower[i * n + j];
        for (idx q = b; q <= j; q++) x[i * n + q] -= less * x[j * n + q];
      }
    }
    if (!b) continue;
    product<T>(part, b, size, b, b, rows_of(lower + b * n, n), rows_of((const T*)x, n), room, 1,
               false);
    product<T>(x + b * n, n, size, b, size, rows_of((const T*)x + b * n + b, n),
               rows_of((const T*)part, b), room, -1, false);
  }
}

// Rows of `x` (count x n) become the solutions of (I + L) u = x, or of its transpose.
template <class T>
void solve_few(T* x, const T* lower, idx count, idx n, bool transposed) {
  for (idx p = 0; p < count; p++) {
    T* u = x + p * n;
    if (!transposed)
      for (idx t = 1; t < n; t++) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (idx i = 0; i < t; i++) sum += lower[t * n + i] * u[i];
        u[t] -= sum;
      }
    else
      for (idx t = n - 1; t > 0; t--) {
        const T by = u[t];
        EACH (i, t) u[i] -= lower[t * n + i] * by;
      }
  }
}

// out[t] += sum over rows of a b.
template <class T>
void add_products(T* out, const T* a, const T* b, idx rows, idx n) {
  for (idx i = 0; i < rows; i++)
    EACH (t, n) out[t] += a[i * n + t] * b[i * n + t];
}

// phi, phi' and what its bend needs.
template <class T>
void slopes(const T* z, T* __restrict a, T* __restrict slope, T* __restrict rest, idx n,
            bool gelu) {
  std::memcpy(a, z, n * sizeof(T));
  activate(a, slope, n, gelu);
  if (gelu)
    EACH (i, n) rest[i] = normal_density(z[i]);
  else
    EACH (i, n) rest[i] = 1 - sigmoid(z[i]);
}

// What all memories of a row share: keys, decays, inner products; and sums of their gradients.
template <class T>
struct Frame {
  idx K, C;
  T *keys_turned, *before, *after, *ratio, *gram, *room, *part, *wide;
  T total;
  const T *keys, *log_decay;
  T *by_keys, *by_before, *by_after, *by_log_ratio, *by_gram;
  T by_total;

  Frame(Arena<T>& arena, const Sizes& s, idx largest) : K(s.width), C(s.tokens) {
    for (T** t : {&keys_turned, &by_keys}) *t = arena.take(K * C);
    for (T** t : {&before, &after, &by_before, &by_after}) *t = arena.take(C);
    for (T** t : {&ratio, &gram, &part, &by_log_ratio, &by_gram}) *t = arena.take(C * C);
    for (T** t : {&room, &wide}) *t = arena.take(largest * largest);
  }

  void open(const T* keys_, const T* log_decay_, bool keep) {
    keys = keys_, log_decay = log_decay_;
    turn(keys_turned, K, keys, C, K, C);
    std::vector<double> sums(C);
    double sum = 0;
    for (idx t = 0; t < C; t++) {
      before[t] = std::exp((T)sum);
      const double own = (double)log_decay[t];
      sums[t] = sum += own < LOG_DECAY_MIN ? LOG_DECAY_MIN : own;
    }
    total = std::exp((T)sum);
    for (idx t = 0; t < C; t++) after[t] = std::exp((T)(sum - sums[t]));
    for (idx t = 0; t < C; t++) {
      const double past = t ? sums[t - 1] : 0;
      T* row = ratio + t * C;
      EACH (i, t) row[i] = exponential((T)(past - sums[i]));
      for (idx i = t; i < C; i++) row[i] = 0;
    }
    product<T>(gram, C, C, C, K, rows_of((const T*)keys_turned, K), rows_of(keys, C), room, 1,
               false);
    if (!keep) return;
    std::memset(by_keys, 0, K * C * sizeof(T));
    for (T* t : {by_before, by_after}) std::memset(t, 0, C * sizeof(T));
    for (T* t : {by_log_ratio, by_gram}) std::memset(t, 0, C * C * sizeof(T));
    by_total = 0;
  }

  // Gradients of keys and log decay, after all other parts.
  void close(T* to_keys, T* to_log) {
    turn(part, C, by_gram, C, C, C);
    EACH (i, C * C) by_gram[i] += part[i];
    product<T>(by_keys, C, K, C, C, rows_of(keys, C), rows_of((const T*)by_gram, C), room, 1, true);
    std::memcpy(to_keys, by_keys, K * C * sizeof(T));
    std::vector<double> sums(C);
    double all = (double)by_total * total;
    for (idx t = 0; t < C; t++) {
      double mine = (double)(T)(by_before[t] * before[t]);
      for (idx i = 0; i < t; i++) mine += by_log_ratio[t * C + i];
      const double late = (double)(T)(by_after[t] * after[t]);
      if (t) sums[t - 1] += mine;
      sums[t] -= late;
      all += late;
      for (idx i = 0; i < t; i++) sums[i] -= by_log_ratio[t * C + i];
    }
    sums[C - 1] += all;
    double later = 0;
    for (idx t = C - 1; t >= 0; t--) {
      later += sums[t];
      to_log[t] = log_decay[t] < (T)LOG_DECAY_MIN ? 0 : (T)later;
    }
  }
};

// What memories with the same rates share: the system of their first layers.
template <class T>
struct Rates {
  idx K, C;
  bool same;
  const T *rate, *slow;
  T *pull, *system, *inverse, *late, *solved, *spread, *spread_turned;  // last four: tokens first
  T *by_rate, *by_slow, *by_spread;

  Rates(Arena<T>& arena, const Sizes& s, bool same_) : K(s.width), C(s.tokens), same(same_) {
    for (T** t : {&pull, &system, &inverse}) *t = arena.take(C * C);
    for (T** t : {&late, &solved, &spread, &spread_turned, &by_spread}) *t = arena.take(K * C);
    for (T** t : {&by_rate, &by_slow}) *t = arena.take(C);
  }

  void open(Frame<T>& f, const T* rate_, const T* slow_, bool keep) {
    rate = rate_, slow = slow_;
    for (idx t = 0; t < C; t++)
      EACH (i, C) {
        const T own = f.ratio[t * C + i];
        pull[t * C + i] = rate[t] * own;
        system[t * C + i] = slow[t] * own * f.gram[t * C + i];
      }
    unit_lower_inverse(inverse, system, C, f.room, f.part);
    for (idx t = 0; t < C; t++)
      EACH (k, K) late[t * K + k] = f.keys_turned[t * K + k] * f.after[t];
    product<T>(solved, K, C, K, C, rows_of((const T*)inverse, C).turned(),
               rows_of((const T*)late, K), f.room, 1, false);
    for (idx t = 0; t < C; t++)
      EACH (k, K) spread[t * K + k] = slow[t] * solved[t * K + k];
    if (!keep) return;
    turn(spread_turned, C, spread, K, C, K);
    std::memset(by_spread, 0, K * C * sizeof(T));
    for (T* t : {by_rate, by_slow}) std::memset(t, 0, C * sizeof(T));
  }

  void close(Frame<T>& f, T* to_rate, T* to_slow) {
    for (idx t = 0; t < C; t++) {
      by_slow[t] += inner(by_spread + t * K, solved + t * K, K);
      EACH (k, K) by_spread[t * K + k] *= slow[t];
    }
    product<T>(late, K, C, K, C, rows_of((const T*)inverse, C), rows_of((const T*)by_spread, K),
               f.room, 1, false);
    turn(by_spread, C, late, K, C, K);  // features first from here
    product<T>(system, C, C, C, K, rows_of((const T*)solved, K), rows_of((const T*)by_spread, C),
               f.room, -1, false);
    for (idx t = 0; t < C; t++) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (idx i = 0; i < C; i++) {
        const T by = system[t * C + i], own = f.ratio[t * C + i];
        const T by_pull = by * f.gram[t * C + i] * own;
        sum += by_pull;
        f.by_log_ratio[t * C + i] += by_pull * slow[t];
        f.by_gram[t * C + i] += by * slow[t] * own;
      }
      by_slow[t] += sum;
    }
    for (idx k = 0; k < K; k++)
      EACH (t, C) {
        const T by = by_spread[k * C + t];
        f.by_keys[k * C + t] += by * f.after[t];
        f.by_after[t] += by * f.keys[k * C + t];
      }
    EACH (t, C) to_rate[t] = same ? by_rate[t] + by_slow[t] : by_rate[t];
    if (!same) std::memcpy(to_slow, by_slow, C * sizeof(T));
  }
};

}  // namespace nl
