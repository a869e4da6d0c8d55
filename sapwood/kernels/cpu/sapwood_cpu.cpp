// The library's C interface, for ctypes. Pointers are borrowed unless a function is called `..._new`, which returns null where
// something cannot be had; nothing throws.

#include <exception>
#include <string>

#include "simd.h"

#include "experts.h"
#include "latents.h"
#include "states.h"
#include "texts.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define API extern "C" __attribute__((visibility("default")))

// Raised with every change of the interface: a library of another build is not used.
API int sapwood_version() { return SAPWOOD_CPU_VERSION; }

API const char* sapwood_target() {
#if defined(__AVX512VNNI__)
    return "avx512";
#elif defined(__AVXVNNI__)
    return "avx2vnni";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__ARM_FEATURE_DOTPROD)
    return "neon";
#else
    return "base";
#endif
}

// The name of the build that suits this processor best.
API const char* sapwood_best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        bool vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 16);
        return vnni ? "avx2vnni" : "avx2";
    }
#elif defined(__APPLE__)
    return "neon";
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return "neon";
#endif
    return "base";
}

// The fields of a struct, where each begins and its size, and the struct's size: a line.
template <class S, class... Fields>
std::string layout(const char* names, Fields S::*... fields) {
    S some{};
    std::string line = std::string(names) + " =";
    auto add = [&](void* field, size_t size) {
        line += " " + std::to_string(static_cast<char*>(field) - reinterpret_cast<char*>(&some)) + ":" + std::to_string(size);
    };
    (add(&(some.*fields), sizeof(Fields)), ...);
    return line + " " + std::to_string(sizeof(S)) + "\n";
}
#define LAYOUT(...) layout(#__VA_ARGS__, __VA_ARGS__)

// Every struct that crosses this interface, as compiled: `library.py` compares it with its own. A new one is a line here and there.
API const char* sapwood_layouts() {
    static const std::string lines =
        LAYOUT(&Norm::weight, &Norm::bias, &Norm::eps, &Norm::center) +
        LAYOUT(&Heads::norm, &Heads::cos, &Heads::sin, &Heads::half, &Heads::by_token, &Heads::interleaved, &Heads::late, &Heads::group,
               &Heads::layer, &Heads::sinks, &Heads::scale) +
        LAYOUT(&Selection::offsets, &Selection::top, &Selection::score, &Selection::renormalised, &Selection::groups,
               &Selection::top_groups, &Selection::group_best, &Selection::scale, &Selection::slack) +
        LAYOUT(&Step::num_tokens, &Step::num_rows, &Step::ids, &Step::positions, &Step::slots, &Step::starts, &Step::counts,
               &Step::offsets, &Step::tables, &Step::strides, &Step::cells, &Step::num_runs, &Step::run_lows, &Step::run_highs,
               &Step::run_firsts, &Step::run_sizes, &Step::run_slots, &Step::run_tokens, &Step::heads, &Step::seconds,
               &Step::entries, &Step::lengths, &Step::queries, &Step::adapters) +
        LAYOUT(&Change::groups, &Change::rank, &Change::ins, &Change::outs, &Change::first, &Change::a, &Change::b, &Change::factors,
               &Change::offset, &Change::ranks, &Change::scaled, &Change::bounds) +
        LAYOUT(&Taps::weights, &Taps::bias, &Taps::channels, &Taps::width, &Taps::group, &Taps::layer) +
        LAYOUT(&Scan::bias, &Scan::rates, &Scan::skip, &Scan::norm, &Scan::heads, &Scan::groups, &Scan::key_size, &Scan::value_size,
               &Scan::parts, &Scan::query, &Scan::key, &Scan::value, &Scan::step, &Scan::beta, &Scan::gate, &Scan::gates_first,
               &Scan::low, &Scan::high, &Scan::group, &Scan::layer);
    return lines.c_str();
}

// What functions return that compute on a machine; `library.py` knows them.
enum Status : int { DONE, NO_MEMORY, FORKED };

template <class Work>
int on(Machine* machine, Work&& work) {
    if (!machine->pool.ours()) return FORKED;
    try {
        work();
        return DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

template <class Make>
auto made(Make&& make) -> decltype(make()) {
    try {
        return make();
    } catch (const std::exception&) {  // no memory, or no more threads
        return nullptr;
    }
}

// ---- machines

API Machine* machine_new(int threads, int fine) {
    return made([&] { return new Machine(threads, fine); });
}
// In a forked process it is left alone: there is nobody to wait for.
API void machine_free(Machine* machine) {
    if (machine->pool.ours()) delete machine;
}

// ---- weights

API Weights* weights_new(int kind, int group, int minima, int wide, int outs, int ins) {
    auto* weights = made([&] { return new Weights(Kind(kind), group, Minima(minima), wide, outs, ins); });
    if (!weights || weights->data) return weights;
    delete weights;
    return nullptr;
}
API void weights_free(Weights* weights) { delete weights; }
API int64_t weights_bytes(const Weights* weights) { return int64_t(weights->bytes); }

// Bytes of a row of so many inputs in a checkpoint; 0 if there is no such row.
API int64_t weights_row_bytes(int form, int ins) { return int64_t(row_bytes(Form(form), ins)); }

// Calls put(i) for each of so many rows that become outputs from `first` on. Threads must not share a tile's bytes.
template <class Put>
int put_rows(Machine* machine, int first, int rows, Put&& put) {
    int tiles = (first % TILE + rows + TILE - 1) / TILE;
    return on(machine, [&] {
        machine->pool.run([&](int) {
            machine->pool.share(tiles, [&](int tile) {
                int begin = std::max(0, tile * TILE - first % TILE), end = std::min(rows, (tile + 1) * TILE - first % TILE);
                for (int row = begin; row < end; row++) put(row);
            });
        });
    });
}

// Outputs [first, first + rows) from rows of a checkpoint. `order`, if given, says which row of `source` is the i-th.
API int weights_put(Machine* machine, Weights* weights, int form, const uint8_t* source, const int64_t* order, int first, int rows) {
    size_t size = row_bytes(Form(form), weights->ins);
    return put_rows(machine, first, rows,
                    [&](int row) { put_row(*weights, first + row, Form(form), source + (order ? order[row] : row) * size); });
}

// All outputs from codes, [outs, ins] or for those of 4 bits [outs, ins / 2], with scales and, if there are any, zeros
// [outs, groups]: see `put_codes`. `tables`, of those that have some, are two of 16 integers of 8 bits,
// of which the second counts if they are `fine`, in a `unit`.
API int weights_put_codes(Machine* machine, Weights* weights, const uint8_t* codes, const float* scales, const float* zeros,
                          const int8_t* tables, float unit, int fine) {
    weights->unit = unit, weights->fine = fine;
    for (int i = 0; tables && i < 32; i++) weights->tables[i / 16][i % 16] = uint8_t(tables[i] + 128);
    size_t size = weights->kind == U4 || weights->kind == T4 ? weights->ins / 2 : weights->ins, groups = weights->groups();
    return put_rows(machine, 0, weights->outs, [&](int row) {
        put_codes(*weights, row, codes + row * size, scales + row * groups, zeros ? zeros + row * groups : nullptr);
    });
}

// All outputs as those of another from `first` on, which are of the same kind.
API int weights_copy(Machine* machine, Weights* weights, const Weights* from, int first) {
    weights->unit = from->unit, weights->fine = from->fine;
    std::memcpy(weights->tables, from->tables, sizeof(weights->tables));
    return put_rows(machine, 0, weights->outs, [&](int row) { copy_row(*weights, row, *from, first + row); });
}

// out[i] = the weights of output ids[i], times factor: [rows, ins].
API int weights_rows(Machine* machine, const Weights* weights, const int64_t* ids, int rows, float factor, float* out) {
    return on(machine, [&] {
        machine->pool.run([&](int) {
            machine->pool.share(rows, [&](int row) { read_row(*weights, int(ids[row]), factor, out + size_t(row) * weights->ins); });
        });
    });
}

// ---- products

API Linear* linear_new() {
    return made([] { return new Linear; });
}
API void linear_free(Linear* linear) { delete linear; }
API void linear_add(Linear* linear, const Weights* weights, const float* bias) { linear->add(weights, bias); }
API void linear_order(Linear* linear, const int32_t* order) { linear->order = order; }
// To be called before the product is in a list.
API void linear_change(Linear* linear, const Change* change) { linear->change = change; }

// out_TO = x_TI W (+ b).
API int linear_apply(Machine* machine, const Linear* linear, const float* x, int rows, float* out) {
    if (!rows) return DONE;
    return on(machine, [&] {
        const Want want = linear->want();
        const int ins = want.ins;
        machine->make_room(rows, ins, linear->order ? ins : 0);
        machine->pool.run([&](int id) {
            Rows input = machine->rows_for(id, want, rows, machine->wide, false, [&](int row, float* target) {
                std::memcpy(target, x + size_t(row) * ins, ins * 4);
            });
            machine->project(id, *linear, input, rows, out, false);
        });
    });
}

// ---- keys and values

API Cells* cells_new(int store, int layers, int heads, int kv_heads, int dim, int window, int page) {
    return made([&] { return new Cells(Store(store), layers, heads, kv_heads, dim, window, page); });
}
// Scores are capped and fall with distance; a cap of 0 and no slopes (null) are none.
API void cells_bend(Cells* cells, float cap, const float* slopes) {
    cells->cap = cap;
    if (slopes) cells->slopes.assign(slopes, slopes + cells->heads);
}
// Texts are seen whole, not up to each token.
API void cells_ahead(Cells* cells) { cells->ahead = true; }
// They are what an encoder leaves of inputs, an entry a page.
API void cells_fixed(Cells* cells) { cells->fixed = true; }
// What a layer makes of an input, keys and values [position][2][head][dim], becomes an entry.
API int cells_put(Machine* machine, Cells* cells, int layer, int entry, const float* both, int positions) {
    return on(machine, [&] {
        machine->pool.run([&](int) {
            machine->pool.share(positions, [&](int at) {
                for (int head = 0; head < cells->kv_heads; head++) {
                    const float* key = both + (size_t(at) * 2 * cells->kv_heads + head) * cells->dim;
                    cells->write(layer, head, size_t(entry) * cells->page + at, key, key + cells->kv_heads * cells->dim);
                }
            });
        });
    });
}
API void cells_free(Cells* cells) { delete cells; }
API int cells_allocate(Cells* cells, int64_t pages) { return cells->allocate(size_t(pages)); }
API void* cells_keys(const Cells* cells) { return cells->keys; }
API void* cells_values(const Cells* cells) { return cells->values; }
API float* cells_key_scales(const Cells* cells) { return cells->key_scales; }
API float* cells_value_scales(const Cells* cells) { return cells->value_scales; }

// Attention of one layer, outside of a stack. `step` is about this group alone, `heads` [token][queries | keys | values][dim],
// out [token][heads][dim].
API int cells_attend(Machine* machine, Cells* cells, const Heads* how, const Step* step, float* heads, float* out) {
    if (!step->num_tokens) return DONE;
    return on(machine, [&] {
        machine->plan(*step, {cells});
        Attend& plan = machine->plans[0];
        machine->pool.run([&](int id) {
            machine->attend(id, *cells, plan, *how, *step, heads, out);
            machine->pool.share(step->num_tokens, [&](int t) {
                if (plan.parts_of[t])
                    merge(*cells, plan, t, plan.partial.data(), machine->rooms[id], out + size_t(t) * cells->heads * cells->dim,
                          how->sinks);
            });
        });
    });
}

// ---- latents and states, whose memory is borrowed: that of the latents is [layer][cell][rank + turned]

API Latents* latents_new(int store, int heads, int bunches, int rank, int turned, int page) {
    return made([&] { return new Latents(Store(store), heads, bunches, rank, turned, page); });
}
API void latents_free(Latents* latents) { delete latents; }
API void latents_place(Latents* latents, uint8_t* rows, int64_t cells) { latents->rows = rows, latents->cells = size_t(cells); }

// Attention of one layer, outside of a stack: of queries [token][head][rank + turned] and latents in rows so far apart; both are
// overwritten. `step` is about this group alone, out [token][head][rank].
API int latents_attend(Machine* machine, Latents* kv, const Heads* how, const Step* step, float* queries, float* latents, int64_t apart,
                       float* out) {
    if (!step->num_tokens) return DONE;
    return on(machine, [&] {
        machine->plan(*step, {kv});
        Attend& plan = machine->plans[0];
        machine->pool.run([&](int id) {
            machine->pool.share(step->num_tokens, [&](int t) {
                keep_latent(*kv, *how, *step, t, latents + t * apart);
                for (int head = 0; head < kv->heads; head++)
                    turn_last(*kv, *how, *step, t, queries + (size_t(t) * kv->heads + head) * kv->asks + kv->rank);
            });
            machine->pool.barrier();
            attend_step(*machine, id, *kv, plan, *how, *step, queries, out);
            machine->pool.share(step->num_tokens, [&](int t) {
                if (plan.parts_of[t])
                    merge(*kv, plan, t, plan.partial.data(), machine->rooms[id], out + size_t(t) * kv->heads * kv->rank);
            });
        });
    });
}

API States* states_new(int page, int cells) {
    return made([&] { return new States(page, cells); });
}
API void states_free(States* states) { delete states; }
// Memory of the next shape, [layer][cell][size]; `total` cells of all pages.
API void states_place(States* states, float* kept, int64_t size, int64_t total) {
    states->shapes.push_back({kept, size_t(size)}), states->total = size_t(total);
}

// ---- stacks

API Stack* stack_new(Machine* machine) {
    return made([&] { return new Stack(*machine); });
}
API void stack_free(Stack* stack) { delete stack; }
// One of the kinds of `cells.h`, `latents.h` and `states.h`, all of which begin with what they are.
API void stack_add_group(Stack* stack, Kept* kept) { stack->groups.push_back(kept); }

// Its operations, in their order; see `stack.h`.
API void stack_embed(Stack* stack, const Weights* table, float scale) { stack->add(std::make_unique<Embed>(*table, scale)); }
API void stack_positions(Stack* stack, const Weights* table) { stack->add(std::make_unique<AddPositions>(*table)); }
API void stack_segments(Stack* stack, const Weights* table) { stack->add(std::make_unique<AddSegments>(*table)); }
API void stack_attend_entries(Stack* stack, int group, int layer, int from, float scale) {
    stack->add(std::make_unique<AttendEntries>(group, layer, from, scale));
}
API void stack_settle(Stack* stack, const Norm* norm, int size) { stack->add(std::make_unique<Settle>(*norm, size)); }
API void stack_norm_columns(Stack* stack, const Norm* norm, int which, int width, int first, int size) {
    stack->add(std::make_unique<NormColumns>(*norm, which, width, first, size));
}
API void stack_norm(Stack* stack, const Norm* norm, const Norm* after, float scale, int from, int size) {
    stack->add(std::make_unique<Normalise>(*norm, *after, scale, from, size));
}
API void stack_project(Stack* stack, const Linear* linear, int to, int add) {
    stack->add(std::make_unique<Project>(*linear, to, add));
}
API void stack_attend(Stack* stack, const Heads* how, int from, int gate) {
    stack->add(std::make_unique<AttendHeads>(*how, from, gate));
}
API void stack_take_columns(Stack* stack, const Norm* norm, int which, int width, int first, int size) {
    stack->add(std::make_unique<TakeColumns>(*norm, which, width, first, size));
}
// `keys` and `values` are products of each of so many heads.
API void stack_attend_latents(Stack* stack, const Heads* how, const Linear* const* keys, const Linear* const* values, int heads, int rank,
                              int turned, int from, int down, int wide, int own) {
    using List = std::vector<const Linear*>;
    stack->add(std::make_unique<AttendLatents>(*how, List(keys, keys + heads), List(values, values + heads), rank, turned, from, down,
                                               wide, own));
}
API void stack_short_conv(Stack* stack, const Taps* taps, int from) { stack->add(std::make_unique<ShortConv>(*taps, from)); }
API void stack_conv_columns(Stack* stack, const Taps* taps, int from, int wide, int first, int to) {
    stack->add(std::make_unique<ConvColumns>(*taps, from, wide, first, to));
}
API void stack_scan(Stack* stack, const Scan* how, int from, int wide, int conv, int channels, int own) {
    stack->add(std::make_unique<ScanHeads>(*how, from, wide, conv, channels, own));
}
API void stack_gate(Stack* stack, const Linear* linear, int activation) {
    stack->add(std::make_unique<Gate>(*linear, activation));
}
// The weights of `count` experts each, of which the router's products in buffer `own` choose.
API void stack_experts(Stack* stack, const Selection* how, const Linear* const* gate_ups, const Linear* const* downs, int count,
                       int activation, int weighs_input, int own, int to, int add) {
    using List = std::vector<const Linear*>;
    stack->add(std::make_unique<RouteExperts>(*how, List(gate_ups, gate_ups + count), List(downs, downs + count), activation,
                                              weighs_input, own, to, add));
}
API void stack_add_gated(Stack* stack, int from, int gate, int to, int size) {
    stack->add(std::make_unique<AddGated>(from, gate, to, size));
}
API void stack_finish(Stack* stack, const Norm* norm, const Norm* after, float scale, int from, int size) {
    stack->add(std::make_unique<Finish>(*norm, *after, scale, from, size));
}

API int stack_forward(Stack* stack, const Step* step, float* hidden) {
    return on(&stack->machine, [&] { stack->forward(*step, hidden); });
}
