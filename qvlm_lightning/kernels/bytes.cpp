// Many rows of input codes times a weight in dense codes, with the instruction of AVX-512 VNNI that multiplies
// 64 bytes with 64 bytes and adds products by fours into int32, exactly.
//
// Codes of four outputs are written out as bytes, for as many rows of the input as stay in the
// caches, and four rows are multiplied with them at a time: sixteen sums in registers. Of up to 7 bits the bytes are
// w - z, codes minus zero points; of 8 bits that needs a ninth, and they are w' = w - 128, with c = 128 - z. With p the
// zero point of the input,
//
//   sum (w' + c)(x - p) = (sum w' x - p sum w')  +  c sum (x - p)
//
// of which only sum w' x is a product, whose lanes begin with -p sum w'. All of it is int32, exact up to 32,768 inputs;
// only then comes a scale, in groups that of each lane of a register.
//
// The functions here are compiled for that processor whatever the flags say, and asked for where
// qvlm_has_byte_products() is 1.
#include <algorithm>

#include "dense.h"

#ifdef WITH_AVX512
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,bmi2")

namespace {

constexpr int OUTPUTS = 4, ROWS = 4, STEP = 64, WIDE = 16;
constexpr int64_t CACHED = 512 << 10;  // bytes of input rows that are read again and again

// Numbers that begin where a line of memory does: a register that lies in two lines takes twice the time.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t count) : room(count + STEP / sizeof(T)) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(room.data());
    begin = room.data() + (STEP - first % STEP) % STEP / sizeof(T);
  }
  Lines(const Lines&) = delete;
  T& operator[](int64_t i) { return begin[i]; }
  const T& operator[](int64_t i) const { return begin[i]; }

 private:
  std::vector<T> room;
  T* begin;
};

struct Codes {  // of an input
  const uint8_t* x;     // [N, padded]
  int64_t rows, padded;
  int zero;
  const float* scale;   // [N], or one of all
  bool each;
  std::vector<int32_t> totals;  // [N]: sum (x - p) of a row
  std::vector<int32_t> lanes;   // [N, steps 64 / together, 16]: that of every lane; of groups of 8 bits only
};

// `count` codes as bytes; what pads them to whole steps stays 0.
template <int B>
void written(const uint8_t* from, const uint8_t* end, int64_t count, int8_t* to) {
  constexpr int half = 1 << (B - 1);
  int64_t i = 0;
  const __m512i off = _mm512_set1_epi8(char(half));
  for (; i + STEP <= count && from + (i + STEP) / 8 * B + 8 <= end; i += STEP) {
    const uint8_t* place = from + i / 8 * B;
    __m512i codes;
    if (B == 8) {
      codes = _mm512_loadu_si512(place);
    } else if (B == 4) {
      const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(place)));
      codes = _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(15));
    } else {
      uint64_t eight[8];
      for (int k = 0; k < 8; ++k) {
        std::memcpy(&eight[k], place + k * B, 8);
        eight[k] = _pdep_u64(eight[k], 0x0101010101010101u * ((1u << B) - 1));
      }
      codes = _mm512_loadu_si512(eight);
    }
    _mm512_storeu_si512(to + i, _mm512_sub_epi8(codes, off));
  }
  for (; i < count; ++i) to[i] = int8_t(code_at(from, i, B) - half);
}

inline __m512i bytes_at(const void* from) { return _mm512_loadu_si512(from); }

// Sums of all lanes of four registers.
inline __m128i four_sums(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

inline __m128 four_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d pairs = _mm512_castps_pd(ab), others = _mm512_castps_pd(cd);
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(pairs, others)), _mm512_castpd_ps(_mm512_unpackhi_pd(pairs, others)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Four outputs, written out, and what their sums are multiplied with.
struct Written {
  int64_t steps, together;        // of 64 codes in an output; codes whose sums share registers
  bool grouped;
  Lines<int8_t> bytes;            // [4, steps, 64]
  Lines<int32_t> begin;           // [4, steps 64 / together, 16]: -p sum w'
  Lines<float> times;             // [4, steps, 16]: the scale of every lane; grouped only
  Lines<int32_t> shifts;          // [4, steps, 16]: c of every lane; of groups of 8 bits only
  alignas(16) float scale[OUTPUTS] = {};
  alignas(16) int32_t shift[OUTPUTS] = {};  // c

  Written(const Weight& w, int64_t padded)
      : steps(padded / STEP), together(w.groups == 1 ? padded : std::max<int64_t>(STEP, w.size())), grouped(w.groups > 1),
        bytes(OUTPUTS * padded), begin(OUTPUTS * padded / together * WIDE), times(grouped ? OUTPUTS * steps * WIDE : 0),
        shifts(in_lanes(w) ? OUTPUTS * steps * WIDE : 0) {}

  // Whether zero points of groups are taken off in lanes.
  static bool in_lanes(const Weight& w) { return w.groups > 1 && w.bits == 8 && w.zero_point; }

  template <int B>
  void read(const Weight& w, int64_t output, int zero) {
    constexpr int half = 1 << (B - 1);
    for (int r = 0; r < OUTPUTS; ++r) {
      const int64_t o = std::min(output + r, w.outputs - 1);  // the last one again, for nothing
      int8_t* to = &bytes[r * steps * STEP];
      written<B>(w.codes + o * w.stride(), w.end(), w.inputs, to);
      for (int64_t g = 0; g < w.groups; ++g) {
        const float each = scale_at(w, o * w.groups + g);
        int c = half - zero_at(w, o * w.groups + g);
        const int64_t first = g * w.size(), last = first + w.size();
        if (B < 8 && c) {
          for (int64_t i = first; i < last; ++i) to[i] = int8_t(to[i] + c);
          c = 0;
        }
        if (!grouped) {
          scale[r] = each;
          shift[r] = c;
        }
        for (int64_t lane = first / 4; lane < last / 4 && grouped; ++lane) {
          times[r * steps * WIDE + lane] = each;
          if (in_lanes(w)) shifts[r * steps * WIDE + lane] = c;
        }
      }
      for (int64_t i = 0; i < steps * STEP; i += together) begin_with(&begin[(r * steps * STEP + i) / together * WIDE], to + i, zero);
    }
  }

  void begin_with(int32_t* lanes, const int8_t* from, int zero) const {
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < together; i += STEP) sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), bytes_at(from + i));
    _mm512_storeu_si512(lanes, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-zero)));
  }
};

// Sums of products of four rows and four outputs from input `first` on.
inline void sums_of(const Written& w, const uint8_t* const* x, int64_t first, __m512i (*v)[OUTPUTS]) {
  const int64_t stride = w.steps * STEP;
  for (int r = 0; r < OUTPUTS; ++r) {
    const __m512i begin = bytes_at(&w.begin[(r * stride + first) / w.together * WIDE]);
    for (int m = 0; m < ROWS; ++m) v[m][r] = begin;
  }
  for (int64_t i = first; i < first + w.together; i += STEP) {
    __m512i given[OUTPUTS];
    for (int r = 0; r < OUTPUTS; ++r) given[r] = bytes_at(&w.bytes[r * stride + i]);
    for (int m = 0; m < ROWS; ++m) {
      const __m512i one = bytes_at(x[m] + i);
      for (int r = 0; r < OUTPUTS; ++r) v[m][r] = _mm512_dpbusd_epi32(v[m][r], one, given[r]);
    }
  }
}

// Four rows times four outputs of one scale each.
inline void tile(const Written& w, const Codes& codes, const uint8_t* const* x, const int64_t* row, __m128* y) {
  __m512i v[ROWS][OUTPUTS];
  sums_of(w, x, 0, v);
  const __m128i shift = _mm_load_si128(reinterpret_cast<const __m128i*>(w.shift));
  for (int m = 0; m < ROWS; ++m) {
    // what does not fit into 32 bits on the way comes back: the whole does
    const __m128i more = _mm_mullo_epi32(shift, _mm_set1_epi32(codes.totals[row[m]]));
    const __m128i sums = _mm_add_epi32(four_sums(v[m][0], v[m][1], v[m][2], v[m][3]), more);
    y[m] = _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_load_ps(w.scale));
  }
}

// The same of outputs with several scales.
template <bool SHIFTED>
inline void tile_of_groups(const Written& w, const Codes& codes, const uint8_t* const* x, const int64_t* row, __m128* y) {
  __m512 totals[ROWS][OUTPUTS];
  for (auto& of_row : totals)
    for (__m512& one : of_row) one = _mm512_setzero_ps();
  const int64_t blocks = w.steps * STEP / w.together;
  for (int64_t first = 0; first < w.steps * STEP; first += w.together) {
    __m512i v[ROWS][OUTPUTS];
    sums_of(w, x, first, v);
    for (int r = 0; r < OUTPUTS; ++r) {
      const int64_t place = (r * w.steps + first / STEP) * WIDE;
      for (int m = 0; m < ROWS && SHIFTED; ++m) {
        const __m512i shifted = _mm512_mullo_epi32(bytes_at(&w.shifts[place]), bytes_at(&codes.lanes[(row[m] * blocks + first / w.together) * WIDE]));
        v[m][r] = _mm512_add_epi32(v[m][r], shifted);
      }
      const __m512 times = _mm512_loadu_ps(&w.times[place]);
      for (int m = 0; m < ROWS; ++m) totals[m][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v[m][r]), times, totals[m][r]);
    }
  }
  for (int m = 0; m < ROWS; ++m) y[m] = four_sums(totals[m][0], totals[m][1], totals[m][2], totals[m][3]);
}

// Sums of x - p over a row and, where they are asked for, over what every lane sees of it.
void add_up(Codes& codes, int64_t inputs, int64_t together, int64_t n) {
  const uint8_t* x = codes.x + n * codes.padded;
  int32_t total = 0;
  for (int64_t i = 0; i < inputs; ++i) total += x[i];
  codes.totals[n] = total - codes.zero * int32_t(inputs);
  if (codes.lanes.empty()) return;
  int32_t* lanes = &codes.lanes[n * codes.padded / together * WIDE];
  for (int64_t i = 0; i < inputs; ++i) lanes[i / together * WIDE + i % STEP / 4] += x[i] - codes.zero;
}

template <int B>
void byte_products(const Weight& w, Codes& codes, float* y) {
  const int64_t together = Written(w, codes.padded).together;
  if (Written::in_lanes(w)) codes.lanes.resize(codes.rows * codes.padded / together * WIDE);
  const int64_t at_once = std::max<int64_t>(ROWS, CACHED / codes.padded / ROWS * ROWS);
#pragma omp parallel num_threads(w.threads)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < codes.rows; ++n) add_up(codes, w.inputs, together, n);
    Written four(w, codes.padded);
    for (int64_t begin = 0; begin < codes.rows; begin += at_once) {
      const int64_t end = std::min(codes.rows, begin + at_once);
#pragma omp for schedule(static) nowait
      for (int64_t output = 0; output < w.outputs; output += OUTPUTS) {
        four.read<B>(w, output, codes.zero);
        const __mmask8 kept = __mmask8((1 << std::min<int64_t>(OUTPUTS, w.outputs - output)) - 1);
        for (int64_t n = begin; n < end; n += ROWS) {
          const uint8_t* x[ROWS];
          int64_t row[ROWS];
          __m128 found[ROWS];
          for (int m = 0; m < ROWS; ++m) {
            row[m] = std::min(n + m, end - 1);
            x[m] = codes.x + row[m] * codes.padded;
          }
          if (!four.grouped) tile(four, codes, x, row, found);
          else if (B == 8 && !codes.lanes.empty()) tile_of_groups<true>(four, codes, x, row, found);
          else tile_of_groups<false>(four, codes, x, row, found);
          for (int m = 0; m < ROWS && n + m < end; ++m) {
            const __m128 scale = _mm_set1_ps(codes.scale[codes.each ? n + m : 0]);
            _mm_mask_storeu_ps(y + (n + m) * w.outputs + output, kept, _mm_mul_ps(found[m], scale));
          }
        }
      }
    }
  }
}

}  // namespace

extern "C" {

int qvlm_has_byte_products() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("bmi2");
}

// y [N, O] of codes x [N, I] with a zero point and scales [N] or [1], and a weight whose groups have 8, 16, 32 or a
// multiple of 64 inputs; a single one any number up to 32,768.
void qvlm_byte_products(const uint8_t* dense, const void* scale, const uint8_t* zero_point, int64_t outputs, int64_t inputs, int64_t groups,
                        int bits, int scale_type, int threads, const uint8_t* x, int zero, const float* scales, int64_t count, int64_t rows, float* y) {
  const Weight w{dense, scale, zero_point, outputs, inputs, groups, bits, scale_type, threads};
  const int64_t padded = (inputs + STEP - 1) / STEP * STEP;
  const bool as_it_is = padded == inputs && reinterpret_cast<uintptr_t>(x) % STEP == 0;
  Lines<uint8_t> room(as_it_is ? 0 : rows * padded);
  for (int64_t n = 0; n < rows && !as_it_is; ++n) std::memcpy(&room[n * padded], x + n * inputs, inputs);
  Codes codes{as_it_is ? x : &room[0], rows, padded, zero, scales, count > 1, std::vector<int32_t>(rows), {}};
#define CALL(B) byte_products<B>(w, codes, y); break
  FOR_EVERY_WIDTH(CALL)
#undef CALL
}
}
#pragma GCC pop_options
#else

extern "C" {
int qvlm_has_byte_products() { return 0; }
}
#endif
