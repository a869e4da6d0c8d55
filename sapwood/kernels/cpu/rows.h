// What is done with a row between two products: norms, sums, rotations, activations.
#pragma once

#include "simd.h"

enum Activation : int { SILU, GELU_TANH, GELU, RELU, RELU2, SWIGLU_CLAMPED };

struct Norm {
    const float *weight, *bias;  // no weight: no norm; no bias: none
    float eps;
    int center;  // layer norm: of what differs from the mean
};

INLINE void normed(const float* x, const Norm& norm, int size, float* out) {
    if (!norm.weight) {
        if (out != x) std::memcpy(out, x, size * 4);
        return;
    }
    float mean = 0;
    if (norm.center) {
        vf all{};
        int i = 0;
        for (; i + W <= size; i += W) all += load(x + i);
        mean = sum(all);
        for (; i < size; i++) mean += x[i];
        mean /= size;
    }
    vf squares{};
    int i = 0;
    for (; i + W <= size; i += W) squares += (load(x + i) - mean) * (load(x + i) - mean);
    float total = sum(squares);
    for (int j = i; j < size; j++) total += (x[j] - mean) * (x[j] - mean);
    float inverse = 1.0f / std::sqrt(total / size + norm.eps);
    for (i = 0; i + W <= size; i += W) store(out + i, (load(x + i) - mean) * inverse * load(norm.weight + i));
    for (; i < size; i++) out[i] = (x[i] - mean) * inverse * norm.weight[i];
    if (!norm.bias) return;
    for (i = 0; i + W <= size; i += W) store(out + i, load(out + i) + load(norm.bias + i));
    for (; i < size; i++) out[i] += norm.bias[i];
}

INLINE void add_to(float* x, const float* y, int size) {
    int i = 0;
    for (; i + W <= size; i += W) store(x + i, load(x + i) + load(y + i));
    for (; i < size; i++) x[i] += y[i];
}

INLINE void turn(float* head, const float* cos, const float* sin, int half) {
    int i = 0;
    for (; i + W <= half; i += W) {
        vf low = load(head + i), high = load(head + half + i), c = load(cos + i), s = load(sin + i);
        store(head + i, low * c - high * s), store(head + half + i, high * c + low * s);
    }
    for (; i < half; i++) {
        float low = head[i], high = head[half + i];
        head[i] = low * cos[i] - high * sin[i], head[half + i] = high * cos[i] + low * sin[i];
    }
}

INLINE void turn_interleaved(float* head, const float* cos, const float* sin, int half) {
    for (int i = 0; i < half; i++) {
        float low = head[2 * i], high = head[2 * i + 1];
        head[2 * i] = low * cos[i] - high * sin[i], head[2 * i + 1] = high * cos[i] + low * sin[i];
    }
}

INLINE vf activate(vf v, int activation) {
    switch (activation) {
        case SILU: return vsilu(v);
        case GELU_TANH: return vgelu(v);
        case GELU: return v * 0.5f * (verf(v * 0.7071067811865476f) + 1.0f);
        case RELU: return vmax(v, vf{});
        default: return vmax(v, vf{}) * vmax(v, vf{});
    }
}

// x *= sigmoid(gate), or silu(gate) where SILU_TOO.
template <bool SILU_TOO>
INLINE void gate_by(float* x, const float* gate, int size) {
    for (int i = 0; i < size; i += W) {
        vf g{}, v{};
        const int some = std::min(W, size - i);
        std::memcpy(&g, gate + i, some * 4), std::memcpy(&v, x + i, some * 4);
        v *= SILU_TOO ? vsilu(g) : 1.0f / (vexp(-g) + 1.0f);
        std::memcpy(x + i, &v, some * 4);
    }
}

// What a gate makes of what it multiplies.
INLINE vf through_gate(vf gate, vf up, int activation) {
    if (activation != SWIGLU_CLAMPED) return activate(gate, activation) * up;
    gate = vmin(gate, splat(7.0f));
    up = vmin(vmax(up, splat(-7.0f)), splat(7.0f));
    return gate / (vexp(gate * -1.702f) + 1.0f) * (up + 1.0f);
}
