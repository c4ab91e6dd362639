// What a weight in dense codes of 2 to 8 bits (qvlm_lightning/nn/packing.py) is multiplied or
// written out with. Eight codes are b bytes. With AVX2 two 32-bit words, the second at byte b / 2,
// are shifted by the places of their four codes each; without it, plain loops do the same.
//
// O outputs, I inputs, G groups, N rows of the input; K = I / G is a multiple of 8 unless G is 1.
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

struct Weight {
  const uint8_t* codes;       // [O, ceil(I b / 8)]
  const void* scale;          // [O, G]
  const uint8_t* zero_point;  // O G codes, or null: 2^(b-1)
  int64_t outputs, inputs, groups;
  int bits, scale_type;  // 0 float32, 1 bfloat16, 2 float16

  int64_t stride() const { return (inputs * bits + 7) / 8; }
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

inline float scale_at(const Weight& w, int64_t place) {
  if (w.scale_type == 0) return static_cast<const float*>(w.scale)[place];
  const uint16_t half = static_cast<const uint16_t*>(w.scale)[place];
  if (w.scale_type == 2) return half_to_float(half);
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline int zero_at(const Weight& w, int64_t place) {
  return w.zero_point ? code_at(w.zero_point, place, w.bits) : 1 << (w.bits - 1);
}

#ifdef __AVX2__
template <int B>
inline __m256 eight_codes(const uint8_t* from) {  // reads 8 bytes at most
  int first, second;
  std::memcpy(&first, from, 4);
  __m256i words = _mm256_set1_epi32(first);
  constexpr int rest = B <= 4 ? 4 * B : 4 * B % 8;
  if (B > 4) {
    std::memcpy(&second, from + B / 2, 4);
    words = _mm256_blend_epi32(words, _mm256_set1_epi32(second), 0xF0);
  }
  const __m256i shift = _mm256_setr_epi32(0, B, 2 * B, 3 * B, rest, rest + B, rest + 2 * B, rest + 3 * B);
  const __m256i mask = _mm256_set1_epi32((1 << B) - 1);
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(words, shift), mask));
}

inline float sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
#endif

// Scaled sums of codes times inputs, for one output and M rows of the input.
template <int M>
struct Totals {
#ifdef __AVX2__
  __m256 lanes[M];
#endif
  float rest[M];

  Totals() {
    for (int m = 0; m < M; ++m) {
      rest[m] = 0;
#ifdef __AVX2__
      lanes[m] = _mm256_setzero_ps();
#endif
    }
  }

  float of(int m) const {
#ifdef __AVX2__
    return sum(lanes[m]) + rest[m];
#else
    return rest[m];
#endif
  }
};

template <int B, int M>
inline void add_group(const uint8_t* row, const uint8_t* end, const float* x, int64_t inputs,
                      int64_t from, int64_t to, float scale, Totals<M>& totals) {
  int64_t i = from;
#ifdef __AVX2__
  __m256 sums[2][M];
  for (int m = 0; m < M; ++m) sums[0][m] = sums[1][m] = _mm256_setzero_ps();
  const uint8_t* place = row + from * B / 8;
  for (; from * B % 8 == 0 && i + 16 <= to && place + B + 8 <= end; i += 16, place += 2 * B) {
    for (int half = 0; half < 2; ++half) {
      const __m256 codes = eight_codes<B>(place + half * B);
      for (int m = 0; m < M; ++m)
        sums[half][m] = _mm256_fmadd_ps(codes, _mm256_loadu_ps(x + m * inputs + i + 8 * half), sums[half][m]);
    }
  }
  for (int m = 0; m < M; ++m)
    totals.lanes[m] = _mm256_fmadd_ps(_mm256_set1_ps(scale), _mm256_add_ps(sums[0][m], sums[1][m]), totals.lanes[m]);
#endif
  for (; i < to; ++i) {
    const float code = scale * code_at(row, i, B);
    for (int m = 0; m < M; ++m) totals.rest[m] += code * x[m * inputs + i];
  }
}

template <int B, int M>
void product_rows(const Weight& w, const float* x, float* y, int threads) {
  const int64_t size = w.inputs / w.groups;
  std::vector<float> sums(M * w.groups);  // of the inputs of a group
  for (int m = 0; m < M; ++m)
    for (int64_t g = 0; g < w.groups; ++g) {
      float total = 0;
      for (int64_t i = g * size; i < (g + 1) * size; ++i) total += x[m * w.inputs + i];
      sums[m * w.groups + g] = total;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t o = 0; o < w.outputs; ++o) {
    Totals<M> totals;
    for (int64_t g = 0; g < w.groups; ++g) {
      const float scale = scale_at(w, o * w.groups + g), zero = zero_at(w, o * w.groups + g);
      add_group<B, M>(w.codes + o * w.stride(), w.end(), x, w.inputs, g * size, (g + 1) * size, scale, totals);
      for (int m = 0; m < M; ++m) totals.rest[m] -= scale * zero * sums[m * w.groups + g];
    }
    for (int m = 0; m < M; ++m) y[m * w.outputs + o] = totals.of(m);
  }
}

template <int B>
void product(const Weight& w, const float* x, float* y, int64_t rows, int threads) {
  for (; rows >= 4; rows -= 4, x += 4 * w.inputs, y += 4 * w.outputs) product_rows<B, 4>(w, x, y, threads);
  for (; rows >= 1; rows -= 1, x += w.inputs, y += w.outputs) product_rows<B, 1>(w, x, y, threads);
}

template <int B>
void dequantize(const Weight& w, float* out, int threads) {
  const int64_t size = w.inputs / w.groups;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t o = 0; o < w.outputs; ++o) {
    const uint8_t* row = w.codes + o * w.stride();
    for (int64_t g = 0; g < w.groups; ++g) {
      const float scale = scale_at(w, o * w.groups + g), zero = zero_at(w, o * w.groups + g);
      int64_t i = g * size;
#ifdef __AVX2__
      const uint8_t* place = row + i * B / 8;
      for (; g * size * B % 8 == 0 && i + 8 <= (g + 1) * size && place + 8 <= w.end(); i += 8, place += B)
        _mm256_storeu_ps(out + o * w.inputs + i, _mm256_mul_ps(_mm256_sub_ps(eight_codes<B>(place), _mm256_set1_ps(zero)), _mm256_set1_ps(scale)));
#endif
      for (; i < (g + 1) * size; ++i) out[o * w.inputs + i] = (code_at(row, i, B) - zero) * scale;
    }
  }
}

// Codes minus 2^(b-1), int8.
template <int B>
void unpack(const Weight& w, int8_t* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t o = 0; o < w.outputs; ++o) {
    const uint8_t* row = w.codes + o * w.stride();
    int64_t i = 0;
#ifdef __BMI2__
    constexpr uint64_t bytes = 0x0101010101010101;
    for (const uint8_t* place = row; i + 8 <= w.inputs && place + 8 <= w.end(); i += 8, place += B) {
      uint64_t word;
      std::memcpy(&word, place, 8);
      word = _pdep_u64(word, bytes * ((1u << B) - 1));
      // bytes below 128 take no bit from their neighbours when something is taken off 128 + byte
      word = B == 8 ? word ^ bytes * 128 : ((word | bytes * 128) - bytes * (1u << (B - 1))) ^ bytes * 128;
      std::memcpy(out + o * w.inputs + i, &word, 8);
    }
#endif
    for (; i < w.inputs; ++i) out[o * w.inputs + i] = int8_t(code_at(row, i, B) - (1 << (B - 1)));
  }
}

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

extern "C" {

void qvlm_product(const void* codes, const void* scale, const void* zero_point, int64_t outputs,
                  int64_t inputs, int64_t groups, int bits, int scale_type, int threads,
                  const float* x, float* y, int64_t rows) {
  const Weight w{static_cast<const uint8_t*>(codes), scale, static_cast<const uint8_t*>(zero_point),
                 outputs, inputs, groups, bits, scale_type};
#define PRODUCT(B) return product<B>(w, x, y, rows, threads)
  FOR_EVERY_WIDTH(PRODUCT)
}

void qvlm_dequantize(const void* codes, const void* scale, const void* zero_point, int64_t outputs,
                     int64_t inputs, int64_t groups, int bits, int scale_type, int threads, float* out) {
  const Weight w{static_cast<const uint8_t*>(codes), scale, static_cast<const uint8_t*>(zero_point),
                 outputs, inputs, groups, bits, scale_type};
#define DEQUANTIZE(B) return dequantize<B>(w, out, threads)
  FOR_EVERY_WIDTH(DEQUANTIZE)
}

void qvlm_unpack(const void* codes, int64_t outputs, int64_t inputs, int bits, int threads, int8_t* out) {
  const Weight w{static_cast<const uint8_t*>(codes), nullptr, nullptr, outputs, inputs, 1, bits, 0};
#define UNPACK(B) return unpack<B>(w, out, threads)
  FOR_EVERY_WIDTH(UNPACK)
}
}
