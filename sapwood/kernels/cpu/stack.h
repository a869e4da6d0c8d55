// A whole decoder, from token ids to the hidden states behind its last norm, as one job of all threads.
#pragma once

#include <new>

#include "attention.h"
#include "pool.h"

enum Activation : int { SILU, GELU_TANH };

struct Norm {
    const float* weight;  // null: none
    float eps;
};

// Products that share their input, one behind the other in the output. `biases` may be null.
struct Linear {
    std::vector<const Weights*> weights;
    std::vector<const float*> biases;
    int ins = 0, outs = 0;
    bool wants_bytes = false, wants_floats = false;

    void add(const Weights* w, const float* bias) {
        weights.push_back(w), biases.push_back(bias);
        ins = w->ins, outs += w->outs;
        (w->quantised() ? wants_bytes : wants_floats) = true;
    }
};

// What happens to a layer's heads.
struct Heads {
    Norm norm;               // weights [query heads | key heads][dim], or none
    const float *cos, *sin;  // [position][half], or [token][half] where `by_token`
    int half, by_token;
    int group, layer;        // which cells, which of their layers
    float scale;
};

struct Layer {
    Norm attention_norm, after_attention, mlp_norm, after_mlp;
    const Linear *qkv, *out, *gate_up, *down;
    Heads heads;
    int activation;
};

struct Step {
    int num_tokens, num_rows;
    const int64_t *ids, *positions;
    const int32_t *slots, *starts, *counts, *offsets;
    const int32_t* const* tables;  // per group: [slot][page]
    const int64_t* strides;        // per group: pages of a slot's row
    const int64_t* const* cells;   // per group, per token
    int num_runs;
    const int32_t *run_lows, *run_highs, *run_firsts, *run_sizes, *run_slots, *run_tokens;  // runs of positions that several tokens share
};

constexpr int CHUNK = 32;    // outputs that a thread takes at a time: a group of the next product's input
constexpr int STRIP = 64;    // rows whose outputs lie in the cache meanwhile
constexpr int BULK = 512;    // rows that a thread takes at a time

INLINE void normed(const float* x, const Norm& norm, int size, float* out) {
    vf squares{};
    int i = 0;
    for (; i + W <= size; i += W) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (int j = i; j < size; j++) total += x[j] * x[j];
    float inverse = 1.0f / std::sqrt(total / size + norm.eps);
    for (i = 0; i + W <= size; i += W) store(out + i, load(x + i) * inverse * load(norm.weight + i));
    for (; i < size; i++) out[i] = x[i] * inverse * norm.weight[i];
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

template <class T>
struct Buffer {  // grows, never shrinks, and is not cleared
    T* data = nullptr;
    size_t size = 0;
    T* reserve(size_t wanted) {
        if (wanted > size) {
            std::free(data);
            data = nullptr, size = 0;
            void* place = nullptr;
            if (posix_memalign(&place, 64, wanted * sizeof(T))) throw std::bad_alloc();
            data = static_cast<T*>(place), size = wanted;
        }
        return data;
    }
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
};

// Room for rows in the forms that products want.
struct RowsBuffer {
    Buffer<float> floats;
    Buffer<int8_t> bytes;
    Buffer<Scale> scales;
    bool fine = false;
    Rows reserve(int rows, int ins, bool wants_bytes) {
        Rows found;
        found.fine = fine;
        found.floats = floats.reserve(size_t(rows) * ins);
        if (wants_bytes) {
            found.bytes = bytes.reserve(size_t(rows) * ins * (fine ? 2 : 1));
            found.scales = scales.reserve(size_t(rows) * ((ins + 31) / 32));
        }
        return found;
    }
};

INLINE void prepare(const Linear& linear, const Rows& rows, int row) {
    if (linear.wants_bytes)
        for (int g = 0; g < linear.ins / 32; g++)
            quantise(rows, row, linear.ins, g, rows.floats + size_t(row) * linear.ins + g * 32);
}

// What the threads of one engine compute with: pool, and room that all products and stacks on it use one after the other.
struct Machine {
    Pool pool;
    RowsBuffer wide, inner;             // inputs of products: norms' and attention's outputs; the MLP's inner rows
    Buffer<float> residual, heads, attended, fresh;
    std::vector<RowsBuffer> own;        // of each thread, for a single row
    std::vector<AttendRoom> rooms;
    std::vector<Buffer<float>> strips;  // of each thread: two chunks of outputs
    std::vector<Attend> plans;          // per group

    // `fine`: integers of 12 bits for activations, instead of 8.
    Machine(int threads, bool fine) : pool(threads), own(pool.size), rooms(pool.size), strips(pool.size) {
        wide.fine = inner.fine = fine;
        for (auto& one : own) one.fine = fine;
        for (auto& strip : strips) strip.reserve(2 * STRIP * CHUNK);
    }

    // Room for the inputs of products, so wide at most, before any thread needs it: where memory runs out can only be told
    // before a job begins.
    void make_room(int rows, size_t ins) {
        int whole = int((ins + 31) / 32 * 32);
        wide.reserve(rows, whole, true);
        for (auto& room : own) room.reserve(1, whole, true);
    }

    // out[row * linear.outs + ...] = rows x linear, or += where `add`. To be called by all threads between barriers.
    void project(int id, const Linear& linear, const Rows& x, int rows, float* out, bool add) {
        float* strip = strips[id].data;
        int bulks = (rows + BULK - 1) / BULK, total = 0;
        for (const Weights* w : linear.weights) total += (w->outs + CHUNK - 1) / CHUNK;
        pool.share(bulks * total, [&](int unit) {
            int first = unit / total * BULK, last = std::min(first + BULK, rows), chunk = unit % total, column = 0;
            size_t which = 0;
            for (; chunk >= (linear.weights[which]->outs + CHUNK - 1) / CHUNK; which++) {
                chunk -= (linear.weights[which]->outs + CHUNK - 1) / CHUNK;
                column += linear.weights[which]->outs;
            }
            const Weights& w = *linear.weights[which];
            const float* bias = linear.biases[which];
            int begin = chunk * CHUNK, width = std::min(CHUNK, w.outs - begin);
            for (int row = first; row < last; row += STRIP) {
                int end = std::min(row + STRIP, last);
                for (int tile = 0; tile * TILE < width; tile++)
                    multiply(w, begin / TILE + tile, x, row, end, strip + tile * TILE, CHUNK);
                for (int r = row; r < end; r++) {
                    float* source = strip + (r - row) * CHUNK;
                    float* target = out + size_t(r) * linear.outs + column + begin;
                    if (bias) add_to(source, bias + begin, width);
                    if (add) add_to(target, source, width);
                    else std::memcpy(target, source, width * 4);
                }
            }
        });
    }

    // inner = activation(gate) * up, in the form that `down` wants. The two halves of `gate_up` are its two weights.
    void gated(int id, const Linear& gate_up, const Linear& down, const Rows& x, int rows, const Rows& inner, int activation) {
        float* gates = strips[id].data;
        float* ups = gates + STRIP * CHUNK;
        const Weights &gate = *gate_up.weights[0], &up = *gate_up.weights[1];
        int bulks = (rows + BULK - 1) / BULK, total = (gate.outs + CHUNK - 1) / CHUNK;
        pool.share(bulks * total, [&](int unit) {
            int first = unit / total * BULK, last = std::min(first + BULK, rows);
            int begin = unit % total * CHUNK, width = std::min(CHUNK, gate.outs - begin);
            for (int row = first; row < last; row += STRIP) {
                int end = std::min(row + STRIP, last);
                for (int tile = 0; tile * TILE < width; tile++) {
                    multiply(gate, begin / TILE + tile, x, row, end, gates + tile * TILE, CHUNK);
                    multiply(up, begin / TILE + tile, x, row, end, ups + tile * TILE, CHUNK);
                }
                for (int r = row; r < end; r++) {
                    float *g = gates + (r - row) * CHUNK, *u = ups + (r - row) * CHUNK;
                    if (gate_up.biases[0]) add_to(g, gate_up.biases[0] + begin, width);
                    if (gate_up.biases[1]) add_to(u, gate_up.biases[1] + begin, width);
                    int padded = (width + W - 1) / W * W;
                    for (int i = 0; i < padded; i += W) {
                        vf v = load(g + i);
                        store(g + i, (activation == SILU ? vsilu(v) : vgelu(v)) * load(u + i));
                    }
                    if (down.wants_bytes) quantise(inner, r, down.ins, begin / 32, g);
                    if (down.wants_floats) std::memcpy(inner.floats + size_t(r) * down.ins + begin, g, width * 4);
                }
            }
        });
    }

    // What each group's attention has to do in a step.
    void plan(const Step& step, const std::vector<Cells*>& groups) {
        plans.resize(groups.size());
        for (const Cells* kv : groups)
            for (auto& room : rooms) room.reserve(*kv);
        std::vector<Attend::Run> runs;
        for (int i = 0; i < step.num_runs; i++) {
            int first = step.run_firsts[i], number = step.run_sizes[i];
            if (number) runs.push_back({step.run_slots[i], step.run_lows[i], step.run_highs[i], first, number});
        }
        for (size_t g = 0; g < groups.size(); g++)
            plans[g].plan(*groups[g], step.num_rows, step.slots, step.starts, step.counts, step.offsets, int(runs.size()),
                          runs.data(), step.run_tokens, pool.size);
    }

    // Turns heads, writes keys and values, attends. To be called by all threads between barriers, and ends with one.
    void attend(int id, Cells& kv, Attend& plan, const Heads& how, const Step& step, float* heads, float* attended) {
        pool.share(step.num_tokens * kv.kv_heads, [&](int unit) {
            turn_and_write(kv, how, step, unit / kv.kv_heads, unit % kv.kv_heads, heads);
        });
        pool.barrier();
        float* partial = plan.partial.data();
        pool.share(int(plan.items.size()) * kv.kv_heads, [&](int unit) {
            const Item& item = plan.items[unit / kv.kv_heads];
            const int32_t* table = step.tables[how.group] + item.slot * step.strides[how.group];
            attend_any(kv, how.layer, unit % kv.kv_heads, item, plan, table, step.positions, heads, how.scale, attended, partial,
                       rooms[id]);
        });
        pool.barrier();
    }

    // One token's queries and key of one KV head: normed, turned; key and value to their cell.
    static void turn_and_write(Cells& kv, const Heads& how, const Step& step, int token, int head, float* heads) {
        const int dim = kv.dim, repeat = kv.heads / kv.kv_heads;
        float* row = heads + size_t(token) * (kv.heads + 2 * kv.kv_heads) * dim;
        const int64_t angle = (how.by_token ? token : step.positions[token]) * how.half;
        auto finish = [&](int which) {
            float* x = row + which * dim;
            if (how.norm.weight) normed(x, {how.norm.weight + size_t(which) * dim, how.norm.eps}, dim, x);
            turn(x, how.cos + angle, how.sin + angle, how.half);
        };
        for (int q = head * repeat; q < (head + 1) * repeat; q++) finish(q);
        finish(kv.heads + head);
        float *key = row + (kv.heads + head) * dim, *value = row + (kv.heads + kv.kv_heads + head) * dim;
        kv.write(how.layer, head, step.cells[how.group][token], key, value);
    }

    // Each row by one thread; a single row by every thread into room of its own, which saves a barrier. `make(row, floats)`
    // writes a row's floats. `writes` says that it changes anything else, so that it must run once.
    template <class Make>
    Rows rows_for(int id, const Linear& linear, int rows, RowsBuffer& shared, bool writes, Make&& make) {
        if (rows == 1 && !writes) {
            Rows mine = own[id].reserve(1, linear.ins, linear.wants_bytes);
            make(0, mine.floats);
            prepare(linear, mine, 0);
            return mine;
        }
        Rows found = shared.reserve(rows, linear.ins, linear.wants_bytes);  // large enough already: see `make_room`
        pool.share(rows, [&](int row) {
            make(row, found.floats + size_t(row) * linear.ins);
            prepare(linear, found, row);
        });
        pool.barrier();
        return found;
    }
};

struct Stack {
    Machine& machine;
    const Weights* embedding;
    float embed_scale;
    Norm norm;
    int hidden;
    std::vector<Layer> layers;
    std::vector<Cells*> groups;

    Stack(Machine& machine, const Weights* embedding, float embed_scale, Norm norm, int hidden)
        : machine(machine), embedding(embedding), embed_scale(embed_scale), norm(norm), hidden(hidden) {}

    // hidden_out: [token][hidden].
    void forward(const Step& step, float* hidden_out) {
        Machine& m = machine;
        const int tokens = step.num_tokens;
        if (!tokens) return;
        m.plan(step, groups);
        size_t widest_heads = 0, widest_out = 0, widest_inner = 0;
        for (const Layer& layer : layers) {
            widest_heads = std::max(widest_heads, size_t(layer.qkv->outs));
            widest_out = std::max(widest_out, size_t(layer.out->ins));
            widest_inner = std::max(widest_inner, size_t(layer.down->ins));
        }
        float* residual = m.residual.reserve(size_t(tokens) * hidden);
        float* heads = m.heads.reserve(size_t(tokens) * widest_heads);
        float* attended = m.attended.reserve(size_t(tokens) * widest_out);
        float* fresh = m.fresh.reserve(size_t(tokens) * hidden);
        m.make_room(tokens, std::max(size_t(hidden), widest_out));
        m.inner.reserve(tokens, int(widest_inner + 31) / 32 * 32, true);
        m.pool.run([&](int id) { run(id, step, residual, heads, attended, fresh, hidden_out); });
    }

private:
    void run(int id, const Step& step, float* residual, float* heads, float* attended, float* fresh, float* hidden_out) {
        Machine& m = machine;
        const int tokens = step.num_tokens;
        m.pool.share(tokens, [&](int t) { read_row(*embedding, int(step.ids[t]), embed_scale, residual + size_t(t) * hidden); });
        m.pool.barrier();
        const Norm* after = nullptr;  // of what the layer before has left in `fresh`
        for (const Layer& layer : layers) {
            auto enter = [&](const Norm& norm, const Linear& linear) {
                const Norm* pending = after;
                return m.rows_for(id, linear, tokens, m.wide, pending != nullptr, [&, pending](int t, float* out) {
                    float* x = residual + size_t(t) * hidden;
                    if (pending) {
                        normed(fresh + size_t(t) * hidden, *pending, hidden, out);
                        add_to(x, out, hidden);
                    }
                    normed(x, norm, hidden, out);
                });
            };
            auto leave = [&](const Linear& linear, const Rows& x, const Norm& norm) {
                bool waits = norm.weight != nullptr;
                m.project(id, linear, x, tokens, waits ? fresh : residual, !waits);
                m.pool.barrier();
                after = waits ? &norm : nullptr;
            };
            m.project(id, *layer.qkv, enter(layer.attention_norm, *layer.qkv), tokens, heads, false);
            m.pool.barrier();
            Cells& kv = *groups[layer.heads.group];
            Attend& plan = m.plans[layer.heads.group];
            m.attend(id, kv, plan, layer.heads, step, heads, attended);
            Rows x = m.rows_for(id, *layer.out, tokens, m.wide, false, [&](int t, float* out) {
                if (plan.parts_of[t]) merge(kv, plan, t, plan.partial.data(), m.rooms[id], out);
                else std::memcpy(out, attended + size_t(t) * layer.out->ins, layer.out->ins * 4);
            });
            leave(*layer.out, x, layer.after_attention);
            Rows inner = m.inner.reserve(tokens, layer.down->ins, layer.down->wants_bytes);
            m.gated(id, *layer.gate_up, *layer.down, enter(layer.mlp_norm, *layer.gate_up), tokens, inner, layer.activation);
            m.pool.barrier();
            leave(*layer.down, inner, layer.after_mlp);
        }
        m.pool.share(tokens, [&](int t) {
            float *x = residual + size_t(t) * hidden, *out = hidden_out + size_t(t) * hidden;
            if (after) {
                normed(fresh + size_t(t) * hidden, *after, hidden, out);
                add_to(x, out, hidden);
            }
            normed(x, norm, hidden, out);
        });
    }
};
