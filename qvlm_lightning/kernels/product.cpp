// Few rows times weights in dense codes. Every code is read once for up to four rows; four outputs
// are computed side by side, so that their sums do not wait for each other. Weights that are given
// together share the rows, which are put in order once; every output is computed as if its weight
// were the only one.
//
// Of inputs in full precision (`Floats`) sums are float32, of inputs in codes (`Integers`) they are
// int32 within a group, and exact. Inputs are first put in the order in which codes leave the
// registers:
//
//  - Floats, up to 4 bits: a 32-bit word holds eight codes. Its k-th ones are masked, not shifted,
//    which multiplies them by 2^(k b); the input is divided by that, exactly.
//  - Integers, 4 bits: a 16-bit word holds four codes, which are shifted and masked.
//  - All others: as they are.
//
// Inputs in bfloat16 in front of 3- and 4-bit codes are rounded to whole numbers (rounded.h), which is up to
// 1.8 times as fast; rows with massive numbers stay in full precision.
#include <type_traits>

#include "lanes.h"
#include "rounded.h"
#include "wide.h"

namespace {

// Codes of a group that go through vector registers; groups that begin within a byte do not.
template <class Kind>
int64_t in_lanes(const Weight& w) {
  return w.groups == 1 || w.size() % 8 == 0 ? w.size() / Kind::step * Kind::step : 0;
}

// Rows of the input as a kind needs them.
template <class Kind>
struct Rows {
  using Number = typename Kind::Number;
  using Sum = std::conditional_t<std::is_same_v<Number, float>, float, int32_t>;
  std::vector<Number> plain, ordered;  // [M, I]
  std::vector<Sum> sums;               // [M, G, lanes], of what goes through the lanes
  std::vector<float> scale;            // [M], what outputs are multiplied with

  Rows(const Weight& w, std::vector<Number> x, std::vector<float> scales) : plain(std::move(x)), scale(std::move(scales)) {
#ifdef __AVX2__
    const int64_t rows = scale.size();
    ordered = plain;
    sums.resize(rows * w.groups * LANES);
    const int64_t last = in_lanes<Kind>(w), blocks = Kind::blocked ? last / BLOCK * BLOCK : 0;
    for (int64_t group = 0; group < rows * w.groups; ++group) {
      const Number* from = plain.data() + group * w.size();
      Number* to = ordered.data() + group * w.size();
      int64_t i = 0;
      for (; i < blocks; i += BLOCK) Kind::order(from + i, to + i, &sums[group * LANES]);
      for (; i < last; i += Kind::step) Kind::add_up(from + i, &sums[group * LANES]);
    }
#endif
  }
};

// A weight as it is added up: groups of 8, 16 or 32 codes lie in lanes of their own of a block.
template <class Kind>
Weight in_blocks(Weight w) {
#ifdef __AVX2__
  const bool fits = w.size() % 8 == 0 && BLOCK % w.size() == 0 && w.inputs % BLOCK == 0;
  if (Kind::blocked && w.size() < BLOCK && fits) w.groups = w.inputs / BLOCK;
#endif
  return w;
}

// R outputs, whose codes begin at `row`, of M rows of the input; `groups` [R] is room to work in.
template <template <int> class Kind, int B, int R, int M>
void outputs(const Weight& given_as, const Rows<Kind<B>>& x, const uint8_t* const* row, int64_t output, Groups* groups, float* y) {
  const Weight w = in_blocks<Kind<B>>(given_as);
  const int64_t narrow = given_as.groups / w.groups;  // groups that are added up together
  using Number = typename Kind<B>::Number;
  const int64_t size = w.size();
  for (int r = 0; r < R; ++r) groups[r].template read<B>(given_as, output + r);
  float rest[R][M] = {};
#ifdef __AVX2__
  const int64_t last = in_lanes<Kind<B>>(w);
  const uint8_t* ahead = row[0] + R * w.stride();
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i group_of = _mm256_srlv_epi32(_mm256_mullo_epi32(lanes, _mm256_set1_epi32(narrow)), _mm256_set1_epi32(3));
  __m256 totals[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) totals[r][m] = _mm256_setzero_ps();
#endif
  for (int64_t g = 0; g < w.groups; ++g) {
    int64_t i = 0;
#ifdef __AVX2__
    typename Kind<B>::Lanes v[R][M];
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) v[r][m] = Kind<B>::nothing();
    const uint8_t* from[R];
    const Number* given[M];
    for (int r = 0; r < R; ++r) from[r] = row[r] + g * size * B / 8;
    for (int m = 0; m < M; ++m) given[m] = x.ordered.data() + m * w.inputs + g * size;
    for (; i + BLOCK <= last; i += BLOCK) {
      ahead = fetched<R * BLOCK / 8 * B>(ahead);
      Kind<B>::template add_block<R, M>(from, given, v);
      for (int r = 0; r < R; ++r) from[r] += BLOCK / 8 * B;
      for (int m = 0; m < M; ++m) given[m] += BLOCK;
    }
    for (; i < last; i += Kind<B>::step) {
      for (int r = 0; r < R; ++r) {
        for (int m = 0; m < M; ++m) v[r][m] = Kind<B>::add(from[r], given[m], v[r][m]);
        from[r] += Kind<B>::step / 8 * B;
      }
      for (int m = 0; m < M; ++m) given[m] += Kind<B>::step;
    }
#endif
    for (int r = 0; r < R; ++r) {
      const float* scales = groups[r].scale.data() + g * narrow;
      const int* zeros = groups[r].zero.data() + g * narrow;
#ifdef __AVX2__
      const __m256 each = narrow > 1 ? _mm256_permutevar8x32_ps(_mm256_loadu_ps(scales), group_of) : _mm256_set1_ps(*scales);
      const __m256i none = narrow > 1 ? _mm256_permutevar8x32_epi32(whole(zeros), group_of) : _mm256_set1_epi32(*zeros);
      for (int m = 0; m < M; ++m) {
        const auto steps = Kind<B>::minus(v[r][m], none, x.sums.data() + (m * w.groups + g) * LANES);
        totals[r][m] = _mm256_fmadd_ps(each, Kind<B>::floats(steps), totals[r][m]);
      }
#endif
      for (int64_t j = i; j < size; ++j) {
        const float step = scales[0] * (code_at(row[r], g * size + j, B) - zeros[0]);
        for (int m = 0; m < M; ++m) rest[r][m] += step * x.plain[m * w.inputs + g * size + j];
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
#ifdef __AVX2__
      rest[r][m] += sum(totals[r][m]);
#endif
      y[m * w.outputs + output + r] = rest[r][m] * x.scale[m];
    }
}

// R outputs at a time of M rows, the first of which is row n of all.
template <template <int> class Kind, int B, int R, int M>
void product_rows(const std::vector<Part>& parts, const Rows<Kind<B>>& x, int64_t n) {
#pragma omp parallel num_threads(parts[0].w.threads)
  for (const Part& part : parts) {
    const int64_t full = part.w.outputs / R;
    float* y = part.y + n * part.w.outputs;
    std::vector<Groups> groups(R, Groups(part.w));
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < full + part.w.outputs % R; ++block) {
      const uint8_t* row[R];
      if (block < full) {
        for (int r = 0; r < R; ++r) row[r] = part.row(block * R + r);
        outputs<Kind, B, R, M>(part.w, x, row, block * R, groups.data(), y);
      } else {
        const int64_t output = full * R + block - full;
        row[0] = part.row(output);
        outputs<Kind, B, 1, M>(part.w, x, row, output, groups.data(), y);
      }
    }
  }
}

// Rows [N, I] of the input; each has its scale.
template <template <int> class Kind, int B>
void product(const std::vector<Part>& parts, const std::vector<typename Kind<B>::Number>& x, const std::vector<float>& scale) {
  const Weight w = in_blocks<Kind<B>>(parts[0].w);
  const int64_t count = scale.size();
  const auto rows = [&](int64_t first, int64_t last) {
    return Rows<Kind<B>>(w, {x.begin() + first * w.inputs, x.begin() + last * w.inputs},
                         {scale.begin() + first, scale.begin() + last});
  };
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) product_rows<Kind, B, 2, 4>(parts, rows(n, n + 4), n);
  for (; n < count; ++n) product_rows<Kind, B, 4, 1>(parts, rows(n, n + 1), n);
}

// Rows [N, I] of numbers.
template <int B>
void floating_product(const std::vector<Part>& parts, const float* x, int64_t rows) {
  const Weight& w = parts[0].w;
  product<Floats, B>(parts, {x, x + rows * w.inputs}, std::vector<float>(rows, 1.0f));
}

#ifndef WITH_AVX512
bool has_wide() { return false; }
#endif
bool use_wide = has_wide();

#ifdef __AVX2__
bool fits_wide(const Weight& w) { return use_wide && w.bits < 8 && w.size() % BLOCK == 0; }

#ifndef WITH_AVX512
template <int B, int ORDER>
void wide_products(const std::vector<Part>&, const RoundedRows<ORDER>&) {}
#endif

template <int B>
void products_of_order(const std::vector<Part>& parts, const RoundedRows<B>& x) { products_of(parts, x); }
template <int B>
void products_of_order(const std::vector<Part>& parts, const RoundedRows<IN_ORDER>& x) { wide_products<B, IN_ORDER>(parts, x); }
template <int B>
void products_of_order(const std::vector<Part>& parts, const RoundedRows<IN_PAIRS>& x) { wide_products<B, IN_PAIRS>(parts, x); }

// Rows [N, I] of numbers that were bfloat16: those without massive ones are rounded, for codes in the order of ORDER
// bits (place_of).
template <int B, int ORDER>
void rounded_product(const std::vector<Part>& parts, const float* x, int64_t rows) {
  const Sums sums(parts[0].w);
  for (int64_t n = 0; n < rows;) {
    const int64_t first = n;
    RoundedRows<ORDER> rounded(sums);
    while (n < rows && rounded.append(x + n * sums.inputs)) ++n;
    if (n > first) products_of_order<B>(from_row(parts, first), rounded);
    const int64_t massive = n;
    while (n < rows && !RoundedRows<ORDER>(sums).append(x + n * sums.inputs)) ++n;
    if (n > massive) floating_product<B>(from_row(parts, massive), x + massive * sums.inputs, n - massive);
  }
}
#endif

}  // namespace

extern "C" {

// Lets few rows take the instructions of wide.h where the processor has them, or not; returns whether it has.
int qvlm_use_wide(int on) {
  use_wide = on && has_wide();
  return has_wide();
}

// A weight and where its product goes (kernels/extension.py).
struct Asked {
  const void *codes, *scale, *zero_point;
  float* y;
  int64_t outputs;
};

// The products y [N, O] of x [N, I] and `count` weights of the same inputs, groups, bits and type. Of
// type 0 to 2 (float32, bfloat16, float16) x are numbers; of type 3 uint8 codes, whose zero point is
// given, and their scales: one, or one of every row.
void qvlm_product(const Asked* asked, int64_t count, int64_t inputs, int64_t groups, int bits,
                  int scale_type, int threads, const void* x, int x_type, int x_zero_point,
                  const float* x_scale, int64_t x_scales, int64_t rows) {
  std::vector<Part> parts;
  for (int64_t k = 0; k < count; ++k) {
    const Asked& a = asked[k];
    parts.emplace_back(Weight{static_cast<const uint8_t*>(a.codes), a.scale, static_cast<const uint8_t*>(a.zero_point),
                              a.outputs, inputs, groups, bits, scale_type, threads}, a.y);
  }
  std::vector<float> scale(rows, 1.0f);
  if (x_type == 3) {
    const uint8_t* from = static_cast<const uint8_t*>(x);
    std::vector<int16_t> steps(rows * inputs);
    for (int64_t i = 0; i < rows * inputs; ++i) steps[i] = int16_t(from[i] - x_zero_point);
    for (int64_t n = 0; n < rows; ++n) scale[n] = x_scale[x_scales == 1 ? 0 : n];
#ifdef WITH_AVX512
    if (fits_wide(parts[0].w)) {
      const WholeRows whole(parts[0].w, steps.data(), scale.data(), rows);
#define WHOLE(B) return whole_product<B>(parts, whole)
      FOR_EVERY_WIDTH(WHOLE)
    }
#endif
#define INTEGERS(B) return product<Integers, B>(parts, steps, scale)
    FOR_EVERY_WIDTH(INTEGERS)
  } else {
    std::vector<float> numbers(rows * inputs);
    for (int64_t i = 0; i < rows * inputs; ++i) numbers[i] = number_at(x, x_type, i);
#ifdef __AVX2__
    if (x_type == 1 && Sums::fit(parts[0].w)) {
      const bool wide = fits_wide(parts[0].w);
      const bool pairs = wide && Sums(parts[0].w).size % (2 * BLOCK) == 0;
      if (bits == 3) return wide ? rounded_product<3, IN_ORDER>(parts, numbers.data(), rows) : rounded_product<3, 3>(parts, numbers.data(), rows);
      if (bits == 4) return pairs ? rounded_product<4, IN_PAIRS>(parts, numbers.data(), rows) : rounded_product<4, 4>(parts, numbers.data(), rows);
    }
#endif
#define FLOATS(B) return floating_product<B>(parts, numbers.data(), rows)
    FOR_EVERY_WIDTH(FLOATS)
  }
}
}
