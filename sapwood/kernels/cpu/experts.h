// Experts: which of them each token gets, and the products of those alone.
#pragma once

#include "stack.h"

enum Score : int { SOFTMAX, SIGMOID, SPARSEMIX };

// How a router's products become experts and their weights; see `base/selection.py`. `offsets` may be null.
struct Selection {
    const float* offsets;
    int top, score, renormalised, groups, top_groups, group_best;
    float scale, slack;

    // The best of so many, with `ranks` as room for two numbers of each.
    void choose(const float* logits, int count, float* ranks, int32_t* experts, float* weights) const {
        float* scores = ranks + count;
        float most = *std::max_element(logits, logits + count), total = 0;
        for (int i = 0; i < count; i++) {
            scores[i] = score == SOFTMAX ? std::exp(logits[i] - most) : score == SIGMOID ? 1.0f / (1.0f + std::exp(-logits[i])) : logits[i];
            total += scores[i];
        }
        for (int i = 0; i < count; i++) {
            if (score == SOFTMAX) scores[i] /= total;
            ranks[i] = offsets ? scores[i] + offsets[i] : scores[i];
            if (!(ranks[i] >= -INFINITY)) ranks[i] = -INFINITY;  // what is no number is chosen last
        }
        if (groups > 1) keep_groups(ranks, count);
        float sum = 0;
        for (int k = 0; k < top; k++) {
            int best = int(std::max_element(ranks, ranks + count) - ranks);
            experts[k] = best;
            weights[k] = score == SPARSEMIX ? mixed(logits, ranks, count, ranks[best]) : scores[best];
            sum += weights[k];
            ranks[best] = -INFINITY;
        }
        for (int k = 0; k < top; k++) weights[k] = (renormalised ? weights[k] / sum : weights[k]) * scale;
    }

private:
    // Minus infinity outside of the groups whose best add up to most.
    void keep_groups(float* ranks, int count) const {
        const int size = count / groups;
        for (int kept = 0; kept < groups; kept++) {  // one group after the other is dropped or stays, from the worst on
            if (groups - kept <= top_groups) return;
            int worst = -1;
            float least = INFINITY;
            for (int g = 0; g < groups; g++) {
                float value = best_of(ranks + g * size, size);
                if (value > -INFINITY && value <= least) least = value, worst = g;
            }
            if (worst < 0) return;
            std::fill(ranks + worst * size, ranks + (worst + 1) * size, -INFINITY);
        }
    }

    // The sum of the best of a group.
    float best_of(const float* ranks, int size) const {
        float sum = 0, bound = INFINITY;
        for (int left = group_best; left > 0;) {
            float next = -INFINITY;
            int equal = 0;
            for (int i = 0; i < size; i++) {
                if (ranks[i] >= bound || ranks[i] < next) continue;
                equal = ranks[i] > next ? 1 : equal + 1;
                next = ranks[i];
            }
            if (!equal) return -INFINITY;
            for (; equal > 0 && left > 0; equal--, left--) sum += next;
            bound = next;
        }
        return sum;
    }

    // A softmax's share of the largest that is left, among those near it.
    float mixed(const float* logits, const float* ranks, int count, float most) const {
        float total = 0;
        for (int i = 0; i < count; i++)
            if (!((most - logits[i]) / std::max(std::fabs(logits[i]), most) > slack)) total += std::exp(ranks[i] - most);
        return 1.0f / total;
    }
};

// A step's choice: pairs of a token and an expert are in the order of tokens, `order` has them by expert. What has been chosen lies
// in a buffer of all, or of a single token in each thread's own room, as the order always does: none waits for another's.
struct Choice {
    struct Group { int32_t expert, first, last; };  // an expert that is chosen, and its pairs in the order

    const int pairs, count;
    int number = 0;  // groups
    int32_t *experts, *order, *starts;
    float* weights;
    Group* groups;

    static size_t shared(int top) { return size_t(2) * top; }                                 // for each token
    static size_t own(int top, int count) { return size_t(3) * top + size_t(4) * count + 1; }  // likewise

    Choice(float* buffer, float* own, int pairs, int count) : pairs(pairs), count(count) {
        experts = reinterpret_cast<int32_t*>(buffer), weights = buffer + pairs;
        order = reinterpret_cast<int32_t*>(own), starts = order + pairs, groups = reinterpret_cast<Group*>(starts + count + 1);
    }

    void sort() {
        std::fill(starts, starts + count + 1, 0);
        for (int p = 0; p < pairs; p++) starts[experts[p] + 1]++;
        for (int e = 0; e < count; e++) starts[e + 1] += starts[e];
        for (int e = 0; e < count; e++)
            if (starts[e] < starts[e + 1]) groups[number++] = {e, starts[e], starts[e + 1]};
        for (int p = 0; p < pairs; p++) order[starts[experts[p]]++] = p;
    }
};

// Buffer `to` = the weighted sum of what the chosen experts make of x, or += where `add`. Leaves x. Buffers from `own` on are
// room: of the router's products, which are there, of the choice, and of what each pair yields.
struct RouteExperts : Op {
    const Selection how;
    const std::vector<const Linear*> gate_ups, downs;
    const int activation, weighs_input, own, to, add;
    const int count, top, size, inner;

    RouteExperts(const Selection& how, std::vector<const Linear*> gate_ups, std::vector<const Linear*> downs, int activation,
                 int weighs_input, int own, int to, int add)
        : how(how), gate_ups(std::move(gate_ups)), downs(std::move(downs)), activation(activation), weighs_input(weighs_input),
          own(own), to(to), add(add), count(int(this->downs.size())), top(how.top), size(this->downs[0]->outs),
          inner(this->downs[0]->multiplied.ins) {}

    const Linear* takes() const override { return gate_ups[0]; }
    void reserve(Room& room) const override {
        room.buffer(own, count), room.buffer(own + 1, Choice::shared(top)), room.buffer(own + 2, size_t(top) * size);
        room.buffer(to, size), Room::grow(room.chosen, Choice::own(top, count));
        Room::grow(room.ordered, size_t(top) * whole(size)), Room::grow(room.inner, size_t(top) * whole(inner));
    }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        const int tokens = pass.step.num_tokens, id = pass.id;
        float* own_room = m.chosen[id].data;
        Choice choice(tokens == 1 ? own_room + Choice::own(top, count) - 2 * top : pass.buffers[own + 1], own_room, tokens * top, count);
        auto choose = [&](int t) {
            how.choose(pass.buffers[own] + size_t(t) * count, count, m.strips[id].data, choice.experts + t * top, choice.weights + t * top);
        };
        if (tokens == 1) {
            choose(0);
        } else {
            m.pool.share(tokens, choose);
            m.pool.barrier();
        }
        choice.sort();
        const bool one = tokens == 1 && !weighs_input;  // all pairs have the same row, which is there
        const Rows rows = one ? pass.x : gather(pass, choice);
        const Want& want = downs[0]->multiplied;
        const Rows inside = m.inner.reserve(choice.pairs, want.ins, want.bytes);
        each(m, choice, gate_ups[0]->weights[0]->outs, [&](const Choice::Group& group, int begin) {
            m.gated_outputs(id, *gate_ups[group.expert], want, rows, one ? 0 : group.first, group.first, group.last, begin, inside,
                            activation);
        });
        float* parts = pass.buffers[own + 2];
        each(m, choice, size, [&](const Choice::Group& group, int begin) {
            const Linear& down = *downs[group.expert];
            m.outputs(id, *down.weights[0], down.biases[0], inside, group.first, group.last, begin,
                      [&](int r, float* source, int first, int width) {
                          std::memcpy(parts + size_t(choice.order[r]) * size + first, source, width * 4);
                      });
        });
        m.pool.share(tokens, [&](int t) { add_up(choice, parts, t, pass.buffers[to] + size_t(t) * size); });
        m.pool.barrier();
    }

private:
    static int whole(int ins) { return (ins + 31) / 32 * 32; }

    // The rows of the pairs, by expert.
    Rows gather(const Pass& pass, const Choice& choice) const {
        Machine& m = pass.machine;
        const Want& want = gate_ups[0]->multiplied;
        Rows rows = m.ordered.reserve(choice.pairs, want.ins, want.bytes);
        m.pool.share(choice.pairs, [&](int i) {
            const size_t token = size_t(choice.order[i] / top), ins = size_t(want.ins), groups = ins / 32;
            const float *source = pass.x.floats + token * ins, weight = weighs_input ? choice.weights[choice.order[i]] : 1.0f;
            if (want.floats || weighs_input)
                for (size_t j = 0; j < ins; j++) rows.floats[i * ins + j] = source[j] * weight;
            if (weighs_input) return prepare(want, rows, i);
            if (!want.bytes) return;
            std::memcpy(rows.group(i, want.ins, 0), pass.x.group(token, want.ins, 0), groups * (rows.fine ? 64 : 32));
            std::memcpy(rows.scales + i * groups, pass.x.scales + token * groups, groups * sizeof(Scale));
        });
        m.pool.barrier();
        return rows;
    }

    // work(group, begin) for every group and each chunk of so many outputs; ends with a barrier.
    template <class Work>
    static void each(Machine& m, const Choice& choice, int outs, Work&& work) {
        const int chunks = (outs + CHUNK - 1) / CHUNK;
        m.pool.share(choice.number * chunks, [&](int unit) { work(choice.groups[unit / chunks], unit % chunks * CHUNK); });
        m.pool.barrier();
    }

    void add_up(const Choice& choice, const float* parts, int t, float* out) const {
        for (int i = 0; i < size; i++) {
            float sum = 0;
            for (int p = t * top; p < (t + 1) * top; p++) {
                float part = parts[size_t(p) * size + i];
                sum += weighs_input ? part : choice.weights[p] * part;
            }
            out[i] = add ? out[i] + sum : sum;
        }
    }
};

// Buffer `to` += buffer `from`, so wide, times the sigmoid of buffer `gate`, which has one column.
struct AddGated : Op {
    const int from, gate, to, size;

    AddGated(int from, int gate, int to, int size) : from(from), gate(gate), to(to), size(size) {}
    void reserve(Room& room) const override { room.buffer(from, size), room.buffer(gate, 1), room.buffer(to, size); }
    void run(Pass& pass) const override {
        pass.machine.pool.share(pass.step.num_tokens, [&](int t) {
            const float* source = pass.buffers[from] + size_t(t) * size;
            float *target = pass.buffers[to] + size_t(t) * size, factor = 1.0f / (1.0f + std::exp(-pass.buffers[gate][t]));
            for (int i = 0; i < size; i++) target[i] += factor * source[i];
        });
        pass.machine.pool.barrier();
    }
};
