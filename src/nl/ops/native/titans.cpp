// The way back through a scan over Titans memories, and the functions that Python calls.
//
// A segment of chunks is run forward again, keeping E at their starts and what the equations need,
// and gone back over. What is carried, the adjoint of E, is changed in place in the tensor handed
// back. Names and order are those of `ChunkPass.pull_back` in nl/ops/titans_chunk.py.
#include "titans.h"

namespace nl {

template <class T>
class Return : public Walk<T> {
  using Walk<T>::p;
  using Walk<T>::g;
  using Walk<T>::arena;
  using Walk<T>::weight;
  using Walk<T>::turned;
  using Walk<T>::step;
  using Walk<T>::small;

 public:
  Return(const Plan& plan, const Parts<T>& given, const Parts<T>& made, const T* answers, idx slots)
      : Walk<T>(plan, given, slots),
        made(made),
        to_answers(answers) {
    const idx C = p.C, wide = p.widest;
    for (const Layer& l : p.layers) {
      to_keys.push_back(arena.take(C * l.in));
      to_delta.push_back(arena.take(C * l.out));
      to_back.push_back(arena.take(C * l.in));
    }
    to_step = arena.take(C * p.M * wide);
    to_out = arena.take(2 * C * wide);
    for (T** one : {&above, &below}) *one = arena.take(2 * C * wide);
    to_gram = arena.take(C * C);
    for (T** one : {&to_own, &to_shared}) *one = arena.take(C);
  }

  // All chunks of a row from the last to the first.
  void back(idx row, const Grouped<T>& kept) {
    const idx segments = (p.chunks + p.segment - 1) / p.segment;
    for (idx which = segments - 1; which >= 0; which--) {
      const idx start = which * p.segment, size = std::min(p.segment, p.chunks - start);
      this->again(row, start, size, kept);
      for (idx k = size - 1; k >= 0; k--) chunk(row, start + k, this->tape[k]);
    }
  }

 private:
  void chunk(idx row, idx at, std::vector<Trace<T>>& traces) {
    this->weights(row, traces);
    for (idx i = 0; i < p.depth(); i++) through_write(row, at, i, traces[i]);
    through_errors(traces);
    const idx size = p.C * p.width(), place = (row * p.chunks + at) * size;
    T *values = made.values + place, *errors = to_delta.back();
#pragma omp simd
    for (idx q = 0; q < size; q++) values[q] = -errors[q];
    if (to_answers) this->copy(to_out, to_answers + place, size);
    else std::fill(to_out, to_out + size, T(0));
    this->copy(to_out + size, errors, size);
    for (idx i = p.depth() - 1; i >= 0; i--) {
      if (i) through_layer(i, below, below + p.C * p.layers[i].in);
      else through_layer(i, made.queries + place, made.keys + place);
      if (p.M == 1) through_weight<1>(row, at, i, traces[i]);
      else through_weight<2>(row, at, i, traces[i]);
      if (i) through_silu(p.layers[i], traces[i - 1], to_delta[i - 1]);
    }
  }

  // From the adjoint of E at the chunk's end to those of steps, inputs and deltas.
  void through_write(idx row, idx at, idx i, const Trace<T>& t) {
    const Layer& l = p.layers[i];
    const idx C = p.C, wide = p.M * l.out;
    const T *x = t.x + C * l.in, *adjoint = made.first.of(l, row, p.M * l.size());
    for (idx m = 0; m < p.M; m++) {
      turn(turned, l.out, adjoint + m * l.size(), l.in, l.out, l.in);
      product(to_step + m * l.out, wide, C, l.out, l.in, rows_of(x, l.in),
              rows_of<T>(turned, l.out), (T*)0, T(1), false);
    }
    this->spread(l, t);
    product(to_keys[i], l.in, C, l.in, wide, rows_of<T>(step, wide), rows_of(adjoint, l.in), (T*)0,
            T(1), false);
    T* to_coef = made.lifts.of(l, row, C * p.M, at);
    for (idx c = 0; c < C; c++) {
      T* to = to_delta[i] + c * l.out;
      for (idx m = 0; m < p.M; m++) {
        const T* from = to_step + (c * p.M + m) * l.out;
        const T much = t.coef[c * p.M + m];
        to_coef[c * p.M + m] = dot(from, t.delta + c * l.out, l.out);
#pragma omp simd
        for (idx o = 0; o < l.out; o++) to[o] = much * from[o] + (m ? to[o] : T(0));
      }
    }
    if (p.crowded)
      through_crowd(l, t, g.rates.of(l, row, C, at), to_coef, made.rates.of(l, row, C, at),
                    to_keys[i]);
  }

  // Through coef = lift / divisor. A tie is shared out evenly, as by torch.maximum.
  void through_crowd(const Layer& l, const Trace<T>& t, const T* rate, T* to_coef, T* to_rate,
                     T* to_x) {
    const idx C = p.C, M = p.M;
    for (idx c = 0; c < C; c++) {
      const T divisor = this->divisor(t, c), own = t.gram[c * C + c], shared = t.shared[c];
      T sum = 0;
      for (idx m = 0; m < M; m++) sum += to_coef[c * M + m] * t.coef[c * M + m];
      for (idx m = 0; m < M; m++) to_coef[c * M + m] /= divisor;
      const T to_divisor = -sum / divisor;
      to_shared[c] = to_divisor * (shared > own ? T(1) : shared < own ? T(0) : T(0.5));
      to_own[c] = to_divisor - to_shared[c];
      to_rate[c] = 0;
    }
    for (idx i = 0; i < C; i++) {
      const T *line = t.gram + i * C, mine = to_shared[i], weighs = rate[i];
      T* to = to_gram + i * C;
#pragma omp simd
      for (idx j = 0; j < C; j++) {
        to_rate[j] += std::abs(line[j]) * mine;
        const T sign = T(line[j] > 0) - T(line[j] < 0);
        to[j] = sign * (mine * rate[j] + to_shared[j] * weighs);  // with the other half of the sum
      }
      to[i] += 2 * to_own[i];
    }
    product(to_x, l.in, C, l.in, C, rows_of<T>(to_gram, C), rows_of(t.x + C * l.in, l.in), (T*)0,
            T(1), true);
  }

  // Through delta_i = back_i slope_i, back_{i-1} = delta_i W_i (+ back_i).
  void through_errors(const std::vector<Trace<T>>& traces) {
    const idx C = p.C, last = p.depth() - 1;
    for (idx i = 0; i <= last; i++) {
      const Layer& l = p.layers[i];
      if (i) {
        turn(turned, l.out, weight[i], l.in, l.out, l.in);
        product(to_delta[i], l.out, C, l.out, l.in, rows_of<T>(to_back[i], l.in),
                rows_of<T>(turned, l.out), (T*)0, T(1), true);
      }
      if (i == last) break;
      const T *slope = traces[i].slope + C * l.out, *from = to_delta[i];
      T* to = to_back[i + 1];
#pragma omp simd
      for (idx q = 0; q < C * l.out; q++) to[q] = from[q] * slope[q];
      if (i && l.skip) this->add(to, to_back[i], C * l.out);
    }
  }

  // From the adjoint of a layer's output to that of its input, at queries and at keys.
  void through_layer(idx i, T* queries, T* keys) {
    const Layer& l = p.layers[i];
    const idx C = p.C;
    for (idx part = 0; part < 2; part++) {
      T* to = part ? keys : queries;
      product(to, l.in, C, l.in, l.out, rows_of<T>(to_out + part * C * l.out, l.out),
              rows_of(weight[i], l.in), (T*)0, T(1), false);
      if (l.skip) this->add(to, above + part * C * l.in, C * l.in);
    }
    this->add(keys, to_keys[i], C * l.in);
    std::swap(above, below);
  }

  // The adjoint of E at the chunk's start, of the base and of the mix.
  template <int M>
  void through_weight(idx row, idx at, idx i, const Trace<T>& t) {
    const Layer& l = p.layers[i];
    const idx C = p.C, size = M * l.size();
    const Outer<T> outputs{to_out, l.out, t.x, l.in, 2 * C};
    const Outer<T> errors{t.delta, l.out, to_back[i], l.in, i ? C : 0};
    Backward<T, M> update{made.first.of(l, row, size),
                          t.state,
                          l.in,
                          l.size(),
                          g.mixes.of(l, row, M * M, at),
                          outputs,
                          errors,
                          made.base.of(l, row, l.size()),
                          {}};
    cover_all<T, 4>(l.out, l.in, update, C, this->block);
    update.finish(made.mixes.of(l, row, M * M, at));
  }

  // From `above`, the adjoint of a layer's input, to `to_out`, that of the product below.
  void through_silu(const Layer& l, const Trace<T>& t, const T* to_delta) {
    const idx half = p.C * l.in;
    const T *slope = t.slope, *curl = t.curl, *from = above;
    T* to = to_out;
#pragma omp simd
    for (idx q = 0; q < half; q++) to[q] = from[q] * slope[q];
#pragma omp simd
    for (idx q = 0; q < half; q++)
      to[half + q] = from[half + q] * slope[half + q] - to_delta[q] * curl[q];
  }

  const Parts<T>& made;
  const T* to_answers;
  std::vector<T*> to_keys, to_delta, to_back;
  T *to_step, *to_out, *above, *below, *to_gram, *to_own, *to_shared;
};

template <class T>
void forward(const int64_t* numbers, void* const* tensors, int64_t threads) {
  const Plan plan(numbers);
  Tensors<T> list{tensors, plan};
  const Parts<T> given(list);
  T* answers = list.one();
  const Grouped<T> state = list.grouped(), kept = list.grouped();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Walk<T> walk(plan, given, 1);
#pragma omp for schedule(dynamic)
    for (idx row = 0; row < plan.rows; row++) walk.forward(row, answers, state, kept);
  }
}

template <class T>
void backward(const int64_t* numbers, void* const* tensors, int64_t threads) {
  const Plan plan(numbers);
  Tensors<T> list{tensors, plan};
  const Parts<T> given(list);
  const Grouped<T> kept = list.grouped();
  const T* to_answers = list.one();
  const Parts<T> made(list);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Return<T> walk(plan, given, made, to_answers, std::min(plan.segment, plan.chunks));
#pragma omp for schedule(dynamic)
    for (idx row = 0; row < plan.rows; row++) walk.back(row, kept);
  }
}

}  // namespace nl

#define BOTH(name, type, suffix)                                                                \
  extern "C" void titans_##name##_##suffix(const int64_t* n, void* const* t, int64_t threads) { \
    nl::name<type>(n, t, threads);                                                              \
  }
BOTH(forward, float, f32)
BOTH(forward, double, f64)
BOTH(backward, float, f32)
BOTH(backward, double, f64)
