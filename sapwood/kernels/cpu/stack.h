// A whole decoder, from token ids to the hidden states behind its last norm, as one job of all threads: a list of operations that
// somebody else has made from a model's parts.
#pragma once

#include <deque>
#include <memory>
#include <new>

#include "attention.h"
#include "changes.h"
#include "pool.h"
#include "rows.h"

// How products want the rows that they take.
struct Want {
    int ins = 0;
    bool bytes = false, floats = false;

    void add(const Want& other) { ins = other.ins, bytes |= other.bytes, floats |= other.floats; }
};

// Products that share their input, one behind the other in the output. `biases` may be null. With an `order`, column i of the
// weights is input order[i].
struct Linear {
    std::vector<const Weights*> weights;
    std::vector<const float*> biases;
    const int32_t* order = nullptr;
    const Change* change = nullptr;  // what adapters may change in it
    Want multiplied;  // how the weights want the rows that they meet
    int outs = 0;

    void add(const Weights* w, const float* bias) {
        weights.push_back(w), biases.push_back(bias);
        multiplied.add({w->ins, w->quantised(), !w->quantised()});
        outs += w->outs;
    }

    // How rows are to be handed over: what is put in order is made into integers after that.
    Want want() const {
        if (order) return {multiplied.ins, false, true};
        return {multiplied.ins, multiplied.bytes, multiplied.floats || change};
    }
};

// What happens to a layer's heads.
struct Heads {
    Norm norm;               // weights [query heads | key heads][dim], or none
    const float *cos, *sin;  // [position][half], or [token][half] where `by_token`
    int half, by_token;
    int interleaved, late;   // 2i turns with 2i + 1, not i with i + half; the norm comes after
    int group, layer;        // which cells, which of their layers
    const float* sinks;      // [query heads]: scores that join the softmax and weigh nothing, or none
    float scale;
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
    const int32_t* heads;    // per row: how many of its last tokens yield another; null: at most one
    const int32_t* seconds;  // per slot: where a second text begins, 0 where there is none; null: nowhere
    const int32_t* entries;  // per slot: which entry of what an encoder left it looks at
    const int32_t* lengths;  // positions of each entry
    float* queries;           // [layer][token][heads][dim] of those that look at entries, to be told; null: nobody asks
    const int32_t* adapters;  // per token: the slot of its adapter, -1 for none; null: nobody has one
};

constexpr int CHUNK = 32;    // outputs that a thread takes at a time: a group of the next product's input
constexpr int STRIP = 64;    // rows whose outputs lie in the cache meanwhile
constexpr int BULK = 512;    // rows that a thread takes at a time

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

INLINE void prepare(const Want& want, const Rows& rows, int row) {
    if (want.bytes)
        for (int g = 0; g < want.ins / 32; g++)
            quantise(rows, row, want.ins, g, rows.floats + size_t(row) * want.ins + g * 32);
}

// What the threads of one engine compute with: pool, and room that all products and stacks on it use one after the other.
struct Machine {
    Pool pool;
    RowsBuffer wide, inner, ordered;    // inputs of products: norms' and attention's outputs; gates'; any in another order
    std::deque<Buffer<float>> buffers;  // outputs of products, by number
    Buffer<float> attended;
    std::vector<RowsBuffer> own;        // of each thread, for a single row
    std::vector<AttendRoom> rooms;
    std::vector<Buffer<float>> strips;  // of each thread: two chunks of outputs
    std::vector<Buffer<float>> scanned, chosen;  // of each thread: a part of a state; a choice of experts
    std::vector<Attend> plans;          // per group
    const int32_t* adapters = nullptr;  // of the step that is computed
    Buffer<float> shrunk;               // A x of its tokens

    // `fine`: integers of 12 bits for activations, instead of 8.
    Machine(int threads, bool fine) : pool(threads), own(pool.size), rooms(pool.size), strips(pool.size), scanned(pool.size), chosen(pool.size) {
        wide.fine = inner.fine = ordered.fine = fine;
        for (auto& one : own) one.fine = fine;
        for (auto& strip : strips) strip.reserve(2 * STRIP * CHUNK);
    }

    // Room for the inputs of products, so wide at most, before any thread needs it: where memory runs out can only be told
    // before a job begins. `reordered` is how wide those are at most that are put in another order.
    void make_room(int rows, size_t ins, size_t reordered) {
        int whole = int((ins + 31) / 32 * 32);
        wide.reserve(rows, whole, true);
        ordered.reserve(rows, int((reordered + 31) / 32 * 32), true);
        for (auto& room : own) room.reserve(1, whole, true);
    }

    // The rows as the weights of `linear` want them. To be called by all threads; ends with a barrier where there is an order.
    Rows in_order(int id, const Linear& linear, const Rows& x, int rows) {
        if (!linear.order) return x;
        return rows_for(id, linear.multiplied, rows, ordered, true, [&](int row, float* target) {
            const float* source = x.floats + size_t(row) * linear.multiplied.ins;
            for (int i = 0; i < linear.multiplied.ins; i++) target[i] = source[linear.order[i]];
        });
    }

    // Finds what adapters change in a product, if some do: all threads take part. `rows` are those of the step.
    const Change* changing(int id, const Linear& linear, const Rows& given, int rows) {
        const Change* change = adapters ? linear.change : nullptr;
        if (!change) return nullptr;
        const int pieces = change->pieces(), width = change->groups * change->rank;
        pool.share(rows * pieces, [&](int unit) {
            int row = unit / pieces, slot = adapters[row];
            if (slot >= 0) change->shrink(slot, unit % pieces, given.floats + size_t(row) * change->ins, shrunk.data + size_t(row) * width);
        });
        pool.barrier();
        return change;
    }

    INLINE void widen(const Change* change, int row, int begin, int width, float* out) const {
        if (change && adapters[row] >= 0)
            change->widen(adapters[row], shrunk.data + size_t(row) * change->groups * change->rank, begin, width, out);
    }

    // out[row * linear.outs + ...] = rows x linear, or += where `add`. To be called by all threads between barriers.
    void project(int id, const Linear& linear, const Rows& given, int rows, float* out, bool add) {
        const Rows x = in_order(id, linear, given, rows);
        const Change* change = changing(id, linear, given, rows);
        int bulks = (rows + BULK - 1) / BULK, total = 0;
        for (const Weights* w : linear.weights) total += (w->outs + CHUNK - 1) / CHUNK;
        pool.share(bulks * total, [&](int unit) {
            int first = unit / total * BULK, last = std::min(first + BULK, rows), chunk = unit % total, column = 0;
            size_t which = 0;
            for (; chunk >= (linear.weights[which]->outs + CHUNK - 1) / CHUNK; which++) {
                chunk -= (linear.weights[which]->outs + CHUNK - 1) / CHUNK;
                column += linear.weights[which]->outs;
            }
            outputs(id, *linear.weights[which], linear.biases[which], x, first, last, chunk * CHUNK,
                    [&](int r, float* source, int begin, int width) {
                        float* target = out + size_t(r) * linear.outs + column + begin;
                        widen(change, r, column + begin, width, source);
                        if (add) add_to(target, source, width);
                        else std::memcpy(target, source, width * 4);
                    });
        });
    }

    // Calls put(row, values, begin, width) with outputs [begin, begin + width) of each of the rows: at most CHUNK.
    template <class Put>
    void outputs(int id, const Weights& w, const float* bias, const Rows& x, int first, int last, int begin, Put&& put) {
        float* strip = strips[id].data;
        const int width = std::min(CHUNK, w.outs - begin);
        for (int row = first; row < last; row += STRIP) {
            int end = std::min(row + STRIP, last);
            for (int tile = 0; tile * TILE < width; tile++)
                multiply(w, begin / TILE + tile, x, row, end, strip + tile * TILE, CHUNK);
            for (int r = row; r < end; r++) {
                float* source = strip + (r - row) * CHUNK;
                if (bias) add_to(source, bias + begin, width);
                put(r, source, begin, width);
            }
        }
    }

    // inner = activation(gate) * up, in the form that is wanted. The two halves of `gate_up` are its two weights; where there is
    // only one, its activation alone.
    void gated(int id, const Linear& gate_up, const Want& want, const Rows& given, int rows, const Rows& inner, int activation) {
        const Rows x = in_order(id, gate_up, given, rows);
        const Change* change = changing(id, gate_up, given, rows);
        const int outs = gate_up.weights[0]->outs;
        int bulks = (rows + BULK - 1) / BULK, total = (outs + CHUNK - 1) / CHUNK;
        pool.share(bulks * total, [&](int unit) {
            int first = unit / total * BULK, last = std::min(first + BULK, rows);
            gated_outputs(id, gate_up, want, x, first, first, last, unit % total * CHUNK, inner, activation, change);
        });
    }

    // The same of outputs from `begin` on, at most CHUNK, and rows [first, last) of `inner`, which those of x from `from` on become.
    void gated_outputs(int id, const Linear& gate_up, const Want& want, const Rows& x, int from, int first, int last, int begin,
                       const Rows& inner, int activation, const Change* change = nullptr) {
        float* gates = strips[id].data;
        float* ups = gates + STRIP * CHUNK;
        const Weights& gate = *gate_up.weights[0];
        const Weights* up = gate_up.weights.size() > 1 ? gate_up.weights[1] : nullptr;
        const int width = std::min(CHUNK, gate.outs - begin);
        for (int row = first; row < last; row += STRIP) {
            int end = std::min(row + STRIP, last), source = from + row - first;
            for (int tile = 0; tile * TILE < width; tile++) {
                multiply(gate, begin / TILE + tile, x, source, source + end - row, gates + tile * TILE, CHUNK);
                if (up) multiply(*up, begin / TILE + tile, x, source, source + end - row, ups + tile * TILE, CHUNK);
            }
            for (int r = row; r < end; r++) {
                float *g = gates + (r - row) * CHUNK, *u = ups + (r - row) * CHUNK;
                if (gate_up.biases[0]) add_to(g, gate_up.biases[0] + begin, width);
                if (up && gate_up.biases[1]) add_to(u, gate_up.biases[1] + begin, width);
                widen(change, r, begin, width, g);
                if (up) widen(change, r, gate.outs + begin, width, u);
                int padded = (width + W - 1) / W * W;
                for (int i = 0; i < padded; i += W) {
                    store(g + i, up ? through_gate(load(g + i), load(u + i), activation) : activate(load(g + i), activation));
                }
                if (want.bytes) quantise(inner, r, want.ins, begin / 32, g);
                if (want.floats) std::memcpy(inner.floats + size_t(r) * want.ins + begin, g, width * 4);
            }
        }
    }

    // What each group's attention has to do in a step.
    void plan(const Step& step, const std::vector<Kept*>& groups) {
        plans.resize(groups.size());
        std::vector<Attend::Run> runs;
        for (int i = 0; i < step.num_runs; i++) {
            int first = step.run_firsts[i], number = step.run_sizes[i];
            if (number) runs.push_back({step.run_slots[i], step.run_lows[i], step.run_highs[i], first, number});
        }
        for (size_t g = 0; g < groups.size(); g++) {
            const Seen* kv = groups[g]->seen();
            if (!kv) continue;
            for (auto& room : rooms) room.reserve(*kv);
            if (kv->fixed) plans[g].plan_entries(*kv, step.num_rows, step.slots, step.counts, step.offsets, step.entries, step.lengths);
            else plans[g].plan(*kv, step.num_rows, step.slots, step.starts, step.counts, step.offsets, int(runs.size()), runs.data(),
                          step.run_tokens, pool.size);
        }
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
            attend_any(kv, how.layer, unit % kv.kv_heads, item, plan, table, step.positions, heads, how.scale, how.sinks, attended,
                       partial, rooms[id]);
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
            Norm norm = how.norm;
            if (norm.weight) norm.weight += size_t(which) * dim;
            if (!how.late) normed(x, norm, dim, x);
            if (how.interleaved) turn_interleaved(x, how.cos + angle, how.sin + angle, how.half);
            else turn(x, how.cos + angle, how.sin + angle, how.half);
            if (how.late) normed(x, norm, dim, x);
        };
        for (int q = head * repeat; q < (head + 1) * repeat; q++) finish(q);
        finish(kv.heads + head);
        float *key = row + (kv.heads + head) * dim, *value = row + (kv.heads + kv.kv_heads + head) * dim;
        kv.write(how.layer, head, step.cells[how.group][token], key, value);
    }

    // Each row by one thread; a single row by every thread into room of its own, which saves a barrier. `make(row, floats)`
    // writes a row's floats. `writes` says that it changes anything else, so that it must run once.
    template <class Make>
    Rows rows_for(int id, const Want& want, int rows, RowsBuffer& shared, bool writes, Make&& make) {
        if (rows == 1 && !writes) {
            Rows mine = own[id].reserve(1, want.ins, want.bytes);
            make(0, mine.floats);
            prepare(want, mine, 0);
            return mine;
        }
        Rows found = shared.reserve(rows, want.ins, want.bytes);  // large enough already: see `make_room`
        pool.share(rows, [&](int row) {
            make(row, found.floats + size_t(row) * want.ins);
            prepare(want, found, row);
        });
        pool.barrier();
        return found;
    }
};

// What one thread has on its way through a stack: the step, outputs of products by number, of which the first is the residual
// stream, and `x`, the rows that the next product takes.
struct Pass {
    Machine& machine;
    const int id;
    const Step& step;
    const std::vector<Kept*>& groups;
    const std::vector<float*>& buffers;
    float* hidden;
    Rows x;
};

// How much room a stack's operations need for each token.
struct Room {
    std::vector<size_t> buffers;
    size_t wide = 0, inner = 0, ordered = 0, attended = 0;
    size_t scanned = 0, chosen = 0;  // of each thread; the latter for each token
    size_t shrunk = 0;

    static void grow(size_t& size, size_t wanted) { size = std::max(size, wanted); }
    void buffer(int number, size_t width) {
        if (buffers.size() <= size_t(number)) buffers.resize(number + 1);
        grow(buffers[number], width);
    }
};

// One thing that all threads do to a step together. What others need of it is there when it ends.
struct Op {
    Want wanted;  // of the rows that it leaves in `x`: how the products behind it want them

    virtual ~Op() = default;
    virtual const Linear* takes() const { return nullptr; }  // what it multiplies the rows in `x` with
    virtual bool leaves() const { return false; }            // whether it leaves new ones there
    virtual void reserve(Room& room) const = 0;
    virtual void run(Pass& pass) const = 0;
};

// The residual stream begins as the tokens' rows of `table`.
struct Embed : Op {
    const Weights& table;
    const float scale;

    Embed(const Weights& table, float scale) : table(table), scale(scale) {}
    void reserve(Room& room) const override { room.buffer(0, table.ins); }
    void run(Pass& pass) const override {
        Pool& pool = pass.machine.pool;
        pool.share(pass.step.num_tokens,
                   [&](int t) { read_row(table, int(pass.step.ids[t]), scale, pass.buffers[0] + size_t(t) * table.ins); });
        pool.barrier();
    }
};

// To the stream is added the row of `table` for each token's position.
struct AddPositions : Op {
    const Weights& table;

    explicit AddPositions(const Weights& table) : table(table) {}
    void reserve(Room& room) const override { room.buffer(1, table.ins); }
    void run(Pass& pass) const override {
        Pool& pool = pass.machine.pool;
        pool.share(pass.step.num_tokens, [&](int t) {
            float* row = pass.buffers[1] + size_t(t) * table.ins;
            read_row(table, int(pass.step.positions[t]), 1.0f, row);
            add_to(pass.buffers[0] + size_t(t) * table.ins, row, table.ins);
        });
        pool.barrier();
    }
};

// Columns [first, first + size) of buffer `which`, whose rows are `width` wide, become their norm.
struct NormColumns : Op {
    const Norm norm;
    const int which, width, first, size;

    NormColumns(const Norm& norm, int which, int width, int first, int size)
        : norm(norm), which(which), width(width), first(first), size(size) {}
    void reserve(Room& room) const override { room.buffer(which, width); }
    void run(Pass& pass) const override {
        pass.machine.pool.share(pass.step.num_tokens, [&](int t) {
            float* x = pass.buffers[which] + size_t(t) * width + first;
            normed(x, norm, size, x);
        });
        pass.machine.pool.barrier();
    }
};

// x = the norm of those columns.
struct TakeColumns : Op {
    const Norm norm;
    const int which, width, first, size;

    TakeColumns(const Norm& norm, int which, int width, int first, int size)
        : norm(norm), which(which), width(width), first(first), size(size) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override { room.buffer(which, width), Room::grow(room.wide, wanted.ins); }
    void run(Pass& pass) const override {
        pass.x = pass.machine.rows_for(pass.id, wanted, pass.step.num_tokens, pass.machine.wide, false, [&](int t, float* out) {
            normed(pass.buffers[which] + size_t(t) * width + first, norm, size, out);
        });
    }
};

// x = the stream's norm, or its rows as they are. Unless `scale` is 0, so much of the norm `after` of what lies in buffer `from`,
// or of that itself, is added to the stream first.
struct Normalise : Op {
    const Norm norm, after;
    const float scale;
    const int from, size;

    Normalise(const Norm& norm, const Norm& after, float scale, int from, int size)
        : norm(norm), after(after), scale(scale), from(from), size(size) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override { Room::grow(room.wide, wanted.ins); }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        bool joins = scale != 0;
        pass.x = m.rows_for(pass.id, wanted, pass.step.num_tokens, m.wide, joins, [&](int t, float* out) { row(pass, t, out); });
    }

protected:
    INLINE void row(const Pass& pass, int t, float* out) const {
        float* x = pass.buffers[0] + size_t(t) * size;
        if (scale != 0) {
            normed(pass.buffers[from] + size_t(t) * size, after, size, out);
            if (scale != 1)
                for (int i = 0; i < size; i++) out[i] *= scale;
            add_to(x, out, size);
        }
        normed(x, norm, size, out);
    }
};

// The same, and what the stack yields.
struct Finish : Normalise {
    using Normalise::Normalise;
    bool leaves() const override { return false; }
    void reserve(Room&) const override {}
    void run(Pass& pass) const override {
        pass.machine.pool.share(pass.step.num_tokens, [&](int t) { row(pass, t, pass.hidden + size_t(t) * size); });
    }
};

// Buffer `to` = x * linear, or += where `add`.
struct Project : Op {
    const Linear& linear;
    const int to;
    const bool add;

    Project(const Linear& linear, int to, bool add) : linear(linear), to(to), add(add) {}
    const Linear* takes() const override { return &linear; }
    void reserve(Room& room) const override { room.buffer(to, linear.outs); }
    void run(Pass& pass) const override {
        pass.machine.project(pass.id, linear, pass.x, pass.step.num_tokens, pass.buffers[to], add);
        pass.machine.pool.barrier();
    }
};

// x = attention of the heads in buffer `from`, whose keys and values go to their cells; times the sigmoid of buffer `gate`, unless
// that is -1.
struct AttendHeads : Op {
    const Heads how;
    const int from, gate;

    AttendHeads(const Heads& how, int from, int gate) : how(how), from(from), gate(gate) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override {
        Room::grow(room.wide, wanted.ins), Room::grow(room.attended, wanted.ins);
        if (gate >= 0) room.buffer(gate, wanted.ins);
    }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        Cells& kv = static_cast<Cells&>(*pass.groups[how.group]);
        Attend& plan = m.plans[how.group];
        float* attended = m.attended.data;
        m.attend(pass.id, kv, plan, how, pass.step, pass.buffers[from], attended);
        pass.x = m.rows_for(pass.id, wanted, pass.step.num_tokens, m.wide, false, [&](int t, float* out) {
            if (plan.parts_of[t]) merge(kv, plan, t, plan.partial.data(), m.rooms[pass.id], out, how.sinks);
            else std::memcpy(out, attended + size_t(t) * wanted.ins, wanted.ins * 4);
            if (gate >= 0) gate_by<false>(out, pass.buffers[gate] + size_t(t) * wanted.ins, wanted.ins);
        });
    }
};

// x = activation(gate) * up, the two halves of x * linear; or the activation of all of it, if it has one part.
struct Gate : Op {
    const Linear& linear;
    const int activation;

    Gate(const Linear& linear, int activation) : linear(linear), activation(activation) {}
    const Linear* takes() const override { return &linear; }
    bool leaves() const override { return true; }
    void reserve(Room& room) const override { Room::grow(room.inner, wanted.ins); }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        Rows inner = m.inner.reserve(pass.step.num_tokens, wanted.ins, wanted.bytes);
        m.gated(pass.id, linear, wanted, pass.x, pass.step.num_tokens, inner, activation);
        m.pool.barrier();
        pass.x = inner;
    }
};

struct Stack {
    Machine& machine;
    std::vector<Kept*> groups;

    explicit Stack(Machine& machine) : machine(machine) {}

    void add(std::unique_ptr<Op> op) {
        if (const Linear* linear = op->takes()) source->wanted.add(linear->want());
        if (op->leaves()) source = op.get();
        ops.push_back(std::move(op));
    }

    // hidden: [token][hidden size].
    void forward(const Step& step, float* hidden) {
        Machine& m = machine;
        const int tokens = step.num_tokens;
        if (!tokens) return;
        m.plan(step, groups);
        std::vector<float*> buffers = make_room(tokens);
        m.adapters = step.adapters;
        m.pool.run([&](int id) {
            Pass pass{m, id, step, groups, buffers, hidden, {}};
            for (const auto& op : ops) op->run(pass);
        });
        m.adapters = nullptr;
    }

private:
    std::vector<std::unique_ptr<Op>> ops;
    Op* source = nullptr;  // the last that leaves rows

    std::vector<float*> make_room(int tokens) {
        Machine& m = machine;
        Room room;
        for (const auto& op : ops) {
            op->reserve(room);
            const Linear* linear = op->takes();
            if (linear && linear->order) Room::grow(room.ordered, linear->multiplied.ins);
            if (linear && linear->change) Room::grow(room.shrunk, size_t(linear->change->groups) * linear->change->rank);
        }
        m.make_room(tokens, room.wide, room.ordered);
        m.inner.reserve(tokens, int(room.inner + 31) / 32 * 32, true);
        m.attended.reserve(size_t(tokens) * room.attended), m.shrunk.reserve(tokens * room.shrunk);
        for (int id = 0; id < m.pool.size; id++) m.scanned[id].reserve(room.scanned), m.chosen[id].reserve(tokens * room.chosen);
        while (m.buffers.size() < room.buffers.size()) m.buffers.emplace_back();
        std::vector<float*> found;
        for (size_t i = 0; i < room.buffers.size(); i++) found.push_back(m.buffers[i].reserve(tokens * room.buffers[i]));
        return found;
    }
};
