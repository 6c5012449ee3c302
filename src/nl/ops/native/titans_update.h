// The memory E of a layer at a chunk's end from that at its start, and the way back: each number is
// read once, changed in registers and written once.
#pragma once
#include <algorithm>

#include "matrix.h"

namespace nl {

constexpr idx ROWS_AT_ONCE = 12, FEW = 16;

// The sum over q of left[q, row] right[q, column]: `count` outer products.
template <class T>
struct Outer {
  const T* left;
  idx left_row;
  const T* right;
  idx right_row, count;
  View<T> here() const { return {left, 1, left_row}; }
  View<T> there() const { return rows_of(right, right_row); }
};

template <class V, class T>
inline __attribute__((always_inline)) V load(const T* at) {
  V value;
  std::memcpy(&value, at, sizeof(V));
  return value;
}

template <class V, class T>
inline __attribute__((always_inline)) void store(T* at, V value) {
  std::memcpy(at, &value, sizeof(V));
}

// Calls f.tile<V, ROWS, VECTORS>(row, column) until a matrix (out, in) is covered; V is a vector,
// or a number where the rest of a row is no vector.
template <class T, int ROWS, class F>
void cover(idx out, idx in, F& f) {
  typedef T vec __attribute__((vector_size(VECTOR_BYTES)));
  constexpr int L = LANES<T>;
  idx i = 0;
  for (; i + ROWS <= out; i += ROWS) {
    idx j = 0;
    for (; j + TILE_VECTORS * L <= in; j += TILE_VECTORS * L)
      f.template tile<vec, ROWS, TILE_VECTORS>(i, j);
    for (; j + L <= in; j += L) f.template tile<vec, ROWS, 1>(i, j);
    for (; j < in; j++) f.template tile<T, ROWS, 1>(i, j);
  }
  if (ROWS > 1 && i < out) {
    F rest = f.below(i);
    cover<T, 1>(out - i, in, rest);
    f.take(rest);
  }
}

// As `cover`. Sums of many outer products are products of matrices: their tiles are larger, and
// they wait in `room` for a few rows at a time.
template <class T, int ROWS, class F>
void cover_all(idx out, idx in, F& f, idx count, T* room) {
  if (count <= FEW) return cover<T, ROWS>(out, in, f);
  for (idx i = 0; i < out; i += ROWS_AT_ONCE) {
    const idx rows = std::min(ROWS_AT_ONCE, out - i);
    F part = f.below(i);
    part.gather(room, rows);
    cover<T, ROWS>(rows, in, part);
    f.take(part);
  }
}

// to = mix from + outer products, M parts of (out, in) each; the left factors of the parts are
// `between` apart. Unless null, weight = base + the first part.
template <class T, int M>
struct Forward {
  T* to;
  const T* from;
  idx in, apart;
  const T* mix;
  Outer<T> step;
  idx between;
  T* weight;
  const T* base;
  const T* more = nullptr;

  template <class V, int R, int N>
  inline __attribute__((always_inline)) void tile(idx i, idx j) {
    constexpr int L = sizeof(V) / sizeof(T);
    V sum[M][R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) {
        const T* at = from + (i + r) * in + j + v * L;
        const V held = load<V>(at), pushed = M > 1 ? load<V>(at + apart) : held;
#pragma GCC unroll 2
        for (int m = 0; m < M; m++)
          sum[m][r][v] = M > 1 ? mix[2 * m] * held + mix[2 * m + 1] * pushed : mix[0] * held;
        if (!more) continue;
#pragma GCC unroll 2
        for (int m = 0; m < M; m++)
          sum[m][r][v] += load<V>(more + (m * ROWS_AT_ONCE + i + r) * in + j + v * L);
      }
    for (idx q = 0; q < step.count; q++) {
      V right[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) right[v] = load<V>(step.right + q * step.right_row + j + v * L);
#pragma GCC unroll 2
      for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const T left = step.left[q * step.left_row + m * between + i + r];
#pragma GCC unroll 8
          for (int v = 0; v < N; v++) sum[m][r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) {
        const idx at = (i + r) * in + j + v * L;
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) store(to + m * apart + at, sum[m][r][v]);
        if (weight) store(weight + at, load<V>(base + at) + sum[0][r][v]);
      }
  }
  Forward below(idx i) const {
    Forward rest = *this;
    rest.to += i * in, rest.from += i * in, rest.step.left += i;
    if (weight) rest.weight += i * in, rest.base += i * in;
    if (more) rest.more += i * in;
    return rest;
  }
  void take(const Forward&) {}
  void gather(T* room, idx rows) {
    for (int m = 0; m < M; m++)
      product(room + m * ROWS_AT_ONCE * in, in, rows, in, step.count,
              View<T>{step.left + m * between, 1, step.left_row}, step.there(), (T*)0, T(1), false);
    step.count = 0, more = room;
  }
};

// The way back through `Forward`, in place: the adjoint of E, to whose first part and to that of
// the base the adjoint of the weights is added, two sums of outer products; `to_mix` are sums of
// products with E at the start.
template <class T, int M>
struct Backward {
  T* adjoint;
  const T* from;
  idx in, apart;
  const T* mix;
  Outer<T> one, two;
  T* to_base;
  T sums[M * M][LANES<T>];  // of lanes; what is no vector counts in the first
  const T* more = nullptr;

  template <class V, int R, int N>
  inline __attribute__((always_inline)) void outer(V (&sum)[R][N], const Outer<T>& o, idx i,
                                                   idx j) {
    constexpr int L = sizeof(V) / sizeof(T);
    for (idx q = 0; q < o.count; q++) {
      V right[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) right[v] = load<V>(o.right + q * o.right_row + j + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const T left = o.left[q * o.left_row + i + r];
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) sum[r][v] += left * right[v];
      }
    }
  }

  template <class V, int R, int N>
  inline __attribute__((always_inline)) void tile(idx i, idx j) {
    constexpr int L = sizeof(V) / sizeof(T);
    V sum[R][N], found[M * M];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) sum[r][v] = more ? load<V>(more + (i + r) * in + j + v * L) : V{};
#pragma GCC unroll 4
    for (int s = 0; s < M * M; s++) found[s] = V{};
    outer<V, R, N>(sum, one, i, j);
    outer<V, R, N>(sum, two, i, j);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) {
        const idx at = (i + r) * in + j + v * L;
        V to[M], held[M];
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) {
          to[m] = load<V>(adjoint + m * apart + at);
          held[m] = load<V>(from + m * apart + at);
        }
#pragma GCC unroll 4
        for (int s = 0; s < M * M; s++) found[s] += to[s / M] * held[s % M];
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) {
          V made = mix[m] * to[0];
          if (M > 1) made += mix[2 + m] * to[M - 1];
          store(adjoint + m * apart + at, m ? made : made + sum[r][v]);
        }
        if (to_base) store(to_base + at, load<V>(to_base + at) + sum[r][v]);
      }
#pragma GCC unroll 4
    for (int s = 0; s < M * M; s++) store(sums[s], load<V>(sums[s]) + found[s]);
  }
  Backward below(idx i) const {
    Backward rest = *this;
    rest.adjoint += i * in, rest.from += i * in, rest.one.left += i, rest.two.left += i;
    if (to_base) rest.to_base += i * in;
    if (more) rest.more += i * in;
    return rest;
  }
  void gather(T* room, idx rows) {
    product(room, in, rows, in, one.count, one.here(), one.there(), (T*)0, T(1), false);
    if (two.count)
      product(room, in, rows, in, two.count, two.here(), two.there(), (T*)0, T(1), true);
    one.count = two.count = 0, more = room;
  }
  void take(const Backward& rest) { std::memcpy(sums, rest.sums, sizeof(sums)); }
  void finish(T* to_mix) const {
    for (int s = 0; s < M * M; s++) {
      to_mix[s] = 0;
      for (int q = 0; q < LANES<T>; q++) to_mix[s] += sums[s][q];
    }
  }
};

}  // namespace nl
