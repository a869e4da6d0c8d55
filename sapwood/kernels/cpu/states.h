// Recurrences: what a layer keeps is one thing, made anew by every token. Convolutions over the last tokens, and scans of matrices
// that decay (Mamba-2, Dao and Gu, 2024) or in which what lies under a key is replaced (gated delta nets, Yang et al., 2024).
//
// A row's tokens are taken one after the other from the state that it begins with, so nothing depends on how it is cut. Threads
// share channels and heads.
#pragma once

#include "stack.h"

// States of one group of layers, for each of their shapes [layer][cell][size], in memory of whoever made them. A page has so many
// `cells`: that of position p is cell p % cells of its page.
struct States : Kept {
    struct Shape { float* kept; size_t size; };

    const int cells;
    size_t total = 0;  // cells of all pages
    std::vector<Shape> shapes;

    States(int page, int cells) : Kept(page), cells(cells) {}
    float* at(int index, int layer, size_t cell) const { return shapes[index].kept + (layer * total + cell) * shapes[index].size; }
};

// A row's tokens in a step: where the state is that it begins with, and where those go that it leaves.
struct Course {
    const States& states;
    const int32_t* table;
    int first, start, count, left;  // the last `left` tokens leave theirs

    Course(const States& states, const Step& step, int group, int row)
        : states(states), table(step.tables[group] + step.slots[row] * step.strides[group]), first(step.offsets[row]),
          start(step.starts[row]), count(step.counts[row]) {
        left = std::min(count, std::max(1, step.heads ? int(step.heads[row]) : 1));
    }

    const float* before(int index, int layer) const { return start ? states.at(index, layer, cell(start - 1)) : nullptr; }
    float* behind(int i, int index, int layer) const {
        return i >= count - left ? states.at(index, layer, cell(start + i)) : nullptr;
    }

private:
    size_t cell(int position) const { return size_t(table[position / states.page]) * states.cells + position % states.cells; }
};

constexpr int MOST_TAPS = 8;

// A convolution of each channel by itself over its last `width` inputs. Weights are [width][channels], the rows filled up to whole
// chunks, and so is the bias. What is kept is [channel][width - 1], the oldest first.
struct Taps {
    const float *weights, *bias;
    int channels, width, group, layer;

    // CHUNK channels of a row from `begin` on: take(i, inputs) says what token i has, give(i, outputs) is told what becomes of it.
    template <class Take, class Give>
    void run(const Course& row, int begin, Take&& take, Give&& give) const {
        const int some = std::min(CHUNK, channels - begin), past = width - 1, padded = (channels + CHUNK - 1) / CHUNK * CHUNK;
        float inputs[MOST_TAPS][CHUNK] = {}, outputs[CHUNK];
        if (const float* kept = row.before(0, layer))
            for (int c = 0; c < some; c++)
                for (int w = 0; w < past; w++) inputs[w][c] = kept[size_t(begin + c) * past + w];
        for (int i = 0; i < row.count; i++) {
            take(i, inputs[past], some);
            for (int c = 0; c < CHUNK; c += W) {
                vf total = bias ? load(bias + begin + c) : vf{};
                for (int w = 0; w < width; w++)
                    total = fused(load(weights + size_t(w) * padded + begin + c), load(inputs[w] + c), total);
                store(outputs + c, total);
            }
            give(i, outputs, some);
            if (float* kept = row.behind(i, 0, layer))
                for (int c = 0; c < some; c++)
                    for (int w = 0; w < past; w++) kept[size_t(begin + c) * past + w] = inputs[w + 1][c];
            std::memmove(inputs[0], inputs[1], size_t(past) * CHUNK * 4);
        }
    }
};

// work(row, chunk) for every row and so many chunks.
template <class Work>
INLINE void each_course(const Pass& pass, int group, int chunks, Work&& work) {
    const States& states = static_cast<const States&>(*pass.groups[group]);
    pass.machine.pool.share(pass.step.num_rows * chunks, [&](int unit) {
        const Course row(states, pass.step, group, unit / chunks);
        if (row.count) work(row, unit % chunks);
    });
}

// x = C * conv(B * x), where the rows of buffer `from` are B, C and x.
struct ShortConv : Op {
    const Taps taps;
    const int from;

    ShortConv(const Taps& taps, int from) : taps(taps), from(from) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override { room.buffer(from, size_t(3) * taps.channels), Room::grow(room.inner, wanted.ins); }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        const int size = taps.channels;
        const Rows rows = m.inner.reserve(pass.step.num_tokens, wanted.ins, wanted.bytes);
        each_course(pass, taps.group, (size + CHUNK - 1) / CHUNK, [&](const Course& row, int chunk) {
            const int begin = chunk * CHUNK;
            const float* all = pass.buffers[from] + size_t(row.first) * 3 * size + begin;
            taps.run(
                row, begin,
                [&](int i, float* inputs, int some) {
                    const float *b = all + size_t(i) * 3 * size, *x = b + 2 * size;
                    for (int c = 0; c < some; c++) inputs[c] = b[c] * x[c];
                },
                [&](int i, float* outputs, int some) {
                    const float* factors = all + size_t(i) * 3 * size + size;
                    for (int c = 0; c < some; c++) outputs[c] *= factors[c];
                    if (wanted.bytes) quantise(rows, row.first + i, wanted.ins, chunk, outputs);
                    if (wanted.floats) std::memcpy(rows.floats + size_t(row.first + i) * wanted.ins + begin, outputs, some * 4);
                });
        });
        m.pool.barrier();
        pass.x = rows;
    }
};

// Buffer `to` = silu(conv) of columns from `first` on of buffer `from`, whose rows are `wide`.
struct ConvColumns : Op {
    const Taps taps;
    const int from, wide, first, to;

    ConvColumns(const Taps& taps, int from, int wide, int first, int to) : taps(taps), from(from), wide(wide), first(first), to(to) {}
    void reserve(Room& room) const override { room.buffer(from, wide), room.buffer(to, taps.channels); }
    void run(Pass& pass) const override {
        each_course(pass, taps.group, (taps.channels + CHUNK - 1) / CHUNK, [&](const Course& row, int chunk) {
            const int begin = chunk * CHUNK;
            const float* source = pass.buffers[from] + size_t(row.first) * wide + first + begin;
            float* target = pass.buffers[to] + size_t(row.first) * taps.channels + begin;
            taps.run(
                row, begin,
                [&](int i, float* inputs, int some) { std::memcpy(inputs, source + size_t(i) * wide, some * 4); },
                [&](int i, float* outputs, int some) {
                    for (int c = 0; c < CHUNK; c += W) store(outputs + c, vsilu(load(outputs + c)));
                    std::memcpy(target + size_t(i) * taps.channels, outputs, some * 4);
                });
        });
        pass.machine.pool.barrier();
    }
};

// How a scan's heads become what they keep, [head][key][value], and what that yields. Columns of the convolution's outputs: those of
// queries and keys, `key_size` for each of so many `groups` of heads, and of values, `value_size` for each head. Columns of what went
// into it: the steps' of each head, those that say how much is replaced (`beta`; -1 where values are added), and the gate's.
struct Scan {
    const float *bias, *rates;  // of each head: the step is softplus(step + bias), by which it decays at this rate
    const float* skip;          // of each head: how much of the value is added; null: nothing
    Norm norm;                  // of `parts` runs of what all heads yield, one weight for each column; or none
    int heads, groups, key_size, value_size, parts;
    int query, key, value, step, beta, gate;
    int gates_first;            // before the norm, not after
    float low, high;            // limits of steps
    int group, layer;
};

// x = a scan of the convolution's outputs in buffer `conv` and of buffer `from`, whose rows are `wide`. Buffers from `own` on are
// room.
struct ScanHeads : Op {
    const Scan how;
    const int from, wide, conv, channels, own, size;

    ScanHeads(const Scan& how, int from, int wide, int conv, int channels, int own)
        : how(how), from(from), wide(wide), conv(conv), channels(channels), own(own), size(how.heads * how.value_size) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override {
        room.buffer(from, wide), room.buffer(conv, channels), room.buffer(own, size), room.buffer(own + 1, size_t(2) * how.heads);
        Room::grow(room.wide, wanted.ins), Room::grow(room.scanned, size_t(how.key_size) * (CHUNK + 2));
    }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        each_course(pass, how.group, how.heads, [&](const Course& row, int head) { scan(pass, row, head); });
        m.pool.barrier();
        pass.x = m.rows_for(pass.id, wanted, pass.step.num_tokens, m.wide, false, [&](int t, float* out) {
            const float* gate = pass.buffers[from] + size_t(t) * wide + how.gate;
            std::memcpy(out, pass.buffers[own] + size_t(t) * size, size * 4);
            if (how.gates_first) gate_by<true>(out, gate, size);
            const int run = size / how.parts;
            for (int part = 0; part < how.parts; part++) {
                Norm norm = how.norm;
                if (norm.weight) norm.weight += part * run;
                normed(out + part * run, norm, run, out + part * run);
            }
            if (!how.gates_first) gate_by<true>(out, gate, size);
        });
    }

private:
    // What a token's head decays by, and the step, or how much is replaced.
    void weigh(const float* row, int head, float* both) const {
        const float x = row[how.step + head] + how.bias[head];
        const float step = std::min(std::max(x > 20 ? x : std::log1p(std::exp(x)), how.low), how.high);
        both[0] = std::exp(how.rates[head] * step);
        both[1] = how.beta < 0 ? step : 1.0f / (1.0f + std::exp(-row[how.beta + head]));
    }

    // A query or key, made to have length 1 and then a factor where values are replaced.
    INLINE void read(const float* x, float factor, float* out) const {
        const int keys = how.key_size;
        float by = 1;
        if (how.beta >= 0) {
            vf squares{};
            int k = 0;
            for (; k + W <= keys; k += W) squares += load(x + k) * load(x + k);
            float total = sum(squares);
            for (; k < keys; k++) total += x[k] * x[k];
            by = factor / std::sqrt(total + 1e-6f);
        }
        for (int k = 0; k < keys; k++) out[k] = x[k] * by;
    }

    void scan(Pass& pass, const Course& row, int head) const {
        const int keys = how.key_size, values = how.value_size, group = head / (how.heads / how.groups);
        float *state = pass.machine.scanned[pass.id].data, *query = state + size_t(keys) * CHUNK, *key = query + keys;
        float* weights = pass.buffers[own + 1] + (size_t(row.first) * how.heads + head) * 2;
        for (int i = 0; i < row.count; i++)
            weigh(pass.buffers[from] + size_t(row.first + i) * wide, head, weights + size_t(i) * 2 * how.heads);
        const size_t place = size_t(head) * keys * values;
        const float* before = row.before(1, how.layer);
        for (int begin = 0; begin < values; begin += CHUNK) {
            const int some = std::min(CHUNK, values - begin);
            std::memset(state, 0, size_t(keys) * CHUNK * 4);
            for (int k = 0; before && k < keys; k++)
                std::memcpy(state + k * CHUNK, before + place + size_t(k) * values + begin, some * 4);
            for (int i = 0; i < row.count; i++) {
                const float* inputs = pass.buffers[conv] + size_t(row.first + i) * channels;
                float value[CHUNK] = {}, out[CHUNK];
                std::memcpy(value, inputs + how.value + head * values + begin, some * 4);
                read(inputs + how.query + group * keys, 1 / std::sqrt(float(keys)), query);
                read(inputs + how.key + group * keys, 1, key);
                advance(state, query, key, value, weights + size_t(i) * 2 * how.heads, head, out);
                std::memcpy(pass.buffers[own] + size_t(row.first + i) * size + head * values + begin, out, some * 4);
                float* left = row.behind(i, 1, how.layer);
                for (int k = 0; left && k < keys; k++)
                    std::memcpy(left + place + size_t(k) * values + begin, state + k * CHUNK, some * 4);
            }
        }
    }

    // One token of CHUNK columns of a head's state.
    INLINE void advance(float* state, const float* query, const float* key, const float* value, const float* weights, int head,
                        float* out) const {
        constexpr int N = CHUNK / W;
        const int keys = how.key_size;
        const vf decay = splat(weights[0]);
        vf added[N], total[N] = {};
        for (int v = 0; v < N; v++) added[v] = load(value + v * W) * weights[1];
        if (how.beta >= 0) {  // less what lies under the key, as far as it is replaced
            vf found[N] = {};
            for (int k = 0; k < keys; k++)
                for (int v = 0; v < N; v++) found[v] = fused(load(state + k * CHUNK + v * W), splat(key[k]), found[v]);
            for (int v = 0; v < N; v++) added[v] = (load(value + v * W) - found[v] * decay) * weights[1];
        }
        for (int k = 0; k < keys; k++)
            for (int v = 0; v < N; v++) {
                float* at = state + k * CHUNK + v * W;
                const vf next = fused(added[v], splat(key[k]), load(at) * decay);
                store(at, next);
                total[v] = fused(next, splat(query[k]), total[v]);
            }
        for (int v = 0; v < N; v++)
            store(out + v * W, how.skip ? fused(load(value + v * W), splat(how.skip[head]), total[v]) : total[v]);
    }
};
