// A weight in dense codes of 2 to 8 bits written out, as numbers or as signed codes. Eight codes are b
// bytes. With AVX2 two 32-bit words, the second at byte b / 2, are shifted by the places of their four
// codes each; without it, plain loops do the same.
#include "dense.h"

namespace {

template <int B>
void dequantize(const Weight& w, float* out) {
  const int64_t size = w.inputs / w.groups;
#pragma omp parallel for num_threads(w.threads) schedule(static)
  for (int64_t o = 0; o < w.outputs; ++o) {
    const uint8_t* row = w.codes + o * w.stride();
    for (int64_t g = 0; g < w.groups; ++g) {
      const float scale = scale_at(w, o * w.groups + g), zero = zero_at(w, o * w.groups + g);
      int64_t i = g * size;
#ifdef __AVX2__
      const uint8_t* place = row + i * B / 8;
      for (; g * size * B % 8 == 0 && i + 8 <= (g + 1) * size && place + 8 <= w.end(); i += 8, place += B)
        _mm256_storeu_ps(out + o * w.inputs + i, _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(eight_codes<B>(place)), _mm256_set1_ps(zero)), _mm256_set1_ps(scale)));
#endif
      for (; i < (g + 1) * size; ++i) out[o * w.inputs + i] = (code_at(row, i, B) - zero) * scale;
    }
  }
}

// Codes minus 2^(b-1), int8.
template <int B>
void unpack(const Weight& w, int8_t* out) {
#pragma omp parallel for num_threads(w.threads) schedule(static)
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

extern "C" {

void qvlm_dequantize(const void* codes, const void* scale, const void* zero_point, int64_t outputs,
                     int64_t inputs, int64_t groups, int bits, int scale_type, int threads, float* out) {
  const Weight w{static_cast<const uint8_t*>(codes), scale, static_cast<const uint8_t*>(zero_point),
                 outputs, inputs, groups, bits, scale_type, threads};
#define DEQUANTIZE(B) return dequantize<B>(w, out)
  FOR_EVERY_WIDTH(DEQUANTIZE)
}

void qvlm_unpack(const void* codes, int64_t outputs, int64_t inputs, int bits, int threads, int8_t* out) {
  const Weight w{static_cast<const uint8_t*>(codes), nullptr, nullptr, outputs, inputs, 1, bits, 0, threads};
#define UNPACK(B) return unpack<B>(w, out)
  FOR_EVERY_WIDTH(UNPACK)
}
}
