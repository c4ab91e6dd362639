// Many rows of input codes times a weight in dense codes, with the instruction of AVX-512 VNNI that multiplies
// 64 bytes with 64 bytes and adds products by fours into int32, exactly.
//
// Codes of four outputs are written out as bytes from -2^(b-1) on, for as many rows of the input as stay in the
// caches, and four rows are multiplied with them at a time: sixteen sums in registers. With w' those bytes, z the zero
// point of a group (c = 2^(b-1) - z) and p that of the input,
//
//   sum (w' + c)(x - p) = (sum w' x - p sum w')  +  c sum (x - p)
//
// of which only sum w' x is a product, whose lanes begin with -p sum w'. Of one scale per output all of it is int32,
// exact up to 32,768 inputs; of groups the bracket is int32 and what follows float32, each lane of a register on its own.
//
// The functions here are compiled for that processor whatever the flags say, and asked for where
// qvlm_has_byte_products() is 1.
#include <algorithm>

#include "dense.h"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
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
  std::vector<float> shifted;    // [N, groups in registers of 16]: sum (x - p) of every group
  std::vector<int32_t> totals;  // [N]: that of a row
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
  std::vector<float> shifts;      // [4, groups in registers of 16]: scale times c; grouped only
  alignas(16) float scale[OUTPUTS] = {};
  alignas(16) int32_t shift[OUTPUTS] = {};  // c
  bool shifted = false;

  Written(const Weight& w, int64_t padded)
      : steps(padded / STEP), together(w.groups == 1 ? padded : std::max<int64_t>(STEP, w.size())), grouped(w.groups > 1),
        bytes(OUTPUTS * padded), begin(OUTPUTS * padded / together * WIDE), times(grouped ? OUTPUTS * steps * WIDE : 0),
        shifts(grouped ? OUTPUTS * wide(w.groups) : 0) {}

  static int64_t wide(int64_t groups) { return (groups + WIDE - 1) / WIDE * WIDE; }

  template <int B>
  void read(const Weight& w, int64_t output, int zero) {
    constexpr int half = 1 << (B - 1);
    shifted = false;
    for (int r = 0; r < OUTPUTS; ++r) {
      const int64_t o = std::min(output + r, w.outputs - 1);  // the last one again, for nothing
      int8_t* to = &bytes[r * steps * STEP];
      written<B>(w.codes + o * w.stride(), w.end(), w.inputs, to);
      for (int64_t i = 0; i < steps * STEP; i += together) begin_with(&begin[(r * steps * STEP + i) / together * WIDE], to + i, zero);
      if (!grouped) {
        scale[r] = scale_at(w, o);
        shift[r] = half - zero_at(w, o);
        continue;
      }
      for (int64_t g = 0; g < w.groups; ++g) {
        const float each = scale_at(w, o * w.groups + g);
        const int c = half - zero_at(w, o * w.groups + g);
        shifts[r * wide(w.groups) + g] = each * c;
        shifted |= c != 0;
        for (int64_t lane = g * w.size() / 4; lane < (g + 1) * w.size() / 4; ++lane) lanes(r, lane) = each;
      }
    }
  }

  // The factor of a lane: all steps of a group of 64 and more codes have the same sixteen.
  float& lanes(int r, int64_t lane) { return times[r * steps * WIDE + lane]; }

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
inline void tile_of_groups(const Written& w, const Codes& codes, int64_t groups, const uint8_t* const* x, const int64_t* row, __m128* y) {
  __m512 totals[ROWS][OUTPUTS];
  const int64_t wide = Written::wide(groups);
  for (int m = 0; m < ROWS; ++m)
    for (int r = 0; r < OUTPUTS; ++r) {
      totals[m][r] = _mm512_setzero_ps();
      for (int64_t g = 0; g < groups && w.shifted; g += WIDE)
        totals[m][r] = _mm512_fmadd_ps(_mm512_loadu_ps(&w.shifts[r * wide + g]), _mm512_loadu_ps(&codes.shifted[row[m] * wide + g]), totals[m][r]);
    }
  for (int64_t first = 0; first < w.steps * STEP; first += w.together) {
    __m512i v[ROWS][OUTPUTS];
    sums_of(w, x, first, v);
    for (int r = 0; r < OUTPUTS; ++r) {
      const __m512 times = _mm512_loadu_ps(&w.times[(r * w.steps + first / STEP) * WIDE]);
      for (int m = 0; m < ROWS; ++m) totals[m][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v[m][r]), times, totals[m][r]);
    }
  }
  for (int m = 0; m < ROWS; ++m) y[m] = four_sums(totals[m][0], totals[m][1], totals[m][2], totals[m][3]);
}

// Sums of x - p over every group of a row, and over all of it.
void add_up(Codes& codes, const Weight& w, int64_t n) {
  const uint8_t* x = codes.x + n * codes.padded;
  for (int64_t g = 0; g < w.groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = g * w.size(); i < (g + 1) * w.size(); ++i) sum += x[i];
    sum -= codes.zero * int32_t(w.size());
    codes.totals[n] += sum;
    if (w.groups > 1) codes.shifted[n * Written::wide(w.groups) + g] = float(sum);
  }
}

template <int B>
void byte_products(const Weight& w, Codes& codes, float* y) {
  const int64_t at_once = std::max<int64_t>(ROWS, CACHED / codes.padded / ROWS * ROWS);
#pragma omp parallel num_threads(w.threads)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < codes.rows; ++n) add_up(codes, w, n);
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
          four.grouped ? tile_of_groups(four, codes, w.groups, x, row, found) : tile(four, codes, x, row, found);
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

int qvlm_has_byte_products() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"); }

// y [N, O] of codes x [N, I] with a zero point and scales [N] or [1], and a weight whose groups have 8, 16, 32 or a
// multiple of 64 inputs; a single one any number up to 32,768.
void qvlm_byte_products(const uint8_t* dense, const void* scale, const uint8_t* zero_point, int64_t outputs, int64_t inputs, int64_t groups,
                        int bits, int scale_type, int threads, const uint8_t* x, int zero, const float* scales, int64_t count, int64_t rows, float* y) {
  const Weight w{dense, scale, zero_point, outputs, inputs, groups, bits, scale_type, threads};
  const int64_t padded = (inputs + STEP - 1) / STEP * STEP;
  const bool as_it_is = padded == inputs && reinterpret_cast<uintptr_t>(x) % STEP == 0;
  Lines<uint8_t> room(as_it_is ? 0 : rows * padded);
  for (int64_t n = 0; n < rows && !as_it_is; ++n) std::memcpy(&room[n * padded], x + n * inputs, inputs);
  Codes codes{as_it_is ? x : &room[0], rows, padded, zero, scales, count > 1, {}, std::vector<int32_t>(rows)};
  if (groups > 1) codes.shifted.resize(rows * Written::wide(groups));
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
