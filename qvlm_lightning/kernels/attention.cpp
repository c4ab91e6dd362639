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

template <class T>
constexpr int type_of = std::is_same_v<T, float> ? 0 : 1;

template <class T>
float dot(const float* a, const T* b, int64_t count) {
  float total = 0;
  int64_t i = 0;
#ifdef __AVX2__
  __m256 even = _mm256_setzero_ps(), odd = even;
  for (; i + 16 <= count; i += 16) {
    even = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), eight(b + i), even);
    odd = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), eight(b + i + 8), odd);
  }
  total = sum(_mm256_add_ps(even, odd));
#endif
  for (; i < count; ++i) total += a[i] * number_at(b, type_of<T>, i);
  return total;
}

// out += sum over tokens of weight times value.
template <class T>
void add_values(const float* weights, const T* values, int64_t tokens, int64_t step, int64_t channels, float* out) {
  int64_t d = 0;
#ifdef __AVX2__
  for (; d + 32 <= channels; d += 32) {
    __m256 totals[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t s = 0; s < tokens; ++s)
      for (int k = 0; k < 4; ++k)
        totals[k] = _mm256_fmadd_ps(_mm256_set1_ps(weights[s]), eight(values + s * step + d + 8 * k), totals[k]);
    for (int k = 0; k < 4; ++k) _mm256_storeu_ps(out + d + 8 * k, totals[k]);
  }
#endif
  for (; d < channels; ++d) {
    float total = 0;
    for (int64_t s = 0; s < tokens; ++s) total += weights[s] * number_at(values, type_of<T>, s * step + d);
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
    const T* key = keys + h / shared * steps[0];
    float most = -INFINITY, total = 0;
    for (int64_t s = 0; s < tokens; ++s) {
      weights[s] = dot(own.data(), key + s * steps[1], channels);
      most = weights[s] > most ? weights[s] : most;
    }
    for (float& weight : weights) total += weight = std::exp(weight - most);
    for (float& weight : weights) weight /= total;
    add_values(weights.data(), values + h / shared * steps[2], tokens, steps[3], channels, out + h * channels);
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
