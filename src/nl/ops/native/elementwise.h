// Functions of every number of a row or matrix, as torch defines them.
#pragma once
#include "matrix.h"

namespace nl {

inline double error_function(double x) { return std::erf(x); }

// To about one unit in the last place, without branches: a polynomial near zero, and far from it
// one minus the exponential of another.
inline float error_function(float x) {
  const float t = std::fabs(x), s = x * x;
  float far = -1.72853470e-5f * t + 3.83197126e-4f;
  far = far * s + (-3.88396438e-3f * t + 2.42546219e-2f);
  far = far * t - 1.06777877e-1f;
  far = far * t - 6.34846687e-1f;
  far = far * t - 1.28717512e-1f;
  far = std::copysign(1.f - exponential(far * t - t), x);
  float near = -5.96761703e-4f * s + 4.99119423e-3f;
  near = near * s - 2.67681349e-2f;
  near = near * s + 1.12819925e-1f;
  near = near * s - 3.76125336e-1f;
  near = near * s + 1.28379166e-1f;
  return t > 0.927734375f ? far : near * x + x;
}

// The share of normal numbers below z.
template <class T>
inline T normal_share(T z) {
  return T(0.5) * (T(1) + error_function(z * T(M_SQRT1_2)));
}

template <class T>
inline T normal_density(T z) {
  return T(0.5 * M_SQRT1_2 * M_2_SQRTPI) * exponential(T(-0.5) * z * z);
}

// z becomes phi(z): SiLU, or GELU.
template <class T>
void activate(T* __restrict z, idx count, bool gelu) {
  if (gelu)
    for (idx i = 0; i < count; i++) z[i] *= normal_share(z[i]);
  else
    for (idx i = 0; i < count; i++) z[i] *= sigmoid(z[i]);
}

// The same, and phi'(z). In two loops each: of one, compilers make branches.
template <class T>
void activate(T* __restrict z, T* __restrict slope, idx count, bool gelu) {
  if (gelu) {
    for (idx i = 0; i < count; i++) slope[i] = normal_share(z[i]);
    for (idx i = 0; i < count; i++) {
      const T value = z[i] * slope[i];
      slope[i] += z[i] * normal_density(z[i]);
      z[i] = value;
    }
  } else {
    for (idx i = 0; i < count; i++) slope[i] = sigmoid(z[i]);
    for (idx i = 0; i < count; i++) {
      const T gate = slope[i], value = z[i] * gate;
      slope[i] = gate + value * (T(1) - gate);
      z[i] = value;
    }
  }
}

template <class T>
inline void times(T* __restrict to, const T* __restrict by, idx count) {
  for (idx i = 0; i < count; i++) to[i] *= by[i];
}

template <class T>
inline void add_times(T* __restrict to, const T* __restrict a, const T* __restrict b, idx count) {
  for (idx i = 0; i < count; i++) to[i] += a[i] * b[i];
}

template <class T>
inline void copy(T* to, idx to_row, const T* from, idx from_row, idx rows, idx count) {
  for (idx i = 0; i < rows; i++)
    std::memcpy(to + i * to_row, from + i * from_row, count * sizeof(T));
}

template <class T, int NV>
inline void weighted_vectors(T* to, const T* a, idx a_row, const T* b, idx b_row, idx terms) {
  typedef T loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  loose sum[NV] = {};
  for (idx i = 0; i < terms; i++)
    for (int v = 0; v < NV; v++)
      sum[v] += *(const loose*)(a + i * a_row + v * LANES<T>)**(const loose*)(b + i * b_row +
                                                                              v * LANES<T>);
  for (int v = 0; v < NV; v++) *(loose*)(to + v * LANES<T>) = sum[v];
}

// to[j] = the sum over i of a[i][j] b[i][j].
template <class T>
void weighted(T* to, idx count, const T* a, idx a_row, const T* b, idx b_row, idx terms) {
  constexpr int L = LANES<T>;
  idx j = 0;
  for (; j + 4 * L <= count; j += 4 * L)
    weighted_vectors<T, 4>(to + j, a + j, a_row, b + j, b_row, terms);
  for (; j + L <= count; j += L) weighted_vectors<T, 1>(to + j, a + j, a_row, b + j, b_row, terms);
  for (; j < count; j++) {
    T sum = 0;
    for (idx i = 0; i < terms; i++) sum += a[i * a_row + j] * b[i * b_row + j];
    to[j] = sum;
  }
}

// Linear where torch says so.
template <class T>
inline T softplus(T x) {
  return x > T(20) ? x : std::log1p(std::exp(x));
}

}  // namespace nl
