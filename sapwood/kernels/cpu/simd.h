// Vectors of floats as wide as the processor's, through the compiler's vector extensions: one source for all of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

constexpr int TILE = 16;        // outputs of a product, or positions of keys, that lie side by side
constexpr int PARTS = TILE / W;  // vectors of a tile

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef int8_t vb __attribute__((vector_size(W)));
typedef vf vf_loose __attribute__((aligned(4), may_alias));
typedef vi vi_loose __attribute__((aligned(4), may_alias));
typedef vb vb_loose __attribute__((aligned(1), may_alias));

INLINE vf load(const float* p) { return *reinterpret_cast<const vf_loose*>(p); }
INLINE void store(float* p, vf v) { *reinterpret_cast<vf_loose*>(p) = v; }
INLINE vf splat(float x) { return x - vf{}; }  // which is x for every x; a sum would not be for -0
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
INLINE vf vabs(vf a) { return reinterpret_cast<vf>(reinterpret_cast<vi>(a) & 0x7fffffff); }

// a * b + c, rounded once where the processor can. The compiler itself is told to fuse nothing: it would do so in one copy of a
// loop and not in another, and a row's result would depend on how many rows are computed together.
INLINE vf fused(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<vf>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

INLINE float sum(vf v) {
    float total = 0;
    for (int i = 0; i < W; i++) total += v[i];
    return total;
}

INLINE float greatest(vf v) {
    float most = v[0];
    for (int i = 1; i < W; i++) most = std::max(most, v[i]);
    return most;
}

// ---- half precision and bfloat16

INLINE float from_half(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 value;
    std::memcpy(&value, &h, 2);
    return value;
#else
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu, bits;
    float value;
    if (rest >= 0x7c00u) {
        bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    } else {  // a subnormal becomes right by a multiplication
        bits = rest << 13;
        std::memcpy(&value, &bits, 4);
        value *= 5.192296858534828e33f;  // 2^112
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    }
    std::memcpy(&value, &bits, 4);
    return value;
#endif
}

INLINE uint16_t to_half(float x) {
#if defined(__F16C__)
    return _cvtss_sh(x, 0);
#elif defined(__aarch64__)
    __fp16 value = x;
    uint16_t bits;
    std::memcpy(&bits, &value, 2);
    return bits;
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7e00u;
    if (rest >= 0x47800000u) return sign | 0x7c00u;
    if (rest < 0x38800000u) {  // subnormal: let the addition round
        float value, magic = 0.5f;
        std::memcpy(&value, &rest, 4);
        value += magic;
        std::memcpy(&bits, &value, 4);
        return sign | (bits - 0x3f000000u);
    }
    rest += 0xc8000fffu + (rest >> 13 & 1);
    return sign | rest >> 13;
#endif
}

typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef uint8_t vc __attribute__((vector_size(W)));
typedef vh vh_loose __attribute__((aligned(2), may_alias));
typedef vc vc_loose __attribute__((aligned(1), may_alias));

INLINE vf widened(vh halves) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(halves)));
#elif defined(__AVX2__)
    return reinterpret_cast<vf>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(halves)));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
#else
    vf v;
    for (int i = 0; i < W; i++) v[i] = from_half(halves[i]);
    return v;
#endif
}

INLINE vf load_half(const uint16_t* p) { return widened(*reinterpret_cast<const vh_loose*>(p)); }

// A float8 e4m3fn, all of whose values a half has, as one with the same bits of exponent and fraction: it lacks a factor.
constexpr float FLOAT8 = 256;
INLINE uint16_t half_of_float8(int byte) { return uint16_t((byte & 127) << 7 | (byte & 128) << 8); }
INLINE vf load_float8(const uint8_t* p) {
    vh bytes = __builtin_convertvector(*reinterpret_cast<const vc_loose*>(p), vh);
    return widened((bytes & 127) << 7 | (bytes & 128) << 8);
}

INLINE vf load_bfloat(const uint16_t* p) {
    typedef uint32_t vu __attribute__((vector_size(W * 4)));
    return reinterpret_cast<vf>(__builtin_convertvector(*reinterpret_cast<const vh_loose*>(p), vu) << 16);
}

INLINE vf load_int8(const int8_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const vb_loose*>(p), vf);
}

// ---- functions

// Cephes' expf: 2 units in the last place, over the whole range; below -87 it is 0.
INLINE vf vexp(vf x) {
    vf clipped = vmin(vmax(x, splat(-87.3f)), splat(88.3f));
    vf turns = clipped * 1.44269504088896341f;
    vf whole = (turns + 12582912.0f) - 12582912.0f;  // rounded to the nearest
    vf rest = fused(whole, splat(-0.693359375f), clipped);
    rest = fused(whole, splat(2.12194440e-4f), rest);
    vf y = splat(1.9875691500e-4f);
    y = fused(y, rest, splat(1.3981999507e-3f));
    y = fused(y, rest, splat(8.3334519073e-3f));
    y = fused(y, rest, splat(4.1665795894e-2f));
    y = fused(y, rest, splat(1.6666665459e-1f));
    y = fused(y, rest, splat(5.0000001201e-1f));
    y = fused(y * rest, rest, rest) + 1.0f;
    vi power = (__builtin_convertvector(whole, vi) + 127) << 23;
    vf result = y * reinterpret_cast<vf>(power);
    return x < splat(-87.3f) ? vf{} : result;
}

INLINE vf vsilu(vf x) { return x / (vexp(-x) + 1.0f); }

INLINE vf vtanh(vf x) {
    vf e = vexp(vmin(vmax(x, splat(-10.0f)), splat(10.0f)) * 2.0f);
    return (e - 1.0f) / (e + 1.0f);
}

// Abramowitz and Stegun, 7.1.26: within 1.5e-7.
INLINE vf verf(vf x) {
    vf size = vabs(x), t = 1.0f / (size * 0.3275911f + 1.0f), y = splat(1.061405429f);
    y = fused(y, t, splat(-1.453152027f));
    y = fused(y, t, splat(1.421413741f));
    y = fused(y, t, splat(-0.284496736f));
    y = fused(y, t, splat(0.254829592f));
    y = 1.0f - y * t * vexp(-size * size);
    return x < vf{} ? -y : y;
}

INLINE vf vgelu(vf x) {  // the tanh approximation
    return x * 0.5f * (vtanh((x + x * x * x * 0.044715f) * 0.7978845608028654f) + 1.0f);
}
