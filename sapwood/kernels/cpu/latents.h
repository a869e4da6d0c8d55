// Attention over latents: one vector of each position, of which all heads make their keys and values (DeepSeek-V2, 2024).
//
// Queries are brought to the latents (absorbed), so that a position is read once for all heads. Queries lie side by side, 16 to a
// tile, and so do their scores: no sum goes across lanes. Blocks, stretches and runs are those of `attention.h`.
#pragma once

#include "stack.h"

// Vectors of one group of layers, [layer][cell][rank + turned], in memory of whoever made them. The rank is a multiple of 16.
struct Latents : Seen {
    const Store store;  // float32 or float16
    const int rank;
    uint8_t* rows = nullptr;
    size_t cells = 0;

    Latents(Store store, int heads, int bunches, int rank, int turned, int page)
        : Seen(heads, bunches, rank + turned, rank, 0, page), store(store), rank(rank) {}

    int turned() const { return asks - rank; }
    size_t place(int layer, size_t cell) const { return (size_t(layer) * cells + cell) * asks; }

    void write(int layer, size_t cell, const float* latent) {
        const size_t at = place(layer, cell);
        if (store == KEEP_F32) std::memcpy(reinterpret_cast<float*>(rows) + at, latent, asks * 4);
        else
            for (int d = 0; d < asks; d++) reinterpret_cast<uint16_t*>(rows)[at + d] = clipped(latent[d]);
    }

    // A position's numbers as floats, if need be in `room`.
    const float* read(int layer, size_t cell, float* room) const {
        const size_t at = place(layer, cell);
        if (store == KEEP_F32) return reinterpret_cast<const float*>(rows) + at;
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(rows) + at;
        int d = 0;
        for (; d + W <= asks; d += W) ::store(room + d, load_half(halves + d));
        for (; d < asks; d++) room[d] = from_half(halves[d]);
        return room;
    }
};

// Scores of C positions with the 16 queries of a tile, [number][16].
template <int C>
INLINE void score_rows(const float* const* rows, int size, const float* queries, float* scores) {
    vf totals[C][PARTS] = {};
    for (int d = 0; d < size; d++) {
        vf q[PARTS];
        for (int part = 0; part < PARTS; part++) q[part] = load(queries + d * TILE + part * W);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            for (int part = 0; part < PARTS; part++) totals[c][part] = fused(q[part], splat(rows[c][d]), totals[c][part]);
    }
    for (int c = 0; c < C; c++)
        for (int part = 0; part < PARTS; part++) store(scores + c * QUERIES + part * W, totals[c][part]);
}

// Joins a block's latents, weighted, to N queries' states; V vectors of their numbers at a time.
template <int N, int V>
INLINE void add_rows(const Seen& kv, const float* const* rows, int count, int column, const float* weights, const Weigh* by,
                     float* states) {
    vf totals[N][V] = {};
    for (int c = 0; c < count; c++) {
        vf x[V];
        for (int v = 0; v < V; v++) x[v] = load(rows[c] + column + v * W);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
            for (int v = 0; v < V; v++) totals[n][v] = fused(x[v], splat(weights[c * QUERIES + n]), totals[n][v]);
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) {
            float* at = states + n * kv.state() + column + v * W;
            store(at, fused(load(at), splat(by[n].mine), totals[n][v] * by[n].other));
        }
}

// W queries' scores of a block's first `count` positions, of which they see `seen` each, become weights; their states take all
// but the values.
INLINE void soften_columns(float* scores, int count, vi seen, int number, float* states, const Seen& kv, Weigh* by) {
    vf peak = splat(-INFINITY), broken{}, total{};
    for (int c = 0; c < count; c++) {
        vf v = load(scores + c * QUERIES);
        v = seen > vi{} + c ? v : splat(-INFINITY);
        peak = vmax(v, peak);
        broken += v < splat(INFINITY) ? vf{} : splat(NAN);
        store(scores + c * QUERIES, v);
    }
    for (int c = 0; c < count; c++) {
        vf v = load(scores + c * QUERIES), e = vexp(v - peak);
        e = v > splat(-INFINITY) ? e : vf{};
        total += e;
        store(scores + c * QUERIES, e);
    }
    for (int n = 0; n < number; n++) {
        float* state = states + n * kv.state() + kv.width;
        by[n] = weigh(state[0], peak[n]);
        state[1] = state[1] * by[n].mine + (total[n] + broken[n]) * by[n].other;  // a score that is not a number makes the row so
    }
}

// A bunch of heads' share of an item: `queries` are [token][head][asks], and turned.
inline void attend_latents(const Latents& kv, int layer, int bunch, const Item& item, const Attend& plan, const int32_t* table,
                           const int64_t* positions, const float* queries, float scale, float* out, float* partial, AttendRoom& room) {
    for (int first = 0; first < item.number; first += Asking::most(kv)) {
        const Asking asking(kv, item, plan, bunch, first, partial, room);
        const int number = asking.queries;
        float *q = room.queries.data(), *scores = room.scores.data();
        Weigh by[QUERIES];
        int32_t highs[QUERIES] = {}, high = 0;
        std::memset(q, 0, size_t(number + TILE - 1) / TILE * TILE * kv.asks * 4);
        for (int n = 0; n < number; n++) {
            const float* source = queries + (size_t(asking.token(n)) * kv.heads + asking.head(n)) * kv.asks;
            float* target = q + size_t(n / TILE) * TILE * kv.asks + n % TILE;
            for (int d = 0; d < kv.asks; d++) target[d * TILE] = source[d] * scale;
            highs[n] = item.own ? std::min(item.high, int(positions[asking.token(n)]) + 1) : item.high;
            high = std::max(high, highs[n]);
        }
        asking.walk(item.low, high, [&](int begin, int end) {
            const float* rows[SPAN];
            const int count = end - begin;
            for (int c = 0; c < count; c++) {
                const int at = begin + c;
                rows[c] = kv.read(layer, size_t(table[at / kv.page]) * kv.page + at % kv.page, room.rows.data() + size_t(c) * kv.asks);
            }
            for (int tile = 0; tile < number; tile += TILE)
                in_bunches<SCORED>(count, [&](auto C, int c) {
                    score_rows<C>(rows + c, kv.asks, q + size_t(tile) * kv.asks, scores + c * QUERIES + tile);
                });
            for (int n = 0; n < number; n += W) {
                vi seen = *reinterpret_cast<const vi_loose*>(highs + n) - begin;
                soften_columns(scores + n, count, seen, std::min(W, number - n), asking.stretches + n * kv.state(), kv, by + n);
            }
            in_bunches<ADDED>(number, [&](auto N, int n) {
                float* states = asking.stretches + n * kv.state();
                int column = 0;
                for (; column + WIDE * W <= kv.width; column += WIDE * W)
                    add_rows<N, WIDE>(kv, rows, count, column, scores + n, by + n, states);
                for (; column < kv.width; column += W) add_rows<N, 1>(kv, rows, count, column, scores + n, by + n, states);
            });
        });
        asking.yield(out);
    }
}

// The last numbers of a query or a latent turn by the token's position.
INLINE void turn_last(const Latents& kv, const Heads& how, const Step& step, int token, float* x) {
    const int64_t angle = (how.by_token ? token : step.positions[token]) * how.half;
    if (how.interleaved) turn_interleaved(x, how.cos + angle, how.sin + angle, how.half);
    else turn(x, how.cos + angle, how.sin + angle, how.half);
}

// A token's latent is normed, turned, and goes to its cell.
INLINE void keep_latent(Latents& kv, const Heads& how, const Step& step, int token, float* latent) {
    normed(latent, how.norm, kv.rank, latent);
    turn_last(kv, how, step, token, latent + kv.rank);
    kv.write(how.layer, step.cells[how.group][token], latent);
}

// Sums of latents for turned queries, out[token][head][rank], but for those in parts. To be called by all threads between
// barriers, and ends with one.
inline void attend_step(Machine& m, int id, const Latents& kv, Attend& plan, const Heads& how, const Step& step, const float* queries,
                        float* out) {
    m.pool.share(int(plan.items.size()) * kv.bunches, [&](int unit) {
        const Item& item = plan.items[unit / kv.bunches];
        const int32_t* table = step.tables[how.group] + item.slot * step.strides[how.group];
        attend_latents(kv, how.layer, unit % kv.bunches, item, plan, table, step.positions, queries, how.scale, out,
                       plan.partial.data(), m.rooms[id]);
    });
    m.pool.barrier();
}

// x = attention over latents. Buffer `from` has queries, [head][plain | turned], buffer `down` rows so `wide` whose last numbers are
// the token's latent. `keys` bring a head's plain numbers to latents, `values` make of its sum of latents what it yields. Buffer
// `own` is room.
struct AttendLatents : Op {
    const Heads how;
    const std::vector<const Linear*> keys, values;
    const int rank, turned, from, down, wide, own;
    const int heads, plain, value;

    AttendLatents(const Heads& how, std::vector<const Linear*> keys, std::vector<const Linear*> values, int rank, int turned, int from,
                  int down, int wide, int own)
        : how(how), keys(std::move(keys)), values(std::move(values)), rank(rank), turned(turned), from(from), down(down), wide(wide),
          own(own), heads(int(this->keys.size())), plain(this->keys[0]->multiplied.ins), value(this->values[0]->outs) {}

    bool leaves() const override { return true; }
    void reserve(Room& room) const override {
        room.buffer(from, size_t(heads) * std::max(plain + turned, value)), room.buffer(down, wide);
        room.buffer(own, size_t(heads) * (rank + turned));
        Room::grow(room.wide, wanted.ins), Room::grow(room.attended, size_t(heads) * rank);
        Room::grow(room.ordered, size_t(heads) * (std::max(plain, rank) + 31) / 32 * 32);
    }
    void run(Pass& pass) const override {
        Machine& m = pass.machine;
        Latents& kv = static_cast<Latents&>(*pass.groups[how.group]);
        Attend& plan = m.plans[how.group];
        const int tokens = pass.step.num_tokens, asks = rank + turned;
        float *queries = pass.buffers[own], *latents = pass.buffers[down], *yields = pass.buffers[from], *sums = m.attended.data;
        const Want& asked = keys[0]->multiplied;
        const Rows plains = m.ordered.reserve(tokens * heads, plain, asked.bytes);  // by head
        m.pool.share(tokens * (heads + 1), [&](int unit) {
            const int t = unit / (heads + 1), head = unit % (heads + 1);
            if (head == heads) return keep_latent(kv, how, pass.step, t, latents + size_t(t + 1) * wide - asks);
            const float* source = yields + (size_t(t) * heads + head) * (plain + turned);
            float* last = queries + (size_t(t) * heads + head) * asks + rank;
            std::memcpy(last, source + plain, turned * 4);
            turn_last(kv, how, pass.step, t, last);
            put(asked, plains, head * tokens + t, source);
        });
        m.pool.barrier();
        by_head(pass, keys, plains, rank, queries, asks);
        attend_step(m, pass.id, kv, plan, how, pass.step, queries, sums);
        const Want& summed = values[0]->multiplied;
        const Rows found = m.ordered.reserve(tokens * heads, rank, summed.bytes);
        m.pool.share(tokens * heads, [&](int unit) {
            const int t = unit / heads, head = unit % heads;
            float* sum = sums + size_t(unit) * rank;
            if (plan.parts_of[t]) merge_head(kv, plan, t, head, plan.partial.data(), m.rooms[pass.id], sum);
            put(summed, found, head * tokens + t, sum);
        });
        m.pool.barrier();
        by_head(pass, values, found, value, yields, value);
        pass.x = m.rows_for(pass.id, wanted, tokens, m.wide, false, [&](int t, float* out) {
            std::memcpy(out, yields + size_t(t) * wanted.ins, wanted.ins * 4);
        });
    }

private:
    static void put(const Want& want, const Rows& rows, int row, const float* source) {
        std::memcpy(rows.floats + size_t(row) * want.ins, source, want.ins * 4);
        prepare(want, rows, row);
    }

    // out[token][head][stride] = each head's rows times its own weights. Ends with a barrier.
    void by_head(Pass& pass, const std::vector<const Linear*>& products, const Rows& rows, int outs, float* out, int stride) const {
        Machine& m = pass.machine;
        const int tokens = pass.step.num_tokens, chunks = (outs + CHUNK - 1) / CHUNK;
        m.pool.share(heads * chunks, [&](int unit) {
            const int head = unit / chunks, base = head * tokens;
            m.outputs(pass.id, *products[head]->weights[0], nullptr, rows, base, base + tokens, unit % chunks * CHUNK,
                      [&](int r, float* source, int first, int width) {
                          std::memcpy(out + (size_t(r - base) * heads + head) * stride + first, source, width * 4);
                      });
        });
        m.pool.barrier();
    }
};
