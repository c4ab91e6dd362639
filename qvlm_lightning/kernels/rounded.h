// Codes of 3 and 4 bits times inputs in bfloat16 that are rounded to whole numbers of 14 bits and a sign, by the
// largest of each sum. A whole number is 128 times a high byte plus a low one: an instruction multiplies
// 32 bytes, and 16 numbers of 16 bits only.
//
// A sum is 64 to 256 codes of a group; groups of 8, 16 and 32 have lanes of their own in a sum of 64.
#pragma once
#include "parts.h"

#ifdef __AVX2__
namespace {

constexpr float LARGEST = 16383;
// Times the squared mean of square roots of a sum, which a few massive numbers hardly lift. Below it the
// others are rounded as finely as rounding to bfloat16 was, or finer.
constexpr float MASSIVE = 64;
constexpr int64_t LONGEST = 256;  // codes of a sum
static_assert(LONGEST / 16 * 15 * 128 < 1 << 15, "16 bits hold a sum of products of bytes");

// How the codes of a row are added up.
struct Sums {
  int64_t inputs, size, count;  // codes of a row, codes of a sum, sums of a row
  int64_t groups;               // of a row
  bool narrow;                  // several groups in a sum

  explicit Sums(const Weight& w) : inputs(w.inputs), size(w.size()), groups(w.groups), narrow(w.size() < BLOCK) {
    if (narrow) size = BLOCK;
    if (size > LONGEST)
      for (size = LONGEST; w.size() % size;) size -= BLOCK;
    count = inputs / size;
  }
  static bool fit(const Weight& w) {
    return w.size() % BLOCK == 0 || (w.size() % 8 == 0 && BLOCK % w.size() == 0 && w.inputs % BLOCK == 0);
  }
  int64_t factors() const { return narrow ? count * LANES : (count + LANES - 1) / LANES * LANES; }
};

// The codes of a block as bytes, in two registers.
template <int B>
void as_bytes(const uint8_t* from, __m256i& first, __m256i& second) {
  const auto masked = [](__m256i words, int shift, int mask) { return _mm256_and_si256(_mm256_srli_epi16(words, shift), _mm256_set1_epi16(short(mask))); };
  if (B == 4) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    first = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    second = masked(codes, 4, 0x0F0F);
    return;
  }
  // Eight codes are three bytes. Two words of 16 bits get bytes 0 and 1, and 1 and 2; shifted left by 4
  // and by 0 both have four codes at bits 4, 7, 10 and 13.
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8));
  const __m256i places = _mm256_setr_epi8(0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 13, 14, 14, 15);
  const __m256i pairs = _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), places);
  const __m256i codes = _mm256_mullo_epi16(pairs, _mm256_set1_epi32(0x00010010));
  first = _mm256_or_si256(masked(codes, 4, 0x0007), masked(codes, 5, 0x0700));   // 0 and 3 of four
  second = _mm256_or_si256(masked(codes, 7, 0x0007), masked(codes, 2, 0x0700));  // 1 and 2
}

constexpr int IN_ORDER = 0, IN_PAIRS = 1;  // orders of wide.h, in the place of bits

// Where the high byte of the i-th number of a block goes, from the 128 bytes of that block on; the low one goes
// `LOW<B>` behind it. A code stays in its eighth of a register.
template <int B>
int64_t place_of(int64_t i, bool odd) {
  if (B == IN_ORDER) return i;
  if (B == IN_PAIRS) return i % 2 * 64 + i / 2 + (odd ? 32 - 128 : 0);  // two blocks share 256 bytes
  if (B == 4) return i % 2 * 32 + i / 2;
  const int64_t of_four = i % 4, second = of_four == 1 || of_four == 2;
  return second * 32 + i / 4 * 2 + of_four / 2;
}

template <int B>
constexpr int LOW = B == IN_PAIRS ? 2 * BLOCK : BLOCK;

// Rows of an input in front of codes of B bits.
template <int B>
struct RoundedRows {
  Sums sums;
  int64_t rows = 0;
  std::vector<int8_t> bytes;          // [N, blocks, 128]: high ones in the order of codes, then low ones
  std::vector<float> steps, totals;   // [N, factors]: what 1 stands for, all numbers that share it added up

  explicit RoundedRows(const Sums& sums) : sums(sums) {}

  // Takes a row in; false, and it is left out, where it has massive numbers, NaN or infinity.
  bool append(const float* x) {
    std::vector<float> step(sums.count);
    for (int64_t s = 0; s < sums.count; ++s) {
      step[s] = step_of(x + s * sums.size);
      if (!(step[s] > 0)) return false;
    }
    const int64_t first = rows++ * sums.factors();
    steps.resize(first + sums.factors());
    totals.resize(first + sums.factors());
    bytes.resize(rows * 2 * sums.inputs);
    int8_t* to = bytes.data() + (rows - 1) * 2 * sums.inputs;
    for (int64_t s = 0; s < sums.count; ++s) {
      const __m256 inverse = _mm256_set1_ps(1 / step[s]);
      for (int64_t i = s * sums.size; i < (s + 1) * sums.size; i += BLOCK, to += 2 * BLOCK)
        for (int k = 0; k < BLOCK / LANES; ++k) {
          alignas(32) int numbers[LANES];
          const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i + k * LANES), inverse);
          _mm256_store_si256(reinterpret_cast<__m256i*>(numbers), _mm256_cvtps_epi32(scaled));
          const int64_t place = first + (sums.narrow ? i / LANES + k : s);
          steps[place] = step[s];
          for (int j = 0; j < LANES; ++j) {
            int8_t* byte = to + place_of<B>(k * LANES + j, i / BLOCK % 2);
            byte[0] = int8_t(numbers[j] >> 7);
            byte[LOW<B>] = int8_t(numbers[j] & 127);
            totals[place] += numbers[j];
          }
        }
    }
    return true;
  }

 private:
  // What 1 stands for in a sum; 0 where it cannot be rounded.
  float step_of(const float* x) const {
    __m256 most = _mm256_setzero_ps(), roots = most;
    for (int64_t i = 0; i < sums.size; i += LANES) {
      const __m256 absolute = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + i));
      most = _mm256_max_ps(absolute, most);
      roots = _mm256_add_ps(roots, _mm256_sqrt_ps(absolute));
    }
    float each[LANES], largest = 0;
    _mm256_storeu_ps(each, most);
    for (float one : each) largest = one > largest ? one : largest;
    const float root = sum(roots) / sums.size;  // NaN and infinity stay what they are
    if (root == 0) return 1;
    return largest <= MASSIVE * root * root && largest < 1e30f && largest > 1e-33f ? largest / LARGEST : 0;
  }
};

// Four outputs of codes of B bits at a time; room for what their sums are multiplied with.
template <int B>
struct Four {
  const Sums sums;
  const Weight w;
  std::vector<Groups> groups;
  std::vector<float> times;  // [4, factors], scale times step

  Four(const Sums& sums, const Weight& w) : sums(sums), w(w), groups(4, Groups(w, sums.count)), times(4 * sums.factors()) {}

  void read(int64_t output) {
    for (int r = 0; r < 4 && output + r < w.outputs; ++r) {
      groups[r].template read<B>(w, output + r);
      if (!sums.narrow) groups[r].repeat(sums.count, sums.count / sums.groups);
    }
  }

  // Fills `times` for a row of the input, and returns what the zero points of output r take off.
  float meet(int r, const float* steps, const float* totals) {
    const int64_t each = sums.narrow ? sums.groups / sums.count : LANES;  // groups of eight factors
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i place = _mm256_srli_epi32(_mm256_mullo_epi32(lanes, _mm256_set1_epi32(int(each))), 3);
    __m256 off = _mm256_setzero_ps();
    float* to = &times[r * sums.factors()];
    for (int64_t f = 0, g = 0; f < sums.factors(); f += LANES, g += each) {
      const __m256 scale = _mm256_permutevar8x32_ps(_mm256_loadu_ps(&groups[r].scale[g]), place);
      const __m256 zero = _mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(whole(&groups[r].zero[g]), place));
      const __m256 both = _mm256_mul_ps(scale, _mm256_loadu_ps(steps + f));
      _mm256_storeu_ps(to + f, both);
      off = _mm256_fmadd_ps(_mm256_mul_ps(both, zero), _mm256_loadu_ps(totals + f), off);
    }
    return sum(off);
  }
};

// The products of R of four outputs from `begin`, whose codes begin at `row`, and one row of the input.
template <int B, int R, bool NARROW, bool FETCH>
void rounded_outputs(Four<B>& four, int begin, const uint8_t* const* row, const int8_t* bytes, const float* steps, const float* totals, float* y) {
  const Sums& sums = four.sums;
  const auto loaded = [](const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); };
  __m256 products[R];
  for (int r = 0; r < R; ++r) products[r] = _mm256_setzero_ps();
  const uint8_t* ahead = row[0] + R * four.w.stride();
  float off[R];
  for (int r = 0; r < R; ++r) off[r] = four.meet(begin + r, steps, totals);
  for (int64_t s = 0; s < sums.count; ++s) {
    __m256i high[R], low[R];
    for (int r = 0; r < R; ++r) high[r] = low[r] = _mm256_setzero_si256();
    for (int64_t i = s * sums.size; i < (s + 1) * sums.size; i += BLOCK) {
      const int8_t* x = bytes + 2 * i;
      if (FETCH) ahead = fetched<R * BLOCK / 8 * B>(ahead);
      for (int r = 0; r < R; ++r) {
        __m256i first, second;
        as_bytes<B>(row[r] + i / 8 * B, first, second);
        const __m256i large = _mm256_add_epi16(_mm256_maddubs_epi16(first, loaded(x)), _mm256_maddubs_epi16(second, loaded(x + 32)));
        const __m256i small = _mm256_add_epi16(_mm256_maddubs_epi16(first, loaded(x + 64)), _mm256_maddubs_epi16(second, loaded(x + 96)));
        high[r] = _mm256_add_epi16(high[r], large);
        low[r] = _mm256_add_epi16(low[r], small);
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m256i large = _mm256_madd_epi16(high[r], _mm256_set1_epi16(128)), small = _mm256_madd_epi16(low[r], _mm256_set1_epi16(1));
      const float* from = &four.times[(begin + r) * sums.factors()];
      const __m256 times = NARROW ? _mm256_loadu_ps(from + s * LANES) : _mm256_broadcast_ss(from + s);
      products[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(large, small)), times, products[r]);
    }
  }
  for (int r = 0; r < R; ++r) y[r] = sum(products[r]) - off[r];
}

// Asks `outputs` for the products of all rows and weights, four outputs at a time.
template <int B, int ORDER, class Outputs>
void by_fours(const std::vector<Part>& parts, const RoundedRows<ORDER>& x, const Outputs& outputs) {
  const Sums& sums = x.sums;
#pragma omp parallel num_threads(parts[0].w.threads)
  for (const Part& part : parts) {
    Four<B> four(sums, part.w);
#pragma omp for schedule(static) nowait
    for (int64_t output = 0; output < part.w.outputs; output += 4) {
      const int64_t count = std::min<int64_t>(4, part.w.outputs - output);
      const uint8_t* row[4];
      for (int r = 0; r < count; ++r) row[r] = part.row(output + r);
      four.read(output);
      for (int64_t n = 0; n < x.rows; ++n) {
        const int8_t* bytes = x.bytes.data() + n * 2 * sums.inputs;
        const float *steps = &x.steps[n * sums.factors()], *totals = &x.totals[n * sums.factors()];
        outputs(four, count, n, row, bytes, steps, totals, part.y + n * part.w.outputs + output);
      }
    }
  }
}

template <int B, bool NARROW>
void rounded_products(const std::vector<Part>& parts, const RoundedRows<B>& x) {
  const auto outputs = [](Four<B>& four, int64_t count, int64_t n, const uint8_t* const* row, const int8_t* bytes, const float* steps, const float* totals, float* y) {
    if (count == 4 && n == 0) rounded_outputs<B, 4, NARROW, true>(four, 0, row, bytes, steps, totals, y);
    if (count == 4 && n > 0) rounded_outputs<B, 4, NARROW, false>(four, 0, row, bytes, steps, totals, y);
    for (int r = 0; r < count && count < 4; ++r) rounded_outputs<B, 1, NARROW, false>(four, r, row + r, bytes, steps, totals, y + r);
  };
  by_fours<B>(parts, x, outputs);
}

template <int B>
void products_of(const std::vector<Part>& parts, const RoundedRows<B>& x) {
  x.sums.narrow ? rounded_products<B, true>(parts, x) : rounded_products<B, false>(parts, x);
}

}  // namespace
#endif
