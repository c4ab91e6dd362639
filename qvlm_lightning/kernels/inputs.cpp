// Codes of a layer's input, as qvlm_lightning/nn/packed_input.py computes them, to the bit.
#include <cmath>

#include "dense.h"

namespace {

constexpr float TINY = 1.17549435e-38f;     // of float32 and bfloat16
constexpr float LARGEST = 3.38953139e38f;  // of bfloat16

inline float as_bfloat16(float value) {  // rounded to even; positive and finite
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Largest magnitude of a row; false if one is not a number or infinite.
inline bool largest(const float* x, int64_t count, float* found) {
  float most[8] = {};
  int odd = 0;
  const auto see = [&](int64_t i, int lane) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    odd |= (bits & 0x7f800000u) == 0x7f800000u;
    const float size = std::fabs(x[i]);
    most[lane] = size > most[lane] ? size : most[lane];
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) see(i + lane, lane);
  for (; i < count; ++i) see(i, 0);
  *found = 0;
  for (float size : most) *found = size > *found ? size : *found;
  return !odd;
}

// clamp(round(x / scale) + zero point, 0, most).
inline void codes_of(const float* x, int64_t count, float scale, float zero_point, float most, uint8_t* codes) {
  int64_t i = 0;
#ifdef __AVX2__
  for (; i + 8 <= count; i += 8) {
    const __m256 steps = _mm256_round_ps(_mm256_div_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(scale)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 shifted = _mm256_add_ps(steps, _mm256_set1_ps(zero_point));
    const __m256 kept = _mm256_min_ps(_mm256_max_ps(shifted, _mm256_setzero_ps()), _mm256_set1_ps(most));
    const __m256i whole = _mm256_cvtps_epi32(kept);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + i), _mm_packus_epi16(words, words));
  }
#endif
  for (; i < count; ++i) {
    const float shifted = std::nearbyint(x[i] / scale) + zero_point;
    codes[i] = uint8_t(shifted < 0 ? 0 : shifted > most ? most : shifted);
  }
}

}  // namespace

extern "C" {

// Codes [N, I] of x [N, I], float32 (type 0) or bfloat16 (1). Without a stored scale every row gets
// its own: that of `clip` times its largest magnitude, rounded to the type of x. Returns 0, and no
// result, where a number is none or infinite.
int qvlm_quantize(const void* x, int type, int64_t rows, int64_t inputs, int bits, int zero_point,
                  float clip, const float* stored, uint8_t* codes, float* scales) {
  std::vector<float> row(inputs);
  const float most = float((1 << bits) - 1);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t i = 0; i < inputs; ++i) row[i] = number_at(x, type, n * inputs + i);
    float size, scale;
    if (!largest(row.data(), inputs, &size)) return 0;
    if (stored) {
      scale = *stored;
    } else {
      scale = size * clip / (most / 2);
      scale = scale < TINY ? TINY : scale;
      if (type == 1) scale = as_bfloat16(scale > LARGEST ? LARGEST : scale);
      scales[n] = scale;
    }
    codes_of(row.data(), inputs, scale, float(zero_point), most, codes + n * inputs);
  }
  return 1;
}
}
