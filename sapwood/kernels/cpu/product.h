// Products of a few or many rows with a tile of weights.
#pragma once

#include "weights.h"

// What a row of activations needs beside its integers: for each 32 of them the scale, the sum, and what undoes the offsets of
// weights that are stored unsigned.
struct Scale {
    float scale, sum;  // sum of the 32 values, times scale
    int32_t zero4;     // -8 times the integers' sum, for U4 without minima
    int32_t zero8;     // -128 times it, for I8
    int32_t low, high;  // the same of the first and of the last 16
};

// Rows of activations as products take them; whichever of the two forms the weights want. Integers have 8 bits, or where
// they are `fine` 12: 16 * a + b, the 32 a's of a group followed by its 32 b's.
struct Rows {
    float* floats = nullptr;   // [rows, ins]
    int8_t* bytes = nullptr;   // [rows, ins / 32, 1 or 2, 32]
    Scale* scales = nullptr;   // [rows, ins / 32]
    bool fine = false;

    int8_t* group(size_t row, int ins, int g) const { return bytes + ((row * (ins / 32) + g) << (fine ? 6 : 5)); }
};

constexpr float LEAST = 1e-35f;  // what is rounded to 0 all the same, as its inverse would be infinite

// Symmetric, a scale for 32 values, rounded to nearest.
template <bool FINE>
INLINE void quantise_group(const float* x, int8_t* bytes, Scale& s) {
    constexpr int N = 32 / W;
    constexpr float MOST = FINE ? 2039 : 127;  // 16 * 127 + 7
    vf v[N];
    vi most{};  // magnitudes have the order of their bits as integers, in which what is not a number comes last
    for (int i = 0; i < N; i++) {
        v[i] = load(x + i * W);
        vi bits = reinterpret_cast<vi>(vabs(v[i]));
        most = bits > most ? bits : most;
    }
    int32_t top_bits = most[0];
    for (int i = 1; i < W; i++) top_bits = std::max(top_bits, int32_t(most[i]));
    float top;
    std::memcpy(&top, &top_bits, 4);
    if (!(top < INFINITY)) {  // must be found out by whoever samples, not turned into numbers
        std::memset(bytes, 0, FINE ? 64 : 32);
        s = {NAN, NAN, 0, 0, 0, 0};
        return;
    }
    float inverse = top > LEAST ? MOST / top : 0.0f;
    vi sums[2] = {};
    for (int i = 0; i < N; i++) {
        vf scaled = v[i] * inverse;
        vi rounded = __builtin_convertvector((scaled + 12582912.0f) - 12582912.0f, vi);
        sums[i >= N / 2] += rounded;
        if constexpr (FINE) {
            vi upper = (rounded + 8) >> 4;
            *reinterpret_cast<vb_loose*>(bytes + 32 + i * W) = __builtin_convertvector(rounded - (upper << 4), vb);
            rounded = upper;
        }
        *reinterpret_cast<vb_loose*>(bytes + i * W) = __builtin_convertvector(rounded, vb);
    }
    int low = 0, high = 0;
    for (int i = 0; i < W; i++) low += sums[0][i], high += sums[1][i];
    s.scale = top / MOST;
    s.sum = s.scale * (low + high);
    s.zero4 = -8 * (low + high);
    s.low = -128 * low, s.high = -128 * high, s.zero8 = s.low + s.high;
}

INLINE void quantise(const Rows& rows, size_t row, int ins, int g, const float* x) {
    Scale& scale = rows.scales[row * (ins / 32) + g];
    if (rows.fine) quantise_group<true>(x, rows.group(row, ins, g), scale);
    else quantise_group<false>(x, rows.group(row, ins, g), scale);
}

// ---- the integer dot products of a block with a group of activations, whose second integers are 32 bytes behind the first

#if defined(__AVX512VNNI__)
#define DOT_BIASED 1
struct Dots {
    __m512i values[8];
    INLINE static __m512i start(int32_t zero) { return _mm512_set1_epi32(zero); }
    template <int N>
    INLINE void add(__m512i& total, const int8_t* x) const {
        for (int j = 0; j < N; j++) {
            int32_t four;
            std::memcpy(&four, x + j * 4, 4);
            total = _mm512_dpbusd_epi32(total, values[j], _mm512_set1_epi32(four));
        }
    }
    template <int N>
    INLINE void load4(const uint8_t* p) {
        const __m512i mask = _mm512_set1_epi8(15);
        for (int j = 0; j < N / 2; j++) {
            __m512i both = _mm512_loadu_si512(p + j * 64);
            values[j] = _mm512_and_si512(both, mask);
            values[N / 2 + j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
    }
    template <int N>
    INLINE void look_up(const uint8_t* table) {
        const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
        for (int j = 0; j < N; j++) values[j] = _mm512_shuffle_epi8(all, values[j]);
    }
    template <int N>
    INLINE void load8(const uint8_t* p) {
        for (int j = 0; j < N; j++) values[j] = _mm512_loadu_si512(p + j * 64);
    }
};
template <Kind KIND, int GROUP>
struct Block {
    Dots dots;
    INLINE Block(const uint8_t* p, const uint8_t* table) {
        if constexpr (KIND == I8) dots.load8<GROUP / 4>(p);
        else dots.load4<GROUP / 4>(p);
        if constexpr (KIND == T4) dots.look_up<GROUP / 4>(table);
    }
    template <bool FINE>
    INLINE void dot(const int8_t* x, int32_t zero, vf out[PARTS]) const {
        __m512i total = Dots::start(FINE ? 0 : zero);
        dots.template add<GROUP / 4>(total, x);
        if constexpr (FINE) {
            total = _mm512_add_epi32(_mm512_slli_epi32(total, 4), Dots::start(zero));
            dots.template add<GROUP / 4>(total, x + 32);
        }
        out[0] = reinterpret_cast<vf>(_mm512_cvtepi32_ps(total));
    }
};
constexpr int MOST_ROWS = 8;
#elif defined(__AVX2__)
// Eight outputs to a register. Without VNNI, products of two bytes are added up in 16 bits: nibbles leave room for eight
// of them, bytes for one, and those need the sign moved from the weight to the activation first.
template <Kind KIND, int GROUP>
struct Block {
    const uint8_t *p, *table;
    INLINE Block(const uint8_t* p, const uint8_t* table) : p(p), table(table) {}
    INLINE static __m256i four(const int8_t* x) {
        int32_t bytes;
        std::memcpy(&bytes, x, 4);
        return _mm256_set1_epi32(bytes);
    }
    // Values are 128 too large.
    INLINE static __m256i add_bytes(__m256i total, __m256i values, __m256i x) {
#if defined(__AVXVNNI__)
        return _mm256_dpbusd_avx_epi32(total, values, x);
#else
        values = _mm256_xor_si256(values, _mm256_set1_epi8(-128));
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_sign_epi8(x, values));
        return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
    }
    // Adds to eight outputs' sums.
    INLINE __m256i add(__m256i total, const uint8_t* at, const int8_t* x) const {
        if constexpr (KIND == U4) {
            const __m256i mask = _mm256_set1_epi8(15);
#if !defined(__AVXVNNI__)
            __m256i pairs = _mm256_setzero_si256();
#endif
            for (int j = 0; j < 4; j++) {
                __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + j * 64));
                __m256i low = _mm256_and_si256(both, mask);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
#if defined(__AVXVNNI__)
                total = _mm256_dpbusd_avx_epi32(total, low, four(x + j * 4));
                total = _mm256_dpbusd_avx_epi32(total, high, four(x + 16 + j * 4));
#else
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(low, four(x + j * 4)));
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high, four(x + 16 + j * 4)));
#endif
            }
#if !defined(__AVXVNNI__)
            total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
        } else if constexpr (KIND == T4) {
            const __m256i mask = _mm256_set1_epi8(15);
            const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
            for (int j = 0; j < GROUP / 8; j++) {
                __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + j * 64));
                total = add_bytes(total, _mm256_shuffle_epi8(all, _mm256_and_si256(both, mask)), four(x + j * 4));
                both = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
                total = add_bytes(total, _mm256_shuffle_epi8(all, both), four(x + GROUP / 2 + j * 4));
            }
        } else {
            for (int j = 0; j < GROUP / 4; j++)
                total = add_bytes(total, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + j * 64)), four(x + j * 4));
        }
        return total;
    }
    template <bool FINE>
    INLINE void dot(const int8_t* x, int32_t zero, vf out[PARTS]) const {
#if !defined(__AVXVNNI__)
        if constexpr (KIND != U4) zero = 0;  // values are made signed again, so nothing is to undo
#endif
        for (int half = 0; half < 2; half++) {
            const uint8_t* at = p + half * 32;
            __m256i total = add(_mm256_set1_epi32(FINE ? 0 : zero), at, x);
            if constexpr (FINE)
                total = add(_mm256_add_epi32(_mm256_slli_epi32(total, 4), _mm256_set1_epi32(zero)), at, x + 32);
            out[half] = reinterpret_cast<vf>(_mm256_cvtepi32_ps(total));
        }
    }
};
constexpr int MOST_ROWS = 4;
#elif defined(__ARM_FEATURE_DOTPROD)
template <Kind KIND, int GROUP>
struct Block {
    const uint8_t *p, *table;
    INLINE Block(const uint8_t* p, const uint8_t* table) : p(p), table(table) {}
    INLINE static int8x16_t four(const int8_t* x) {
        int32_t bytes;
        std::memcpy(&bytes, x, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
    }
    // Adds to four outputs' sums.
    INLINE int32x4_t add(int32x4_t total, const uint8_t* at, const int8_t* x) const {
        if constexpr (KIND == U4) {
            for (int j = 0; j < 4; j++) {
                uint8x16_t both = vld1q_u8(at + j * 64);
                total = vdotq_s32(total, vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), four(x + j * 4));
                total = vdotq_s32(total, vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), four(x + 16 + j * 4));
            }
        } else if constexpr (KIND == T4) {
            const uint8x16_t all = veorq_u8(vld1q_u8(table), vdupq_n_u8(128));
            for (int j = 0; j < GROUP / 8; j++) {
                uint8x16_t both = vld1q_u8(at + j * 64);
                int8x16_t low = vreinterpretq_s8_u8(vqtbl1q_u8(all, vandq_u8(both, vdupq_n_u8(15))));
                int8x16_t high = vreinterpretq_s8_u8(vqtbl1q_u8(all, vshrq_n_u8(both, 4)));
                total = vdotq_s32(vdotq_s32(total, low, four(x + j * 4)), high, four(x + GROUP / 2 + j * 4));
            }
        } else {
            for (int j = 0; j < GROUP / 4; j++)
                total = vdotq_s32(total, vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + j * 64), vdupq_n_u8(128))), four(x + j * 4));
        }
        return total;
    }
    template <bool FINE>
    INLINE void dot(const int8_t* x, int32_t zero, vf out[PARTS]) const {
        if constexpr (KIND != U4) zero = 0;  // values are made signed again, so nothing is to undo
        for (int part = 0; part < 4; part++) {
            const uint8_t* at = p + part * 16;
            int32x4_t total = add(vdupq_n_s32(FINE ? 0 : zero), at, x);
            if constexpr (FINE) total = add(vaddq_s32(vshlq_n_s32(total, 4), vdupq_n_s32(zero)), at, x + 32);
            out[part] = reinterpret_cast<vf>(vcvtq_f32_s32(total));
        }
    }
};
constexpr int MOST_ROWS = 4;
#else
template <Kind KIND, int GROUP>
struct Block {
    const uint8_t *p, *table;
    INLINE Block(const uint8_t* p, const uint8_t* table) : p(p), table(table) {}
    INLINE void add(int32_t totals[TILE], const int8_t* x) const {
        for (int i = 0; i < (KIND == I8 ? GROUP : GROUP / 2); i++)
            for (int lane = 0; lane < TILE; lane++) {
                int byte = p[i / 4 * 64 + lane * 4 + i % 4], low = byte & 15, high = byte >> 4;
                if constexpr (KIND == T4) low = table[low], high = table[high];
                totals[lane] += KIND == I8 ? byte * x[i] : low * x[i] + high * x[GROUP / 2 + i];
            }
    }
    template <bool FINE>
    INLINE void dot(const int8_t* x, int32_t zero, vf out[PARTS]) const {
        int32_t totals[TILE] = {};
        add(totals, x);
        if constexpr (FINE) {
            for (int lane = 0; lane < TILE; lane++) totals[lane] *= 16;
            add(totals, x + 32);
        }
        for (int part = 0; part < PARTS; part++)
            for (int lane = 0; lane < W; lane++) out[part][lane] = float(totals[part * W + lane] + zero);
    }
};
constexpr int MOST_ROWS = 4;
#endif

// ---- a tile by up to MOST_ROWS rows: out[row * stride + 0..15]. A row's sums are made in the same order whatever their number, so
// that a request's tokens do not depend on who else is there.

template <bool WIDE>
INLINE vf load_scale(const uint8_t* p) {
    if constexpr (WIDE) return load(reinterpret_cast<const float*>(p));
    else return load_half(reinterpret_cast<const uint16_t*>(p));
}

// GROUP is 16 or 32: larger groups are runs of 32.
template <Kind KIND, int GROUP, Minima MINIMA_KIND, bool WIDE, bool FINE, int ROWS>
void quantised_rows(const Weights& w, const uint8_t* tile, const Rows& x, int first, float* out, int stride) {
    constexpr size_t VALUES = KIND == I8 ? TILE * GROUP : TILE * GROUP / 2;
    constexpr size_t SCALE = WIDE ? 4 : 2, SCALES = TILE * SCALE * (1 + (MINIMA_KIND != NONE));
    const int groups = w.groups(), runs = w.group / GROUP;
    const size_t per_row = w.ins / 32;
    vf totals[ROWS][PARTS] = {};
    for (int g = 0; g < groups; g++, tile += SCALES) {
        vf scales[PARTS], minima[PARTS];
        for (int part = 0; part < PARTS; part++) {
            const uint8_t* at = tile + VALUES * runs + part * W * SCALE;
            scales[part] = load_scale<WIDE>(at);
            if constexpr (MINIMA_KIND != NONE) minima[part] = load_scale<WIDE>(at + TILE * SCALE);
            if constexpr (MINIMA_KIND == ZEROS) minima[part] *= scales[part];
        }
        for (int run = g * runs; run < (g + 1) * runs; run++, tile += VALUES) {
            if constexpr (ROWS <= 2) {  // bound by memory: ask for it early
                for (size_t ahead = 0; ahead < VALUES + SCALES; ahead += 64)
                    __builtin_prefetch(tile + 6 * (VALUES + SCALES) + ahead);
            }
            Block<KIND, GROUP> block(tile, w.tables[0]), second(tile, w.tables[1]);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; row++) {
                const Scale& s = x.scales[(first + row) * per_row + run * GROUP / 32];
                const int8_t* bytes = x.bytes + ((first + row) * per_row + run * GROUP / 32) * (FINE ? 64 : 32) + run * GROUP % 32;
                int32_t zero;
                if constexpr (KIND == U4) zero = MINIMA_KIND != NONE ? 0 : s.zero4;
                else if constexpr (GROUP == 32) zero = s.zero8;  // values are 128 too large
                else zero = run % 2 ? s.high : s.low;
                vf dots[PARTS]{};
                block.template dot<FINE>(bytes, zero, dots);
                if constexpr (KIND == T4) {
                    if (w.fine) {
                        vf rest[PARTS]{};
                        second.template dot<FINE>(bytes, zero, rest);
                        for (int part = 0; part < PARTS; part++) dots[part] = fused(dots[part], splat(128), rest[part]);
                    }
                }
                for (int part = 0; part < PARTS; part++) {
                    totals[row][part] = fused(dots[part], scales[part] * s.scale, totals[row][part]);
                    if constexpr (MINIMA_KIND != NONE && GROUP == 32)
                        totals[row][part] = fused(minima[part], splat(s.sum), totals[row][part]);
                }
            }
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < PARTS; part++)
            store(out + row * stride + part * W, KIND == T4 ? totals[row][part] * w.unit : totals[row][part]);
}

// E4M3: values are widened in registers, and a group's sum is scaled.
template <int ROWS>
void float8_rows(const Weights& w, const uint8_t* tile, const Rows& x, int first, float* out, int stride) {
    vf totals[ROWS][PARTS] = {};
    const float* rows[ROWS];
    for (int row = 0; row < ROWS; row++) rows[row] = x.floats + size_t(first + row) * w.ins;
    for (int begin = 0; begin < w.ins; begin += w.group) {
        vf sums[ROWS][PARTS] = {};
        for (int i = begin; i < begin + w.group; i++, tile += TILE) {
            if constexpr (ROWS <= 2) __builtin_prefetch(tile + 1024);
            vf values[PARTS];
            for (int part = 0; part < PARTS; part++) values[part] = load_float8(tile + part * W);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; row++)
                for (int part = 0; part < PARTS; part++) sums[row][part] = fused(values[part], splat(rows[row][i]), sums[row][part]);
        }
        for (int part = 0; part < PARTS; part++, tile += W * 4) {
            vf scales = load_scale<true>(tile);
            for (int row = 0; row < ROWS; row++) totals[row][part] = fused(sums[row][part], scales, totals[row][part]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < PARTS; part++) store(out + row * stride + part * W, totals[row][part]);
}

template <Kind KIND>
INLINE vf load_floats(const uint8_t* p) {
    if constexpr (KIND == F32) return load(reinterpret_cast<const float*>(p));
    else if constexpr (KIND == F16) return load_half(reinterpret_cast<const uint16_t*>(p));
    else return load_bfloat(reinterpret_cast<const uint16_t*>(p));
}

template <Kind KIND, int ROWS>
void float_rows(const Weights& w, const uint8_t* tile, const Rows& x, int first, float* out, int stride) {
    constexpr size_t ITEM = KIND == F32 ? 4 : 2;
    vf totals[ROWS][PARTS] = {};
    const float* rows[ROWS];
    for (int row = 0; row < ROWS; row++) rows[row] = x.floats + size_t(first + row) * w.ins;
    for (int i = 0; i < w.ins; i++, tile += TILE * ITEM) {
        if constexpr (ROWS <= 2) __builtin_prefetch(tile + 2048);
        vf values[PARTS];
        for (int part = 0; part < PARTS; part++) values[part] = load_floats<KIND>(tile + part * W * ITEM);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++)
            for (int part = 0; part < PARTS; part++) totals[row][part] = fused(values[part], splat(rows[row][i]), totals[row][part]);
    }
    for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < PARTS; part++) store(out + row * stride + part * W, totals[row][part]);
}

template <Kind KIND, int GROUP, Minima MINIMA_KIND, bool WIDE, int ROWS>
INLINE void some_rows(const Weights& w, const uint8_t* tile, const Rows& x, int first, float* out, int stride) {
    if constexpr (KIND == U4 || KIND == I8 || KIND == T4) {
        if (x.fine) quantised_rows<KIND, GROUP, MINIMA_KIND, WIDE, true, ROWS>(w, tile, x, first, out, stride);
        else quantised_rows<KIND, GROUP, MINIMA_KIND, WIDE, false, ROWS>(w, tile, x, first, out, stride);
    } else if constexpr (KIND == E4M3)
        float8_rows<ROWS>(w, tile, x, first, out, stride);
    else
        float_rows<KIND, ROWS>(w, tile, x, first, out, stride);
}

template <Kind KIND, int GROUP = 1, Minima MINIMA_KIND = NONE, bool WIDE = false>
void all_rows(const Weights& w, int tile, const Rows& x, int first, int last, float* out, int stride) {
    const uint8_t* data = w.tile(tile);
    auto some = [&](auto rows, int row) {
        some_rows<KIND, GROUP, MINIMA_KIND, WIDE, decltype(rows)::value>(w, data, x, row, out + size_t(row - first) * stride, stride);
    };
    int row = first;
    for (; row + MOST_ROWS <= last; row += MOST_ROWS) some(std::integral_constant<int, MOST_ROWS>(), row);
    switch (last - row) {
        case 1: some(std::integral_constant<int, 1>(), row); break;
        case 2: some(std::integral_constant<int, 2>(), row); break;
        case 3: some(std::integral_constant<int, 3>(), row); break;
#if defined(DOT_BIASED)
        case 4: some(std::integral_constant<int, 4>(), row); break;
        case 5: some(std::integral_constant<int, 5>(), row); break;
        case 6: some(std::integral_constant<int, 6>(), row); break;
        case 7: some(std::integral_constant<int, 7>(), row); break;
#endif
        default: break;
    }
}

template <Kind KIND>
void integer_rows(const Weights& w, int tile, const Rows& x, int first, int last, float* out, int stride) {
    if (w.minima == MINIMA) return all_rows<KIND, 32, MINIMA>(w, tile, x, first, last, out, stride);
    if (w.minima == ZEROS)
        return w.wide ? all_rows<KIND, 32, ZEROS, true>(w, tile, x, first, last, out, stride)
                      : all_rows<KIND, 32, ZEROS>(w, tile, x, first, last, out, stride);
    return w.wide ? all_rows<KIND, 32, NONE, true>(w, tile, x, first, last, out, stride)
                  : all_rows<KIND, 32>(w, tile, x, first, last, out, stride);
}

// Rows [first, last) by one tile of outputs, into out[(row - first) * stride + 0..15].
inline void multiply(const Weights& w, int tile, const Rows& x, int first, int last, float* out, int stride) {
    switch (w.kind) {
        case F32: return all_rows<F32>(w, tile, x, first, last, out, stride);
        case F16: return all_rows<F16>(w, tile, x, first, last, out, stride);
        case BF16: return all_rows<BF16>(w, tile, x, first, last, out, stride);
        case U4: return integer_rows<U4>(w, tile, x, first, last, out, stride);
        case I8:
            if (w.group == 16) return all_rows<I8, 16>(w, tile, x, first, last, out, stride);
            return integer_rows<I8>(w, tile, x, first, last, out, stride);
        case T4:
            if (w.group == 16)
                return w.wide ? all_rows<T4, 16, NONE, true>(w, tile, x, first, last, out, stride)
                              : all_rows<T4, 16>(w, tile, x, first, last, out, stride);
            return w.wide ? all_rows<T4, 32, NONE, true>(w, tile, x, first, last, out, stride)
                          : all_rows<T4, 32>(w, tile, x, first, last, out, stride);
        case E4M3: return all_rows<E4M3, 1, NONE, true>(w, tile, x, first, last, out, stride);
    }
}
