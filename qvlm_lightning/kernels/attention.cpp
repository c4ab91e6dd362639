// Attention of one query per head over stored keys and values. Scores, softmax and sums are float32.
//
// H heads of D channels, of which H / J share one of J heads of keys and values; S tokens.
#include <cmath>
#include <type_traits>

#include "dense.h"

namespace {

#ifdef __AVX2__
inline __m256 eight(const float* from) { return _mm256_loadu_ps(from); }
inline __m256 eight(const uint16_t* from) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
#endif

// Keys or values of a head.
template <class T>
struct Stored {
  const T* first;
  int64_t step;  // from one token to the next
  const T* token(int64_t s) const { return first + s * step; }
};

// Asks memory for channels that are read `AHEAD` tokens later, at the end for those of what is read next. Without it
// half of the time is waiting.
constexpr int64_t AHEAD = 64;
template <class T>
inline void fetch(Stored<T> now, Stored<T> next, int64_t s, int64_t tokens, int64_t channels) {
  const T* from = s + AHEAD < tokens ? now.token(s + AHEAD) : next.token(s + AHEAD - tokens);
  for (int64_t d = 0; d < channels; d += 64 / sizeof(T)) __builtin_prefetch(from + d);
}

template <class T>
constexpr int type_of = std::is_same_v<T, float> ? 0 : 1;

template <class T>
float dot(const float* a, const T* b, int64_t first, int64_t count) {
  float total = 0;
  for (int64_t i = first; i < count; ++i) total += a[i] * number_at(b, type_of<T>, i);
  return total;
}

// Products of the query and the keys of all tokens; four at a time share what is read of the query.
template <class T>
void add_scores(const float* query, Stored<T> keys, Stored<T> next, int64_t tokens, int64_t channels, float* scores) {
  int64_t s = 0;
#ifdef __AVX2__
  const int64_t last = channels / 8 * 8;
  for (; s + 4 <= tokens; s += 4) {
    const T* key[4] = {keys.token(s), keys.token(s + 1), keys.token(s + 2), keys.token(s + 3)};
    __m256 totals[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t d = 0; d < last; d += 8) {
      const __m256 given = _mm256_loadu_ps(query + d);
      for (int k = 0; k < 4; ++k) totals[k] = _mm256_fmadd_ps(given, eight(key[k] + d), totals[k]);
    }
    for (int k = 0; k < 4; ++k) fetch(keys, next, s + k, tokens, channels);
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(totals[0], totals[1]), _mm256_hadd_ps(totals[2], totals[3]));
    _mm_storeu_ps(scores + s, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
    for (int k = 0; k < 4; ++k) scores[s + k] += dot(query, key[k], last, channels);
  }
#endif
  for (; s < tokens; ++s) scores[s] = dot(query, keys.token(s), 0, channels);
}

// C channels of the sum over tokens of weight times value.
template <int C, class T>
void add_values(const float* weights, Stored<T> values, Stored<T> next, int64_t tokens, float* out) {
#ifdef __AVX2__
  __m256 totals[C / 8];
  for (int k = 0; k < C / 8; ++k) totals[k] = _mm256_setzero_ps();
  for (int64_t s = 0; s < tokens; ++s) {
    const __m256 weight = _mm256_set1_ps(weights[s]);
    fetch(values, next, s, tokens, C);
    for (int k = 0; k < C / 8; ++k) totals[k] = _mm256_fmadd_ps(weight, eight(values.token(s) + 8 * k), totals[k]);
  }
  for (int k = 0; k < C / 8; ++k) _mm256_storeu_ps(out + 8 * k, totals[k]);
#endif
}

// The sum over tokens of weight times value.
template <class T>
void add_values(const float* weights, Stored<T> values, Stored<T> next, int64_t tokens, int64_t channels, float* out) {
  int64_t d = 0;
#ifdef __AVX2__
  const auto from = [&](int64_t d) { return d < channels ? Stored<T>{values.first + d, values.step} : next; };
  for (; d + 64 <= channels; d += 64) add_values<64>(weights, from(d), from(d + 64), tokens, out + d);
  for (; d + 8 <= channels; d += 8) add_values<8>(weights, from(d), from(d + 8), tokens, out + d);
#endif
  for (; d < channels; ++d) {
    float total = 0;
    for (int64_t s = 0; s < tokens; ++s) total += weights[s] * number_at(values.token(s), type_of<T>, d);
    out[d] = total;
  }
}

template <class T>
void attend(const T* query, const T* keys, const T* values, const int64_t* steps, int64_t heads,
            int64_t shared, int64_t tokens, int64_t channels, float scaling, int threads, float* out) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t h = 0; h < heads; ++h) {
    std::vector<float> own(channels), weights(tokens);
    for (int64_t d = 0; d < channels; ++d) own[d] = scaling * number_at(query, type_of<T>, h * channels + d);
    const auto of = [&](int64_t head) { return Stored<T>{keys + head / shared * steps[0], steps[1]}; };
    const Stored<T> value{values + h / shared * steps[2], steps[3]};
    float most = -INFINITY, total = 0;
    add_scores(own.data(), of(h), value, tokens, channels, weights.data());
    for (float weight : weights) most = weight > most ? weight : most;
    for (float& weight : weights) total += weight = std::exp(weight - most);
    for (float& weight : weights) weight /= total;
    add_values(weights.data(), value, of(h + 1), tokens, channels, out + h * channels);
  }
}

}  // namespace

extern "C" {

// Outputs [H, D] of one query [H, D], float32 (type 0) or bfloat16 (1). `steps` are those of keys from
// one head and token to the next, then those of values; channels lie side by side.
void qvlm_attend(const void* query, const void* keys, const void* values, int type, const int64_t* steps,
                 int64_t heads, int64_t shared, int64_t tokens, int64_t channels, float scaling,
                 int threads, float* out) {
#define ATTEND(T)                                                                                        \
  attend(static_cast<const T*>(query), static_cast<const T*>(keys), static_cast<const T*>(values), steps, \
         heads, shared, tokens, channels, scaling, threads, out)
  type == 0 ? ATTEND(float) : ATTEND(uint16_t);
}
}
