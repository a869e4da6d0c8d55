// Keys and values in pages of cells, a cell for each position. Keys of 16 consecutive positions lie transposed, [dimension][position],
// values [position][dimension].
#pragma once

#include "product.h"

enum Store : int { KEEP_F32, KEEP_F16, KEEP_I8 };

INLINE uint16_t clipped(float x) {  // a value beyond float16 would become infinite, and then not a number
    if (!std::isfinite(x)) return to_half(x);
    return to_half(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

struct Seen;

// What a group of layers keeps of sequences.
struct Kept {
    const int page;  // positions of a page

    explicit Kept(int page) : page(page) {}
    virtual ~Kept() = default;
    virtual const Seen* seen() const { return nullptr; }  // itself, if that is what attention reads
};

// What queries of `heads` heads see. Those of a bunch are computed together: the heads that share a key, or some of those that
// share all of them. A query has `asks` numbers, and gets `dim`, which are `width` when filled up to whole vectors.
struct Seen : Kept {
    const int heads, bunches, asks, dim, width;
    const int window;    // 0: none
    bool ahead = false;  // a query sees all of its text, or with a window so many positions before its own and as many behind it
    bool fixed = false;  // what an encoder left: a page is an entry, and a query sees all of it

    Seen(int heads, int bunches, int asks, int dim, int window, int page)
        : Kept(page), heads(heads), bunches(bunches), asks(asks), dim(dim), width((dim + TILE - 1) / TILE * TILE), window(window) {}
    const Seen* seen() const override { return this; }
    int repeat() const { return heads / bunches; }
    int state() const { return width + TILE; }  // floats of a query's state, see `clear`
    // A query at a position sees [oldest, end) of its text.
    int oldest(int position) const { return window ? std::max(0, position - window + (ahead ? 0 : 1)) : 0; }
    int end(int position, int text) const {
        return !ahead ? position + 1 : window ? std::min(text, position + window + 1) : text;
    }
};

// Keys and values of one group of layers. Pages are multiples of 16 positions.
struct Cells : Seen {
    const Store store;
    const int layers, kv_heads;
    float cap = 0;                            // scores become cap * tanh(score / cap); 0: they do not
    std::vector<float> slopes;                // of each query head, what a score loses with each position of distance; none: nothing
    size_t cells;
    uint8_t *keys, *values;
    float *key_scales, *value_scales;  // of KEEP_I8: [layer, kv_head, cell]

    Cells(Store store, int layers, int heads, int kv_heads, int dim, int window, int page)
        : Seen(heads, kv_heads, dim, dim, window, page), store(store), layers(layers), kv_heads(kv_heads), cells(0), keys(nullptr),
          values(nullptr), key_scales(nullptr), value_scales(nullptr) {}

    ~Cells() override { free(); }

    size_t item() const { return store == KEEP_F32 ? 4 : store == KEEP_F16 ? 2 : 1; }
    size_t bytes() const { return size_t(layers) * kv_heads * cells * width * item(); }
    size_t scale_bytes() const { return store == KEEP_I8 ? size_t(layers) * kv_heads * cells * 4 : 0; }

    bool allocate(size_t pages) {
        free();
        cells = pages * page;
        keys = static_cast<uint8_t*>(Weights::take(bytes(), false)), values = static_cast<uint8_t*>(Weights::take(bytes(), false));
        if (scale_bytes()) {
            key_scales = static_cast<float*>(Weights::take(scale_bytes(), false));
            value_scales = static_cast<float*>(Weights::take(scale_bytes(), false));
        }
        if (keys && values && (!scale_bytes() || (key_scales && value_scales))) return true;
        free();
        return false;
    }

    void free() {
        Weights::give(keys, bytes()), Weights::give(values, bytes());
        Weights::give(key_scales, scale_bytes()), Weights::give(value_scales, scale_bytes());
        keys = values = nullptr, key_scales = value_scales = nullptr, cells = 0;
    }

    size_t place(int layer, int head, size_t cell) const { return (size_t(layer) * kv_heads + head) * cells + cell; }

    // One position's key and value of one head.
    void write(int layer, int head, size_t cell, const float* key, const float* value) {
        size_t at = place(layer, head, cell), lane = at % TILE;
        size_t tile = (at - lane) * width;  // of keys, in elements
        switch (store) {
            case KEEP_F32: {
                float* k = reinterpret_cast<float*>(keys) + tile + lane;
                float* v = reinterpret_cast<float*>(values) + at * width;
                for (int d = 0; d < dim; d++) k[d * TILE] = key[d], v[d] = value[d];
                break;
            }
            case KEEP_F16: {
                uint16_t* k = reinterpret_cast<uint16_t*>(keys) + tile + lane;
                uint16_t* v = reinterpret_cast<uint16_t*>(values) + at * width;
                for (int d = 0; d < dim; d++) k[d * TILE] = clipped(key[d]), v[d] = clipped(value[d]);
                break;
            }
            case KEEP_I8: {
                int8_t* k = reinterpret_cast<int8_t*>(keys) + tile + lane;
                int8_t* v = reinterpret_cast<int8_t*>(values) + at * width;
                float k_most = 0, v_most = 0;
                for (int d = 0; d < dim; d++) k_most = std::max(k_most, std::fabs(key[d])), v_most = std::max(v_most, std::fabs(value[d]));
                // What is not finite must be found out by whoever samples, not turned into numbers.
                float k_scale = k_most / 127, v_scale = v_most / 127;
                float k_inverse = k_scale > LEAST ? 1 / k_scale : 0, v_inverse = v_scale > LEAST ? 1 / v_scale : 0;
                bool sound = true;
                for (int d = 0; d < dim; d++) {
                    sound &= std::isfinite(key[d]) && std::isfinite(value[d]);
                    k[d * TILE] = sound ? int8_t(std::lrint(key[d] * k_inverse)) : 0;
                    v[d] = sound ? int8_t(std::lrint(value[d] * v_inverse)) : 0;
                }
                key_scales[at] = sound ? k_scale : NAN, value_scales[at] = sound ? v_scale : NAN;
                break;
            }
        }
    }

};
