// A weight in dense codes of 2 to 8 bits (qvlm_lightning/nn/packing.py), and how single codes are
// read. O outputs, I inputs, G groups, N rows of the input; K = I / G inputs share a scale.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

// Whether some functions can be compiled for AVX-512, to be called where the processor has it: by pragmas of GCC.
#if defined(__AVX2__) && defined(__x86_64__) && !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 9 && !defined(WITHOUT_AVX512)
#define WITH_AVX512
#endif

namespace {

struct Weight {
  const uint8_t* codes;       // [O, ceil(I b / 8)]
  const void* scale;          // [O, G]
  const uint8_t* zero_point;  // O G codes, or null: 2^(b-1)
  int64_t outputs, inputs, groups;
  int bits, scale_type;  // 0 float32, 1 bfloat16, 2 float16
  int threads;

  int64_t stride() const { return (inputs * bits + 7) / 8; }
  int64_t size() const { return inputs / groups; }
  const uint8_t* end() const { return codes + outputs * stride(); }
};

inline int code_at(const uint8_t* row, int64_t place, int bits) {
  const int64_t bit = place * bits;
  unsigned word = row[bit >> 3];
  if ((bit & 7) + bits > 8) word |= unsigned(row[(bit >> 3) + 1]) << 8;
  return (word >> (bit & 7)) & ((1u << bits) - 1);
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 0) {
    const float tiny = mantissa * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -tiny : tiny;
  }
  const uint32_t rest = exponent == 31 ? 0x7f800000u : (exponent + 112) << 23;
  const uint32_t bits = sign | rest | (mantissa << 13);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The number at a place of a float32 (type 0), bfloat16 (1) or float16 (2) tensor.
inline float number_at(const void* numbers, int type, int64_t place) {
  if (type == 0) return static_cast<const float*>(numbers)[place];
  const uint16_t half = static_cast<const uint16_t*>(numbers)[place];
  if (type == 2) return half_to_float(half);
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float scale_at(const Weight& w, int64_t place) { return number_at(w.scale, w.scale_type, place); }

inline int zero_at(const Weight& w, int64_t place) {
  return w.zero_point ? code_at(w.zero_point, place, w.bits) : 1 << (w.bits - 1);
}

#ifdef __AVX2__
template <int B>
inline __m256i eight_codes(const uint8_t* from) {  // reads 8 bytes
  if (B == 8) return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  int first, second;
  std::memcpy(&first, from, 4);
  __m256i words = _mm256_set1_epi32(first);
  constexpr int rest = B <= 4 ? 4 * B : 4 * B % 8;
  if (B > 4) {
    std::memcpy(&second, from + B / 2, 4);
    words = _mm256_blend_epi32(words, _mm256_set1_epi32(second), 0xF0);
  }
  const __m256i shift = _mm256_setr_epi32(0, B, 2 * B, 3 * B, rest, rest + B, rest + 2 * B, rest + 3 * B);
  return _mm256_and_si256(_mm256_srlv_epi32(words, shift), _mm256_set1_epi32((1 << B) - 1));
}

inline float sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
#endif

}  // namespace

#define FOR_EVERY_WIDTH(CALL) \
  switch (bits) {             \
    case 2: CALL(2);          \
    case 3: CALL(3);          \
    case 4: CALL(4);          \
    case 5: CALL(5);          \
    case 6: CALL(6);          \
    case 7: CALL(7);          \
    case 8: CALL(8);          \
  }
