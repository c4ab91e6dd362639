// What products of every kind read: scales and zero points of an output, and weights that are given
// together.
#pragma once
#include <algorithm>

#include "lanes.h"

namespace {

// Scales and zero points of the groups of an output, as numbers; registers read past their end.
struct Groups {
  std::vector<float> scale;
  std::vector<int> zero;

  explicit Groups(const Weight& w, int64_t room = 0)
      : scale(std::max(w.groups, room) + LANES), zero(scale.size(), 1 << (w.bits - 1)) {}

  template <int B>
  void read(const Weight& w, int64_t output) {
    const int64_t first = output * w.groups;
    if (w.scale_type == 1) {
      for (int64_t g = 0; g < w.groups; ++g) scale[g] = number_at(w.scale, 1, first + g);
    } else {
      for (int64_t g = 0; g < w.groups; ++g) scale[g] = scale_at(w, first + g);
    }
    if (!w.zero_point) return;
    int64_t g = 0;
#ifdef __AVX2__
    const uint8_t* place = w.zero_point + first * B / 8;
    const uint8_t* end = w.zero_point + (w.outputs * w.groups * B + 7) / 8;
    for (; first * B % 8 == 0 && g + 8 <= w.groups && place + 8 <= end; g += 8, place += B)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(&zero[g]), eight_codes<B>(place));
#endif
    for (; g < w.groups; ++g) zero[g] = code_at(w.zero_point, first + g, B);
  }

  // Gives every one of `times` sums of a group its scale and zero point.
  void repeat(int64_t sums, int64_t times) {
    for (int64_t s = sums - 1; s > 0 && times > 1; --s) {
      scale[s] = scale[s / times];
      zero[s] = zero[s / times];
    }
  }
};

// One of the weights, and where its outputs [N, O] go.
struct Part {
  Weight w;
  float* y;
  // behind the last rows there is nothing that registers could read: they are copied
  int64_t copied;
  std::vector<uint8_t> end;

  Part(const Weight& weight, float* outputs) : w(weight), y(outputs), copied(w.outputs < 4 ? w.outputs : 4), end(copied * w.stride() + 32) {
    std::memcpy(end.data(), w.end() - copied * w.stride(), copied * w.stride());
  }
  const uint8_t* row(int64_t o) const {
    const int64_t left = w.outputs - o;
    return left <= copied ? end.data() + (copied - left) * w.stride() : w.codes + o * w.stride();
  }
};

// The same weights, with the outputs of row n first.
inline std::vector<Part> from_row(std::vector<Part> parts, int64_t n) {
  for (Part& part : parts) part.y += n * part.w.outputs;
  return parts;
}

#ifdef __AVX2__
// Asks memory for BYTES of what comes next, and returns where the rest begins. Rows of a weight lie behind
// each other: asked for in this order they come twice as fast as at the places where they will be read.
template <int BYTES>
inline const uint8_t* fetched(const uint8_t* next) {
  for (int b = 0; b < BYTES; b += LINE) _mm_prefetch(reinterpret_cast<const char*>(next + b), _MM_HINT_T0);
  return next + BYTES;
}
#endif

}  // namespace
