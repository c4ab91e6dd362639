// Few rows times weights in dense codes on processors with AVX-512 VNNI and VBMI: 64 codes of any width become bytes in
// three instructions and meet bytes of the input by fours. Rows are whole numbers, in one plane of bytes or in two,
// 128 times the high one plus the low one: codes of an input, exactly, or numbers in bfloat16 rounded as in rounded.h.
//
// Groups have a multiple of 64 inputs. Functions here are compiled for that processor whatever the flags say, and
// called where the processor has it. Codes of 8 bits gain nothing by it.
#pragma once
#include "rounded.h"

#ifdef WITH_AVX512
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vnni,avx512vbmi")

namespace {

inline bool has_wide() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}

constexpr int WIDE_LANES = 16;

// Rows of an input in codes: numbers are a code minus the zero point.
struct WholeRows {
  int64_t inputs, rows;
  bool pairs;                    // even and odd numbers of 128 lie apart, as 4-bit codes do
  int planes = 1;
  std::vector<int8_t> bytes;     // [N, spans, planes, span], of 64 or 128 numbers
  std::vector<int32_t> totals;   // [N, G, 16]: sums of numbers of every lane
  const float* scale;            // [N]

  WholeRows(const Weight& w, const int16_t* x, const float* scale, int64_t rows)
      : inputs(w.inputs), rows(rows), pairs(w.bits == 4 && w.size() % (2 * BLOCK) == 0), totals(rows * w.groups * WIDE_LANES), scale(scale) {
    const int64_t span = pairs ? 2 * BLOCK : BLOCK;
    for (int64_t i = 0; i < rows * inputs; ++i) planes = x[i] < -128 || x[i] > 127 ? 2 : planes;
    bytes.resize(rows * inputs * planes);
    for (int64_t group = 0; group < rows * w.groups; ++group) {
      int32_t* of_lanes = &totals[group * WIDE_LANES];
      for (int64_t i = group * w.size(); i < (group + 1) * w.size(); i += span)
        for (int64_t j = 0; j < span; ++j) {
          const int64_t place = pairs ? j % 2 * BLOCK + j / 2 : j;
          const int16_t number = x[i + j];
          int8_t* to = &bytes[i * planes + place];
          to[0] = int8_t(planes == 2 ? number >> 7 : number);
          if (planes == 2) to[span] = int8_t(number & 127);
          of_lanes[place % BLOCK / 4] += number;
        }
    }
  }
};

// 64 codes as bytes: the first or, with `second`, the next ones in what was read.
template <int B>
inline __m512i sixty_four(__m512i read, int second = 0) {
  alignas(64) static constexpr auto places = [] {
    struct { uint8_t of[2][64]; } found{};
    for (int i = 0; i < 128; ++i) found.of[i / 64][i % 64] = uint8_t((i / 8 * B + i % 8) & 63);  // eight codes are B bytes
    return found;
  }();
  constexpr uint64_t shifts = 0x0706050403020100u * B;
  const __m512i eights = _mm512_permutexvar_epi8(_mm512_load_si512(places.of[second]), read);
  return _mm512_and_si512(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(shifts), eights), _mm512_set1_epi8((1 << B) - 1));
}

// Adds the products of inputs `first` to `last` of R outputs. Codes of 2 and 3 bits are read 128 at a time, where a group
// has so many: up to 32 bytes behind them, which Part copies.
template <int B, int R, int P>
inline void add_products(const uint8_t* const* row, const int8_t* x, int64_t first, int64_t last, const uint8_t*& ahead, __m512i* high, __m512i* low) {
  const auto add = [&](int r, __m512i codes, const __m512i* given) {
    high[r] = _mm512_dpbusd_epi32(high[r], codes, given[0]);
    if (P == 2) low[r] = _mm512_dpbusd_epi32(low[r], codes, given[1]);
  };
  int64_t i = first;
  for (; B < 4 && i + 2 * BLOCK <= last; i += 2 * BLOCK) {
    ahead = fetched<R * BLOCK / 4 * B>(ahead);
    __m512i given[2 * P];
    for (int k = 0; k < 2 * P; ++k) given[k] = _mm512_loadu_si512(x + P * i + k * BLOCK);
    for (int r = 0; r < R; ++r) {
      const __m512i read = _mm512_loadu_si512(row[r] + i / 8 * B);
      add(r, sixty_four<B>(read, 0), given);
      add(r, sixty_four<B>(read, 1), given + P);
    }
  }
  for (; i < last; i += BLOCK) {
    ahead = fetched<R * BLOCK / 8 * B>(ahead);
    __m512i given[P];
    for (int k = 0; k < P; ++k) given[k] = _mm512_loadu_si512(x + P * i + k * BLOCK);
    for (int r = 0; r < R; ++r)
      add(r, sixty_four<B>(_mm512_maskz_loadu_epi8(B == 8 ? ~__mmask64(0) : (__mmask64(1) << (B & 7) * 8) - 1, row[r] + i / 8 * B)), given);
  }
}

// The same of 4-bit codes, whose bytes hold an even and an odd one: 128 at a time, a whole line of memory. Half of the
// 64-byte reads of 32 bytes of codes cross two lines.
template <int R, int P>
inline void add_pairs(const uint8_t* const* row, const int8_t* x, int64_t first, int64_t last, const uint8_t*& ahead, __m512i* high, __m512i* low) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t i = first; i < last; i += 2 * BLOCK) {
    ahead = fetched<R * BLOCK>(ahead);
    __m512i given[4];
    for (int k = 0; k < 2 * P; ++k) given[k] = _mm512_loadu_si512(x + P * i + k * BLOCK);
    for (int r = 0; r < R; ++r) {
      const __m512i codes = _mm512_loadu_si512(row[r] + i / 2);
      const __m512i even = _mm512_and_si512(codes, mask), odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
      high[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(high[r], even, given[0]), odd, given[1]);
      if (P == 2) low[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(low[r], even, given[2]), odd, given[3]);
    }
  }
}

template <int P>
inline __m512i joined(__m512i high, __m512i low) {
  return P == 2 ? _mm512_add_epi32(_mm512_slli_epi32(high, 7), low) : high;
}

// R outputs of a row of rounded numbers.
template <int B, int R>
void wide_outputs(Four<B>& four, int begin, const uint8_t* const* row, const int8_t* x, const float* steps, const float* totals, float* y) {
  const int64_t size = four.sums.size, count = four.sums.count, factors = four.sums.factors();
  __m512 products[R];
  float off[R];
  for (int r = 0; r < R; ++r) {
    products[r] = _mm512_setzero_ps();
    off[r] = four.meet(begin + r, steps, totals);
  }
  const float* times = &four.times[begin * factors];
  const uint8_t* ahead = row[0] + R * four.w.stride();
  for (int64_t s = 0; s < count; ++s) {
    __m512i high[R], low[R];
    for (int r = 0; r < R; ++r) high[r] = low[r] = _mm512_setzero_si512();
    if (B == 4) add_pairs<R, 2>(row, x, s * size, (s + 1) * size, ahead, high, low);
    else add_products<B, R, 2>(row, x, s * size, (s + 1) * size, ahead, high, low);
    for (int r = 0; r < R; ++r)
      products[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(joined<2>(high[r], low[r])), _mm512_set1_ps(times[r * factors + s]), products[r]);
  }
  for (int r = 0; r < R; ++r) y[r] = _mm512_reduce_add_ps(products[r]) - off[r];
}

// R outputs of a row of whole numbers.
template <int B, int R, int P, bool PAIRS>
void wide_outputs(const Weight& w, const Groups* groups, const uint8_t* const* row, const int8_t* x, const int32_t* totals, float scale, float* y) {
  __m512 products[R];
  for (int r = 0; r < R; ++r) products[r] = _mm512_setzero_ps();
  const uint8_t* ahead = row[0] + R * w.stride();
  for (int64_t g = 0; g < w.groups; ++g) {
    __m512i high[R], low[R];
    for (int r = 0; r < R; ++r) high[r] = low[r] = _mm512_setzero_si512();
    if (PAIRS) add_pairs<R, P>(row, x, g * w.size(), (g + 1) * w.size(), ahead, high, low);
    else add_products<B, R, P>(row, x, g * w.size(), (g + 1) * w.size(), ahead, high, low);
    const __m512i of_lanes = _mm512_loadu_si512(totals + g * WIDE_LANES);
    for (int r = 0; r < R; ++r) {
      const __m512i steps = _mm512_sub_epi32(joined<P>(high[r], low[r]), _mm512_mullo_epi32(of_lanes, _mm512_set1_epi32(groups[r].zero[g])));
      products[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(steps), _mm512_set1_ps(groups[r].scale[g]), products[r]);
    }
  }
  for (int r = 0; r < R; ++r) y[r] = _mm512_reduce_add_ps(products[r]) * scale;
}

// The products of all rows and weights.
template <int B, int ORDER>
void wide_products(const std::vector<Part>& parts, const RoundedRows<ORDER>& x) {
  const auto outputs = [](Four<B>& four, int64_t count, int64_t, const uint8_t* const* row, const int8_t* bytes, const float* steps, const float* totals, float* y) {
    if (count == 4) wide_outputs<B, 4>(four, 0, row, bytes, steps, totals, y);
    for (int r = 0; r < count && count < 4; ++r) wide_outputs<B, 1>(four, r, row + r, bytes, steps, totals, y + r);
  };
  by_fours<B>(parts, x, outputs);
}

template <int B, int P, bool PAIRS>
void wide_products(const std::vector<Part>& parts, const WholeRows& x) {
#pragma omp parallel num_threads(parts[0].w.threads)
  for (const Part& part : parts) {
    const Weight& w = part.w;
    std::vector<Groups> groups(4, Groups(w));
#pragma omp for schedule(static) nowait
    for (int64_t output = 0; output < w.outputs; output += 4) {
      const int64_t count = std::min<int64_t>(4, w.outputs - output);
      const uint8_t* row[4];
      for (int r = 0; r < count; ++r) {
        row[r] = part.row(output + r);
        groups[r].template read<B>(w, output + r);
      }
      for (int64_t n = 0; n < x.rows; ++n) {
        const int8_t* bytes = &x.bytes[n * P * x.inputs];
        const int32_t* totals = &x.totals[n * w.groups * WIDE_LANES];
        float* y = part.y + n * w.outputs + output;
        if (count == 4) wide_outputs<B, 4, P, PAIRS>(w, groups.data(), row, bytes, totals, x.scale[n], y);
        for (int r = 0; r < count && count < 4; ++r) wide_outputs<B, 1, P, PAIRS>(w, &groups[r], row + r, bytes, totals, x.scale[n], y + r);
      }
    }
  }
}

template <int B>
void whole_product(const std::vector<Part>& parts, const WholeRows& x) {
  if (B == 4 && x.pairs) x.planes == 2 ? wide_products<B, 2, B == 4>(parts, x) : wide_products<B, 1, B == 4>(parts, x);
  else x.planes == 2 ? wide_products<B, 2, false>(parts, x) : wide_products<B, 1, false>(parts, x);
}

}  // namespace
#pragma GCC pop_options
#endif
