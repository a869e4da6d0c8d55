// Attention over pages of keys and values, for rows of any lengths together.
//
// The scores of 16 positions are one vector, so no sum goes across lanes. Softmax is computed block by block (Milakov and
// Gimelshein, 2018; Dao et al., FlashAttention, 2022). The work is items: queries, times a run of positions of one slot. A run
// that several rows share is one item for all of them; a row with more than one item has its partial results joined.
//
// A query's sums are added in one order, however the work is cut: positions are cut into blocks, and blocks into stretches, both
// counted from position 0. A block is added up by itself, a stretch is its blocks joined from the left, the result is the
// stretches joined from the left. Items begin where blocks do, and what they leave to be joined are stretches, beginnings of
// stretches, or single blocks. What a query does not see adds zeros, which change nothing.
#pragma once

#include "cells.h"

constexpr int SPAN = 64;      // positions of a block, which are scored at once
constexpr int QUERIES = 64;   // most queries of an item's piece, and so most query heads of a KV head
constexpr int STRETCH = 512;  // positions of a stretch; a long row is cut into them when there are fewer rows than threads

// ---- what a step has to attend to

struct Item {
    int slot, low, high;      // positions [low, high) of the slot; low is where a block begins, but for a window's
    int first, number;        // tokens[first .. first + number)
    int part;                 // where the partial results of its first token go; -1 if there is only this item
    int parts;                // how many those are
    bool own;                 // of the tokens' text: one sees what its position lets it see, else all of the item
};

// Where the partial result ends that holds position `at` of an item from `low` on: with the stretch, or with the block in a stretch
// that began before.
inline int part_end(int low, int at) {
    int size = low % STRETCH && at / STRETCH == low / STRETCH ? SPAN : STRETCH;
    return (at / size + 1) * size;
}

// A partial result to be joined.
struct Part {
    int index;
    bool opens;  // a stretch
};

struct Attend {
    std::vector<Item> items;
    std::vector<int> tokens;             // of the items
    std::vector<int> part_of, parts_of;  // per token of the step: first entry in `merges`, and how many
    std::vector<Part> merges;
    int num_parts = 0;
    std::vector<float> partial;  // [part][head][state]

    // A run of positions [low, high) of `slot`, and the tokens that share it: members[first .. first + number).
    struct Run {
        int slot, low, high, first, number;
    };

    // `positions` per token; rows' tokens are [offsets[r], offsets[r + 1]).
    void plan(const Seen& kv, int rows, const int32_t* slots, const int32_t* starts, const int32_t* counts, const int32_t* offsets,
              int num_runs, const Run* runs, const int32_t* members, int threads) {
        items.clear(), tokens.clear(), merges.clear();
        num_parts = 0;
        int total = rows ? offsets[rows] : 0;
        part_of.assign(total, 0), parts_of.assign(total, 0);
        std::vector<std::vector<Part>> shared(total);  // parts of each token
        std::vector<int> own(total, 0);                // where each token's own positions begin
        if (!kv.window && !kv.ahead) plan_runs(std::vector<Run>(runs, runs + num_runs), members, shared, own);
        int most = std::max(1, QUERIES / kv.repeat());
        bool few = rows * kv.bunches < 2 * threads;
        for (int r = 0; r < rows; r++) {
            for (int done = 0, number; done < counts[r]; done += number) {
                int token = offsets[r] + done;
                // A token that shares runs is joined by itself, drafts too.
                number = shared[token].empty() ? std::min(most, counts[r] - done) : 1;
                int high = kv.end(starts[r] + done + number - 1, starts[r] + counts[r]);
                int low = kv.window ? kv.oldest(starts[r] + done) : own[token];
                int pieces = few && counts[r] == 1 ? std::max(1, std::min((high - low) / STRETCH, 4 * threads)) : 1;
                int step = (high - low) / pieces / STRETCH * STRETCH;
                bool partial = pieces > 1 || !shared[token].empty();
                part_of[token] = int(merges.size());
                merges.insert(merges.end(), shared[token].begin(), shared[token].end());
                for (int begin = low, end; begin < high; begin = end) {
                    end = pieces == 1 ? high : std::min(high, (begin + step) / STRETCH * STRETCH);
                    Item item{slots[r], begin, end, int(tokens.size()), number, -1, 0, true};
                    for (int t = 0; t < number; t++) tokens.push_back(token + t);
                    if (partial) give_parts(item, merges);
                    items.push_back(item);
                }
                parts_of[token] = int(merges.size()) - part_of[token];
            }
        }
        std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
            return int64_t(a.high - a.low) * a.number > int64_t(b.high - b.low) * b.number;
        });
        partial.resize(size_t(num_parts) * kv.heads * kv.state());
    }

    // Of what an encoder left: tokens that look at one entry are together.
    void plan_entries(const Seen& kv, int rows, const int32_t* slots, const int32_t* counts, const int32_t* offsets,
                      const int32_t* entries, const int32_t* lengths) {
        items.clear(), tokens.clear(), merges.clear();
        num_parts = 0;
        part_of.assign(rows ? offsets[rows] : 0, 0), parts_of.assign(rows ? offsets[rows] : 0, 0);
        std::vector<int> order;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < counts[r]; i++) order.push_back(r);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return entries[slots[a]] < entries[slots[b]]; });
        const int most = std::max(1, QUERIES / kv.repeat());
        std::vector<int> taken(rows, 0);
        for (int row : order) {
            const int entry = entries[slots[row]], at = int(tokens.size());
            if (items.empty() || items.back().slot != entry || items.back().number == most)
                items.push_back({entry, 0, lengths[entry], at, 0, -1, 0, false});
            items.back().number++, tokens.push_back(offsets[row] + taken[row]++);
        }
    }

private:
    // Whole blocks of runs: what is left of them is the tokens' own.
    void plan_runs(std::vector<Run> runs, const int32_t* members, std::vector<std::vector<Part>>& shared, std::vector<int>& own) {
        std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.low < b.low; });
        for (Run& run : runs) {
            run.low = run.low / SPAN * SPAN, run.high = run.high / SPAN * SPAN;
            if (run.low >= run.high) continue;
            Item item{run.slot, run.low, run.high, int(tokens.size()), run.number, -1, 0, false};
            std::vector<Part> parts;
            give_parts(item, parts);
            for (int m = 0; m < run.number; m++) {
                int token = members[run.first + m];
                tokens.push_back(token);
                for (const Part& part : parts) shared[token].push_back({part.index + m * item.parts, part.opens});
                own[token] = run.high;
            }
            items.push_back(item);
        }
    }

    // Room for the item's partial results, and those of its first token.
    void give_parts(Item& item, std::vector<Part>& parts) {
        item.part = num_parts;
        for (int at = item.low; at < item.high; at = part_end(item.low, at))
            parts.push_back({item.part + item.parts++, at % STRETCH == 0});
        num_parts += item.parts * item.number;
    }
};

// A state is what is known of a query after some of its positions: [width] weighted sums of values, then the greatest score, by
// which the weights are made, and their sum.

inline void clear(float* state, int width) {
    std::memset(state, 0, size_t(width) * 4);
    state[width] = -INFINITY, state[width + 1] = 0;
}

// What two states are multiplied with when they are joined, of which one is 1.
struct Weigh {
    float mine, other;
};

inline Weigh weigh(float& greatest, float other) {
    if (other > greatest) {
        float mine = greatest > -INFINITY ? std::exp(greatest - other) : 0.0f;
        greatest = other;
        return {mine, 1};
    }
    return {1, other > -INFINITY ? std::exp(other - greatest) : 0.0f};
}

// Adds to `state` one of positions behind it.
inline void join(float* state, const float* other, int width) {
    Weigh by = weigh(state[width], other[width]);
    for (int d = 0; d < width; d += W) store(state + d, fused(load(state + d), splat(by.mine), load(other + d) * by.other));
    state[width + 1] = state[width + 1] * by.mine + other[width + 1] * by.other;
}

// A `sink`, if there is one, is a score more.
inline void finish(const float* state, int width, int dim, float* out, const float* sink = nullptr) {
    float total = state[width + 1];
    if (sink) total += std::exp(*sink - state[width]);
    float inverse = 1 / total;
    for (int d = 0; d < dim; d++) out[d] = state[d] * inverse;
}

// One thread's room, of so many queries: themselves, the scores of a block, the states of the stretch and of all before it; and of
// a block's positions as floats.
struct AttendRoom {
    std::vector<float> queries, scores, stretches, wholes, rows;
    void reserve(const Seen& kv) {
        size_t states = size_t(QUERIES) * kv.state(), asked = size_t(QUERIES) * (kv.asks + TILE);
        if (stretches.size() < states) stretches.resize(states), wholes.resize(states);
        if (queries.size() < asked) queries.resize(asked);
        if (rows.size() < size_t(SPAN) * kv.asks) rows.resize(size_t(SPAN) * kv.asks);
        scores.resize(size_t(QUERIES) * SPAN);
    }
};

// Queries that are computed together: those of a bunch of heads, of tokens [first, first + number) of an item.
struct Asking {
    const Seen& kv;
    const Item& item;
    const int bunch, first, number, queries;
    const int* tokens;
    float *partial, *stretches, *wholes;

    Asking(const Seen& kv, const Item& item, const Attend& plan, int bunch, int first, float* partial, AttendRoom& room)
        : kv(kv), item(item), bunch(bunch), first(first), number(std::min(most(kv), item.number - first)),
          queries(number * kv.repeat()), tokens(plan.tokens.data() + item.first + first), partial(partial),
          stretches(room.stretches.data()), wholes(room.wholes.data()) {
        for (int n = 0; n < queries; n++) clear(stretches + n * kv.state(), kv.width), clear(wholes + n * kv.state(), kv.width);
    }

    static int most(const Seen& kv) { return std::max(1, QUERIES / kv.repeat()); }  // tokens
    int token(int n) const { return tokens[n / kv.repeat()]; }
    int head(int n) const { return bunch * kv.repeat() + n % kv.repeat(); }

    // Calls block(begin, end) for each block of positions [low, high); its stretches end on the way.
    template <class Block>
    INLINE void walk(int low, int high, Block&& block) const {
        int done = 0, last = part_end(item.low, low);  // partial results, and the end of the present one
        for (int begin = low / SPAN * SPAN; begin < high; begin += SPAN) {
            const int end = std::min(begin + SPAN, high);
            block(begin, end);
            if (begin + SPAN < last && end < high) continue;
            leave(done);
            done++, last = part_end(item.low, end);
        }
    }

    // What has been found, to out[token][head][dim], unless it is in parts; `sinks` are those of all heads, or null.
    void yield(float* out, const float* sinks = nullptr) const {
        if (item.part >= 0) return;
        for (int n = 0; n < queries; n++)
            finish(wholes + n * kv.state(), kv.width, kv.dim, out + (size_t(token(n)) * kv.heads + head(n)) * kv.dim,
                   sinks ? sinks + head(n) : nullptr);
    }

private:
    // A stretch has ended, the `done`-th of the item that is left in parts.
    void leave(int done) const {
        const int state = kv.state();
        for (int n = 0; n < queries; n++) {
            float* stretch = stretches + n * state;
            if (item.part < 0) {
                join(wholes + n * state, stretch, kv.width);
            } else {
                size_t part = item.part + size_t(first + n / kv.repeat()) * item.parts + done;
                std::memcpy(partial + (part * kv.heads + head(n)) * state, stretch, (kv.width + 2) * 4);
            }
            clear(stretch, kv.width);
        }
    }
};

template <Store STORE>
INLINE vf load_cells(const uint8_t* base, size_t index) {
    if constexpr (STORE == KEEP_F32) return load(reinterpret_cast<const float*>(base) + index);
    else if constexpr (STORE == KEEP_F16) return load_half(reinterpret_cast<const uint16_t*>(base) + index);
    else return load_int8(reinterpret_cast<const int8_t*>(base) + index);
}

// Scores of N queries with the 16 positions of one tile of keys.
template <Store STORE, int N>
INLINE void score_tile(const uint8_t* keys, size_t tile, int dim, const float* queries, int width, float* scores) {
    vf totals[N][PARTS] = {};
    for (int d = 0; d < dim; d++) {
        vf k[PARTS];
        for (int part = 0; part < PARTS; part++) k[part] = load_cells<STORE>(keys, tile + d * TILE + part * W);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
            for (int part = 0; part < PARTS; part++) totals[n][part] = fused(k[part], splat(queries[n * width + d]), totals[n][part]);
    }
    for (int n = 0; n < N; n++)
        for (int part = 0; part < PARTS; part++) store(scores + n * SPAN + part * W, totals[n][part]);
}

// Joins the values of a block's positions, weighted, to N queries' states; V vectors of the dimensions at a time.
template <Store STORE, int N, int V>
INLINE void add_values(const Cells& kv, const size_t* cells, int count, int column, const float* scores, const Weigh* by, float* states) {
    vf totals[N][V] = {};
    for (int c = 0; c < count; c++) {
        vf x[V];
        for (int v = 0; v < V; v++) x[v] = load_cells<STORE>(kv.values, cells[c] * kv.width + column + v * W);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
            for (int v = 0; v < V; v++) totals[n][v] = fused(x[v], splat(scores[n * SPAN + c]), totals[n][v]);
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) {
            float* at = states + n * kv.state() + column + v * W;
            store(at, fused(load(at), splat(by[n].mine), totals[n][v] * by[n].other));
        }
}

// Calls work(N, n) for queries [n, n + N), most of them MOST at once.
template <int MOST, class Work>
INLINE void in_bunches(int queries, Work&& work) {
    int n = 0;
    for (; n + MOST <= queries; n += MOST) work(std::integral_constant<int, MOST>(), n);
    for (; n + 3 <= queries; n += 3) work(std::integral_constant<int, 3>(), n);
    for (; n < queries; n++) work(std::integral_constant<int, 1>(), n);
}

constexpr int SCORED = W == 16 ? 8 : 6;  // queries whose scores stay in registers
constexpr int ADDED = W == 16 ? 6 : 4;   // queries whose sums do
constexpr int WIDE = W == 16 ? 4 : 2;    // vectors of dimensions likewise

template <Store STORE, int N>
INLINE void add_all_values(const Cells& kv, const size_t* cells, int count, const float* scores, const Weigh* by, float* states) {
    int column = 0;
    for (; column + WIDE * W <= kv.width; column += WIDE * W)
        add_values<STORE, N, WIDE>(kv, cells, count, column, scores, by, states);
    for (; column < kv.width; column += W) add_values<STORE, N, 1>(kv, cells, count, column, scores, by, states);
}

// Capped, and less by distance: scores of positions from `first` on.
INLINE void bend(const Cells& kv, float* scores, int filled, float slope, int first, int position) {
    for (int c = 0; c < filled; c += W) {
        vf v = load(scores + c);
        if (kv.cap > 0) v = vtanh(v / kv.cap) * kv.cap;
        if (slope != 0) {
            vf places;
            for (int i = 0; i < W; i++) places[i] = float(first + c + i - position);
            v += places * slope;
        }
        store(scores + c, v);
    }
}

// One query's scores of a block become weights; its state takes all but the values.
INLINE Weigh soften(float* scores, int filled, float* state, int width) {
    vf peak = splat(-INFINITY), broken{}, totals{};
    for (int c = 0; c < filled; c += W) {
        vf v = load(scores + c);
        peak = vmax(v, peak);
        broken += v < splat(INFINITY) ? vf{} : splat(NAN);
    }
    float top = greatest(peak);
    if (top > -INFINITY) {
        for (int c = 0; c < filled; c += W) {
            vf e = vexp(load(scores + c) - top);
            totals += e;
            store(scores + c, e);
        }
    } else {
        std::memset(scores, 0, filled * 4);
    }
    Weigh by = weigh(state[width], top);
    float total = sum(totals) + sum(broken);  // a score that is not a number makes the row so
    state[width + 1] = state[width + 1] * by.mine + total * by.other;
    return by;
}

// One head's share of an item: `heads` is [token][query heads | key heads | value heads][dim], the queries turned; of what is fixed only
// queries.
template <Store STORE>
void attend(const Cells& kv, int layer, int head, const Item& item, const Attend& plan, const int32_t* table, const int64_t* positions,
            const float* heads, float scale, const float* sinks, float* out, float* partial, AttendRoom& room) {
    const int repeat = kv.repeat(), width = kv.width, all = kv.heads + (kv.fixed ? 0 : 2 * kv.kv_heads), state = kv.state();
    const bool bent = kv.cap > 0 || !kv.slopes.empty();
    // Members of a shared run may be more than one piece of queries.
    for (int first = 0; first < item.number; first += Asking::most(kv)) {
        const Asking asking(kv, item, plan, head, first, partial, room);
        const int queries = asking.queries;
        float* q = room.queries.data();
        float* scores = room.scores.data();
        Weigh by[QUERIES];
        int lows[QUERIES], highs[QUERIES];
        for (int n = 0; n < queries; n++) {
            const int position = int(positions[asking.token(n)]);
            const float* source = heads + (size_t(asking.token(n)) * all + asking.head(n)) * kv.dim;
            for (int d = 0; d < kv.dim; d++) q[n * width + d] = source[d] * scale;
            for (int d = kv.dim; d < width; d++) q[n * width + d] = 0;
            highs[n] = item.own ? std::min(item.high, kv.end(position, item.high)) : item.high;
            lows[n] = item.own ? std::max(item.low, kv.oldest(position)) : item.low;
        }
        int low = *std::min_element(lows, lows + queries), high = *std::max_element(highs, highs + queries);
        asking.walk(low, high, [&](int begin, int end) {
            const int skipped = std::max(0, low - begin);  // positions that nobody sees are never multiplied
            size_t cells[SPAN];
            for (int tile = begin + skipped / TILE * TILE; tile < end; tile += TILE) {
                size_t cell = size_t(table[tile / kv.page]) * kv.page + tile % kv.page;
                size_t at = kv.place(layer, head, cell);
                for (int i = 0; i < TILE; i++) cells[tile - begin + i] = at + i;
                in_bunches<SCORED>(queries, [&](auto N, int n) {
                    score_tile<STORE, N>(kv.keys, at * width, kv.dim, q + n * width, width, scores + n * SPAN + tile - begin);
                });
            }
            const int count = end - begin, filled = (count + TILE - 1) / TILE * TILE;
            for (int n = 0; n < queries; n++) {
                float* s = scores + n * SPAN;
                if constexpr (STORE == KEEP_I8)
                    for (int c = skipped; c < count; c++) s[c] *= kv.key_scales[cells[c]];
                if (bent) {
                    float slope = kv.slopes.empty() ? 0 : kv.slopes[head * repeat + n % repeat];
                    bend(kv, s, filled, slope, begin, int(positions[asking.token(n)]));
                }
                for (int c = 0; c < std::min(filled, lows[n] - begin); c++) s[c] = -INFINITY;
                for (int c = std::max(0, highs[n] - begin); c < filled; c++) s[c] = -INFINITY;
                by[n] = soften(s, filled, asking.stretches + n * state, width);
                if constexpr (STORE == KEEP_I8)
                    for (int c = skipped; c < count; c++) s[c] *= kv.value_scales[cells[c]];
            }
            in_bunches<ADDED>(queries, [&](auto N, int n) {
                add_all_values<STORE, N>(kv, cells + skipped, count - skipped, scores + n * SPAN + skipped, by + n,
                                         asking.stretches + n * state);
            });
        });
        asking.yield(out, sinks);
    }
}

inline void attend_any(const Cells& kv, int layer, int head, const Item& item, const Attend& plan, const int32_t* table,
                       const int64_t* positions, const float* heads, float scale, const float* sinks, float* out, float* partial,
                       AttendRoom& room) {
    switch (kv.store) {
        case KEEP_F32: return attend<KEEP_F32>(kv, layer, head, item, plan, table, positions, heads, scale, sinks, out, partial, room);
        case KEEP_F16: return attend<KEEP_F16>(kv, layer, head, item, plan, table, positions, heads, scale, sinks, out, partial, room);
        case KEEP_I8: return attend<KEEP_I8>(kv, layer, head, item, plan, table, positions, heads, scale, sinks, out, partial, room);
    }
}

// What one of a token's heads gets, from its parts.
inline void merge_head(const Seen& kv, const Attend& plan, int token, int head, const float* partial, AttendRoom& room, float* out,
                       const float* sink = nullptr) {
    const Part* parts = plan.merges.data() + plan.part_of[token];
    float *stretch = room.stretches.data(), *whole = room.wholes.data();
    clear(stretch, kv.width), clear(whole, kv.width);
    for (int i = 0; i < plan.parts_of[token]; i++) {
        if (parts[i].opens) join(whole, stretch, kv.width), clear(stretch, kv.width);
        join(stretch, partial + (size_t(parts[i].index) * kv.heads + head) * kv.state(), kv.width);
    }
    join(whole, stretch, kv.width);
    finish(whole, kv.width, kv.dim, out, sink);
}

// All of them: `out` is [heads][dim].
inline void merge(const Seen& kv, const Attend& plan, int token, const float* partial, AttendRoom& room, float* out,
                  const float* sinks = nullptr) {
    for (int head = 0; head < kv.heads; head++)
        merge_head(kv, plan, token, head, partial, room, out + head * kv.dim, sinks ? sinks + head : nullptr);
}
