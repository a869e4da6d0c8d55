// What models do that read whole texts or inputs, beside what all do: vectors of the text that a token is of, norms of sums, and attention to
// what an encoder has left.
#pragma once

#include "stack.h"

// To the stream is added row 0 of `table` for tokens of a first text, and row 1 for those of a second.
struct AddSegments : Op {
    const Weights& table;

    explicit AddSegments(const Weights& table) : table(table) {}
    void reserve(Room& room) const override { room.buffer(1, table.ins); }
    void run(Pass& pass) const override {
        const Step& step = pass.step;
        pass.machine.pool.share(step.num_tokens, [&](int t) {
            float* row = pass.buffers[1] + size_t(t) * table.ins;
            read_row(table, second(step, t), 1.0f, row);
            add_to(pass.buffers[0] + size_t(t) * table.ins, row, table.ins);
        });
        pass.machine.pool.barrier();
    }

private:
    bool second(const Step& step, int token) const {
        if (!step.seconds || table.outs < 2) return false;
        const int32_t* ends = step.offsets + 1;
        const int32_t begins = step.seconds[step.slots[std::upper_bound(ends, ends + step.num_rows, token) - ends]];
        return begins > 0 && step.positions[token] >= begins;
    }
};

// The stream becomes its norm, and x the same rows.
struct Settle : Op {
    const Norm norm;
    const int size;

    Settle(const Norm& norm, int size) : norm(norm), size(size) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override { Room::grow(room.wide, wanted.ins); }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        pass.x = m.rows_for(pass.id, wanted, pass.step.num_tokens, m.wide, true, [&](int t, float* out) {
            float* x = pass.buffers[0] + size_t(t) * size;
            normed(x, norm, size, x);
            if (wanted.ins) std::memcpy(out, x, size * 4);  // else nobody takes them
        });
    }
};

// x = attention of the queries in buffer `from` to what an encoder left, of which the stack's group `group` keeps keys and values.
struct AttendEntries : Op {
    const int group, layer, from;
    const float scale;

    AttendEntries(int group, int layer, int from, float scale) : group(group), layer(layer), from(from), scale(scale) {}
    bool leaves() const override { return true; }
    void reserve(Room& room) const override { Room::grow(room.wide, wanted.ins), Room::grow(room.attended, wanted.ins); }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        const Cells& kv = static_cast<const Cells&>(*pass.groups[group]);
        Attend& plan = m.plans[group];
        float* attended = m.attended.data;
        if (pass.step.queries && !pass.id) {
            const size_t size = size_t(pass.step.num_tokens) * kv.heads * kv.dim;
            std::memcpy(pass.step.queries + layer * size, pass.buffers[from], size * 4);
        }
        m.pool.share(int(plan.items.size()) * kv.kv_heads, [&](int unit) {
            const Item& item = plan.items[unit / kv.kv_heads];
            const int32_t page = item.slot;
            attend_any(kv, layer, unit % kv.kv_heads, item, plan, &page, pass.step.positions, pass.buffers[from], scale, nullptr, attended,
                       nullptr, m.rooms[pass.id]);
        });
        m.pool.barrier();
        pass.x = m.rows_for(pass.id, wanted, pass.step.num_tokens, m.wide, false, [&](int t, float* out) {
            std::memcpy(out, attended + size_t(t) * wanted.ins, wanted.ins * 4);
        });
    }
};
