// How codes are multiplied with inputs, in registers.
#pragma once
#include "dense.h"

namespace {

constexpr int BLOCK = 64;  // codes
constexpr int LANES = 8;
constexpr int LINE = 64;   // bytes that memory gives at once

#ifdef __AVX2__
inline __m256i whole(const int* numbers) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers)); }

// Eight words of eight codes; reads 8 B bytes.
template <int B>
inline __m256i eight_words(const uint8_t* from) {
  if (B == 4) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if (B == 2) return _mm256_cvtepu16_epi32(low);
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8));
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  const __m256i places = _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1,
                                          4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1);
  return _mm256_shuffle_epi8(both, places);
}

template <int B>
inline __m256i sixteen_codes(const uint8_t* from) {  // 16 bits each; reads B + 8 bytes
  if (B == 8) return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  constexpr uint64_t mask = 0x0101010101010101u * ((1u << B) - 1);
  uint64_t low, high;
  std::memcpy(&low, from, 8);
  std::memcpy(&high, from + B, 8);
  return _mm256_cvtepu8_epi16(_mm_set_epi64x(_pdep_u64(high, mask), _pdep_u64(low, mask)));
}
#endif

// How codes of B bits are multiplied with inputs in full precision.
template <int B>
struct Floats {
  using Number = float;
  static constexpr bool blocked = B <= 4;
#ifdef __AVX2__
  using Lanes = __m256;
  static constexpr int step = LANES;  // codes at a time
  static Lanes nothing() { return _mm256_setzero_ps(); }
  static __m256 floats(Lanes v) { return v; }
  static Lanes minus(Lanes v, __m256i zeros, const Number* sums) {
    return _mm256_fnmadd_ps(_mm256_cvtepi32_ps(zeros), _mm256_loadu_ps(sums), v);
  }
  static Lanes add(const uint8_t* from, const Number* x, Lanes v) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(eight_codes<B>(from)), _mm256_loadu_ps(x), v);
  }
  template <int R, int M>
  static void add_block(const uint8_t* const* from, const Number* const* x, Lanes (*v)[M]) {
    if (!blocked) {
      for (int k = 0; k < BLOCK / step; ++k)
        for (int r = 0; r < R; ++r) {
          const __m256 codes = _mm256_cvtepi32_ps(eight_codes<B>(from[r] + k * B));
          for (int m = 0; m < M; ++m) v[r][m] = _mm256_fmadd_ps(codes, _mm256_loadu_ps(x[m] + k * step), v[r][m]);
        }
      return;
    }
    constexpr int chains = R * M > 4 ? 1 : 2;  // sums that do not wait for each other
    __m256i words[R];
    Lanes other[R][M];
    for (int r = 0; r < R; ++r) {
      words[r] = eight_words<B>(from[r]);
      for (int m = 0; m < M; ++m) other[r][m] = nothing();
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k)
      for (int r = 0; r < R; ++r) {
        const __m256i masked = (k + 1) * B == 32 ? _mm256_srli_epi32(words[r], 32 - B)
                                                 : _mm256_and_si256(words[r], _mm256_set1_epi32(((1 << B) - 1) << (k * B)));
        const __m256 codes = _mm256_cvtepi32_ps(masked);
        for (int m = 0; m < M; ++m) {
          Lanes& to = k % chains ? other[r][m] : v[r][m];
          to = _mm256_fmadd_ps(codes, _mm256_loadu_ps(x[m] + k * LANES), to);
        }
      }
    for (int r = 0; r < R && chains > 1; ++r)
      for (int m = 0; m < M; ++m) v[r][m] = _mm256_add_ps(v[r][m], other[r][m]);
  }
#endif
  static void order(const Number* x, Number* to, Number* sums) {  // of a block
    for (int k = 0; k < 8; ++k) {
      const float part = (k + 1) * B == 32 ? 1.0f : 1.0f / (int64_t(1) << (k * B));
      for (int j = 0; j < 8; ++j) {
        to[8 * k + j] = x[8 * j + k] * part;
        sums[j] += x[8 * j + k];
      }
    }
  }
  static void add_up(const Number* x, Number* sums) {  // of a step
    for (int j = 0; j < LANES; ++j) sums[j] += x[j];
  }
};

// How codes of B bits are multiplied with inputs that are whole numbers of up to 9 bits.
template <int B>
struct Integers {
  using Number = int16_t;
  static constexpr bool blocked = B == 4;
#ifdef __AVX2__
  using Lanes = __m256i;
  static constexpr int step = 2 * LANES;
  static Lanes nothing() { return _mm256_setzero_si256(); }
  static __m256 floats(Lanes v) { return _mm256_cvtepi32_ps(v); }
  static Lanes minus(Lanes v, __m256i zeros, const int32_t* sums) {
    return _mm256_sub_epi32(v, _mm256_mullo_epi32(zeros, whole(sums)));
  }
  static __m256i loaded(const Number* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
  static Lanes add(const uint8_t* from, const Number* x, Lanes v) {
    return _mm256_add_epi32(v, _mm256_madd_epi16(sixteen_codes<B>(from), loaded(x)));
  }
  template <int R, int M>
  static void add_block(const uint8_t* const* from, const Number* const* x, Lanes (*v)[M]) {
    if (!blocked) {
      for (int k = 0; k < BLOCK / step; ++k)
        for (int r = 0; r < R; ++r) {
          const __m256i codes = sixteen_codes<B>(from[r] + 2 * k * B);
          for (int m = 0; m < M; ++m) v[r][m] = _mm256_add_epi32(v[r][m], _mm256_madd_epi16(codes, loaded(x[m] + k * step)));
        }
      return;
    }
    __m256i words[R];
    for (int r = 0; r < R; ++r) words[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[r]));
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
      for (int r = 0; r < R; ++r) {
        const __m256i codes = _mm256_and_si256(_mm256_srli_epi16(words[r], 4 * k), _mm256_set1_epi16(15));
        for (int m = 0; m < M; ++m) v[r][m] = _mm256_add_epi32(v[r][m], _mm256_madd_epi16(codes, loaded(x[m] + k * step)));
      }
  }
#endif
  static void order(const Number* x, Number* to, int32_t* sums) {
    for (int k = 0; k < 4; ++k) {
      for (int j = 0; j < 16; ++j) to[16 * k + j] = x[4 * j + k];
      add_up(to + 16 * k, sums);
    }
  }
  static void add_up(const Number* x, int32_t* sums) {
    for (int j = 0; j < LANES; ++j) sums[j] += x[2 * j] + x[2 * j + 1];
  }
};

}  // namespace
