// Weights as products read them: tiles of 16 outputs, within a tile runs of inputs, in the checkpoint's own precision.
//
// A block of a quantised tile is `group` inputs of its 16 outputs: the values in the order in which dot products of four
// take them (four inputs of each output, then the next four), behind them 16 float16 scales and, where there are any, 16
// float16 minima. U4 holds two inputs in a byte, input i and input 16 + i of 32; a value v means scale * v + minimum, or
// scale * (v - 8) without minima. I8 holds value + 128 and means scale * value (+ minimum). A group of more than 32 inputs is as
// many runs of 32 with their scales at the end. Where minima are multiples of scales, those are kept (zeros). `wide` scales and
// minima are float32: those that float16 does not have.
//
// T4 is U4 whose values are codes into a table of 16 integers, of 8 bits or where those are not exact of 15; in groups of 16, inputs
// i and 8 + i share a byte. E4M3 holds a float8 each, 16 outputs of an input side by side, and scales behind each group; it is
// multiplied as floats. A tile of floats is its inputs one after the other, 16 outputs each.
#pragma once

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

enum Kind : int { F32, F16, BF16, U4, I8, T4, E4M3 };
enum Minima : int { NONE, MINIMA, ZEROS };

// The forms that rows come in; numbers as in GGUF files.
enum Form : int {
    FORM_F32 = 0,
    FORM_F16 = 1,
    FORM_Q4_0 = 2,
    FORM_Q4_1 = 3,
    FORM_Q5_0 = 6,
    FORM_Q5_1 = 7,
    FORM_Q8_0 = 8,
    FORM_Q4_K = 12,
    FORM_Q5_K = 13,
    FORM_Q6_K = 14,
    FORM_BF16 = 30,
};

struct Weights {
    Kind kind;
    int group;       // inputs that share a scale
    Minima minima;
    bool wide;
    int outs, ins;   // ins is a multiple of group
    int tiles;       // of 16 outputs, the last one perhaps filled up with zeros
    size_t values;   // bytes of a group of a tile without its scales
    size_t block;    // bytes of a group of a tile; of floats, of one input
    size_t bytes;    // of all
    bool fine;       // whether a value of T4 is 128 times its first integer plus its second
    float unit;      // what its integers are multiples of, besides their scales
    uint8_t tables[2][16];  // 128 + the integers
    uint8_t* data;

    Weights(Kind kind, int group, Minima minima, bool wide, int outs, int ins)
        : kind(kind), group(group), minima(minima), wide(wide), outs(outs), ins(ins), tiles((outs + TILE - 1) / TILE) {
        if (!grouped()) this->group = 1;
        switch (kind) {
            case F32: values = TILE * 4; break;
            case F16:
            case BF16: values = TILE * 2; break;
            case U4:
            case T4: values = size_t(TILE) * group / 2; break;
            case I8:
            case E4M3: values = size_t(TILE) * group; break;
        }
        block = values + (grouped() ? TILE * scale_bytes() * (1 + (minima != NONE)) : 0);
        bytes = size_t(tiles) * stride();
        data = static_cast<uint8_t*>(take(bytes));
    }

    ~Weights() { give(data, bytes); }

    bool quantised() const { return kind == U4 || kind == I8 || kind == T4; }  // multiplied as integers
    bool grouped() const { return kind >= U4; }                  // has scales
    size_t scale_bytes() const { return wide ? 4 : 2; }
    int groups() const { return ins / group; }
    size_t stride() const { return block * groups(); }
    const uint8_t* tile(int index) const { return data + index * stride(); }

    // Zeroed memory that takes no room before it is written. With `whole`, because all of it will be, in large pages where the
    // system has them: each is one entry of the processor's table of addresses instead of 512.
    static void* take(size_t bytes, bool whole = true) {
#if defined(__linux__)
        void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) return nullptr;
        madvise(place, bytes, whole ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        return place;
#else
        (void)whole;
        void* place = nullptr;
        if (posix_memalign(&place, 64, bytes)) return nullptr;
        std::memset(place, 0, bytes);
        return place;
#endif
    }

    static void give(void* place, size_t bytes) {
        if (!place) return;
#if defined(__linux__)
        munmap(place, bytes);
#else
        std::free(place);
#endif
    }
};

// ---- rows of a checkpoint, a group at a time

struct Group {
    int values[32];
    float scale, minimum;
};

INLINE float half_at(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return from_half(bits);
}

// The six-bit scale and minimum of sub-block j of Q4_K and Q5_K.
INLINE void scale_and_minimum(const uint8_t* packed, int j, int& scale, int& minimum) {
    if (j < 4) {
        scale = packed[j] & 63;
        minimum = packed[j + 4] & 63;
    } else {
        scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        minimum = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
    }
}

inline void read_group(Form form, const uint8_t* row, int g, Group& out) {
    out.minimum = 0;
    switch (form) {
        case FORM_Q4_0: {
            const uint8_t* b = row + g * 18;
            out.scale = half_at(b);
            for (int i = 0; i < 16; i++) out.values[i] = b[2 + i] & 15, out.values[16 + i] = b[2 + i] >> 4;
            break;
        }
        case FORM_Q4_1: {
            const uint8_t* b = row + g * 20;
            out.scale = half_at(b), out.minimum = half_at(b + 2);
            for (int i = 0; i < 16; i++) out.values[i] = b[4 + i] & 15, out.values[16 + i] = b[4 + i] >> 4;
            break;
        }
        case FORM_Q5_0:
        case FORM_Q5_1: {
            bool minima = form == FORM_Q5_1;
            const uint8_t* b = row + g * (minima ? 24 : 22);
            out.scale = half_at(b);
            if (minima) out.minimum = half_at(b + 2);
            const uint8_t* high = b + (minima ? 4 : 2);
            uint32_t bits;
            std::memcpy(&bits, high, 4);
            int zero = minima ? 0 : 16;
            for (int i = 0; i < 16; i++) {
                out.values[i] = ((high[4 + i] & 15) | (bits >> i & 1) << 4) - zero;
                out.values[16 + i] = (high[4 + i] >> 4 | (bits >> (16 + i) & 1) << 4) - zero;
            }
            break;
        }
        case FORM_Q8_0: {
            const uint8_t* b = row + g * 34;
            out.scale = half_at(b);
            for (int i = 0; i < 32; i++) out.values[i] = int8_t(b[2 + i]);
            break;
        }
        case FORM_Q4_K:
        case FORM_Q5_K: {
            bool five = form == FORM_Q5_K;
            const uint8_t* b = row + g / 8 * (five ? 176 : 144);
            int j = g % 8, scale, minimum;
            scale_and_minimum(b + 4, j, scale, minimum);
            out.scale = half_at(b) * scale, out.minimum = -half_at(b + 2) * minimum;
            const uint8_t* high = b + 16;
            const uint8_t* low = b + (five ? 48 : 16) + j / 2 * 32;
            for (int i = 0; i < 32; i++) {
                out.values[i] = j % 2 ? low[i] >> 4 : low[i] & 15;
                if (five) out.values[i] |= (high[i] >> j & 1) << 4;
            }
            break;
        }
        case FORM_Q6_K: {  // groups of 16
            const uint8_t* b = row + g / 16 * 210;
            int part = g % 16, half = part / 8, quarter = part % 8 / 2, first = part % 2 * 16;
            const uint8_t* low = b + half * 64 + quarter % 2 * 32 + first;
            const uint8_t* high = b + 128 + half * 32 + first;
            out.scale = half_at(b + 208) * int8_t(b[192 + part]);
            for (int i = 0; i < 16; i++) {
                int four = quarter < 2 ? low[i] & 15 : low[i] >> 4;
                out.values[i] = (four | (high[i] >> (2 * quarter) & 3) << 4) - 32;
            }
            break;
        }
        default: break;
    }
}

// A group of plain numbers, rounded: to 4 bits with a minimum, or to 8 without.
inline void round_group(const float* x, Kind kind, Group& out) {
    float low = x[0], high = x[0], most = 0;
    for (int i = 0; i < 32; i++) low = std::min(low, x[i]), high = std::max(high, x[i]), most = std::max(most, std::fabs(x[i]));
    if (kind == U4) {
        out.minimum = from_half(to_half(low)), out.scale = from_half(to_half((high - out.minimum) / 15));
        float inverse = out.scale ? 1 / out.scale : 0;
        for (int i = 0; i < 32; i++) out.values[i] = std::clamp(int(std::lrint((x[i] - out.minimum) * inverse)), 0, 15);
    } else {
        out.minimum = 0, out.scale = from_half(to_half(most / 127));
        float inverse = out.scale ? 1 / out.scale : 0;
        for (int i = 0; i < 32; i++) out.values[i] = std::clamp(int(std::lrint(x[i] * inverse)), -127, 127);
    }
}

// Bytes of a row of the checkpoint; 0 if its blocks are not whole, or nobody knows the form.
inline size_t row_bytes(Form form, int ins) {
    bool super = form == FORM_Q4_K || form == FORM_Q5_K || form == FORM_Q6_K;
    bool plain = form == FORM_F32 || form == FORM_F16 || form == FORM_BF16;
    if (!plain && ins % (super ? 256 : 32)) return 0;
    switch (form) {
        case FORM_F32: return size_t(ins) * 4;
        case FORM_F16:
        case FORM_BF16: return size_t(ins) * 2;
        case FORM_Q4_0: return size_t(ins) / 32 * 18;
        case FORM_Q4_1: return size_t(ins) / 32 * 20;
        case FORM_Q5_0: return size_t(ins) / 32 * 22;
        case FORM_Q5_1: return size_t(ins) / 32 * 24;
        case FORM_Q8_0: return size_t(ins) / 32 * 34;
        case FORM_Q4_K: return size_t(ins) / 256 * 144;
        case FORM_Q5_K: return size_t(ins) / 256 * 176;
        case FORM_Q6_K: return size_t(ins) / 256 * 210;
    }
    return 0;
}

// Where in a group of a tile the value of input i of a lane is; U4 and T4 have two there.
INLINE size_t place_of(const Weights& w, int lane, int i) {
    switch (w.kind) {
        case U4:
        case T4: {
            int half = std::min(w.group, 32) / 2;
            return i / (2 * half) * (TILE * half) + i % half / 4 * 64 + lane * 4 + i % 4;
        }
        case I8: return i / 4 * 64 + lane * 4 + i % 4;
        default: return size_t(i) * TILE + lane;
    }
}

INLINE void put_scales(const Weights& w, uint8_t* block, int lane, float scale, float minimum) {
    const float both[] = {scale, minimum};
    for (int which = 0; which < 1 + (w.minima != NONE); which++) {
        uint8_t* target = block + w.values + (which * TILE + lane) * w.scale_bytes();
        uint16_t half = to_half(both[which]);
        if (w.wide) std::memcpy(target, &both[which], 4);
        else std::memcpy(target, &half, 2);
    }
}

INLINE float scale_at(const Weights& w, const uint8_t* block, int lane, int which) {
    const uint8_t* p = block + w.values + (which * TILE + lane) * w.scale_bytes();
    if (!w.wide) return half_at(p);
    float scale;
    std::memcpy(&scale, p, 4);
    return scale;
}

inline uint8_t* block_of(const Weights& w, int out, int g) { return const_cast<uint8_t*>(w.tile(out / TILE)) + g * w.block; }

inline void put_group(Weights& w, int out, int g, const Group& from) {
    uint8_t* block = block_of(w, out, g);
    int lane = out % TILE;
    for (int i = 0; i < (w.kind == U4 ? 16 : w.group); i++)
        block[place_of(w, lane, i)] = uint8_t(w.kind == U4 ? from.values[i] | from.values[16 + i] << 4 : from.values[i] + 128);
    put_scales(w, block, lane, from.scale, from.minimum);
}

// Output `out` from codes as the kinds of quantised weights have them: those of 4 bits two to a byte, the even input in the low
// nibble; a float32 scale of each group and, with zeros, what is added to its values.
inline void put_codes(Weights& w, int out, const uint8_t* codes, const float* scales, const float* zeros) {
    int lane = out % TILE;
    auto four = [&](int i) { return codes[i / 2] >> (i % 2 * 4) & 15; };
    for (int g = 0; g < w.groups(); g++) {
        uint8_t* block = block_of(w, out, g);
        for (int i = 0; i < w.group; i++) {
            int input = g * w.group + i;
            uint8_t& place = block[place_of(w, lane, i)];
            if (w.kind == U4 || w.kind == T4) {
                int half = std::min(w.group, 32) / 2;
                if (i / half % 2 == 0) place = uint8_t(four(input) | four(input + half) << 4);
            } else {
                place = codes[input];
            }
        }
        put_scales(w, block, lane, scales[g] * (w.kind == E4M3 ? FLOAT8 : 1.0f), zeros ? zeros[g] : 0);
    }
}

// Output `out` as output `row` of others of the same kind.
inline void copy_row(Weights& w, int out, const Weights& from, int row) {
    const int to = out % TILE, at = row % TILE;
    const size_t item = w.kind == F32 ? 4 : w.grouped() ? 1 : 2, scale = w.scale_bytes();
    for (int g = 0; g < w.groups(); g++) {
        uint8_t* target = block_of(w, out, g);
        const uint8_t* source = block_of(from, row, g);
        for (int i = 0; i < w.group; i++) std::memcpy(target + place_of(w, to, i) * item, source + place_of(w, at, i) * item, item);
        for (int which = 0; w.grouped() && which < 1 + (w.minima != NONE); which++)
            std::memcpy(target + w.values + (which * TILE + to) * scale, source + w.values + (which * TILE + at) * scale, scale);
    }
}

// Output `out` of the weights from one row of the checkpoint.
inline void put_row(Weights& w, int out, Form form, const uint8_t* row) {
    if (w.quantised()) {
        Group group;
        for (int g = 0; g < w.groups(); g++) {
            if (form == FORM_F32)
                round_group(reinterpret_cast<const float*>(row) + g * 32, w.kind, group);
            else
                read_group(form, row, g, group);
            put_group(w, out, g, group);
        }
        return;
    }
    size_t item = w.kind == F32 ? 4 : 2;
    uint8_t* target = const_cast<uint8_t*>(w.tile(out / TILE)) + out % TILE * item;
    for (int i = 0; i < w.ins; i++) std::memcpy(target + i * w.block, row + i * item, item);
}

// What input i of a group of a lane stands for, before its scale.
INLINE float value_at(const Weights& w, const uint8_t* block, int lane, int i) {
    int byte = block[place_of(w, lane, i)], four = i / (std::min(w.group, 32) / 2) % 2 ? byte >> 4 : byte & 15;
    switch (w.kind) {
        case U4: return float(four - (w.minima ? 0 : 8));
        case I8: return float(byte - 128);
        case T4: return float((w.tables[0][four] - 128) * (w.fine ? 128 : 1) + (w.fine ? w.tables[1][four] - 128 : 0)) * w.unit;
        default: return from_half(half_of_float8(byte));
    }
}

// One output's weights as floats, times `factor`: a row of an embedding.
inline void read_row(const Weights& w, int out, float factor, float* target) {
    const uint8_t* tile = w.tile(out / TILE);
    int lane = out % TILE;
    if (w.grouped()) {
        for (int g = 0; g < w.groups(); g++, tile += w.block) {
            float scale = scale_at(w, tile, lane, 0) * factor, low = w.minima ? scale_at(w, tile, lane, 1) : 0;
            float zero = w.minima == ZEROS ? low : 0, minimum = w.minima == MINIMA ? low * factor : 0;
            for (int i = 0; i < w.group; i++) target[g * w.group + i] = scale * (value_at(w, tile, lane, i) + zero) + minimum;
        }
        return;
    }
    for (int i = 0; i < w.ins; i++, tile += w.block) {
        if (w.kind == F32) {
            std::memcpy(target + i, tile + lane * 4, 4);
        } else {
            uint16_t bits;
            std::memcpy(&bits, tile + lane * 2, 2);
            uint32_t wide = uint32_t(bits) << 16;
            if (w.kind == F16)
                target[i] = from_half(bits);
            else
                std::memcpy(target + i, &wide, 4);
        }
        target[i] *= factor;
    }
}
