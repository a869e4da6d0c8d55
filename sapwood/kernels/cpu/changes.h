// What adapters change in products: y += factors * (y - offset) + B A x, for each row with its own adapter's matrices (Hu et al., 2021; Liu et
// al., 2024).
#pragma once

#include "simd.h"

// Of one product, of all slots. What a slot has less of than `rank` is 0 and is not looked at. A product that is some outputs of a larger
// one has those from `first` on.
struct Change {
    int groups, rank, ins, outs, first;
    const float *a, *b;             // [slot][group][rank][ins], [slot][rank][outs]
    const float *factors, *offset;  // [slot][outs], [outs]: of slots that are scaled
    const int32_t *ranks, *scaled;  // [slot]
    const int32_t* bounds;          // [groups + 1]: outputs of each group, which has an A of its own

    constexpr static int AT_ONCE = 8;
    int pieces() const { return groups * ((rank + AT_ONCE - 1) / AT_ONCE); }

    // Piece `which` of A x for a row that has the adapter in `slot`: inner[group][rank].
    void shrink(int slot, int which, const float* x, float* inner) const {
        const int per_group = pieces() / groups, group = which / per_group, begin = which % per_group * AT_ONCE;
        const int end = std::min(begin + AT_ONCE, int(ranks[slot]));
        const float* rows = a + (size_t(slot) * groups + group) * rank * ins;
        for (int r = begin; r < end; r++) {
            vf total{};
            const float* row = rows + size_t(r) * ins;
            int i = 0;
            for (; i + W <= ins; i += W) total = fused(load(row + i), load(x + i), total);
            float rest = sum(total);
            for (; i < ins; i++) rest += row[i] * x[i];
            inner[group * rank + r] = rest;
        }
    }

    // Adds what changes in outputs [begin, begin + width), which are `out`.
    void widen(int slot, const float* inner, int begin, int width, float* out) const {
        begin += first;
        if (scaled[slot])
            for (int i = 0; i < width; i++) out[i] += (out[i] - offset[begin + i]) * factors[size_t(slot) * outs + begin + i];
        for (int group = 0; group < groups; group++) {
            const int low = std::max(begin, int(bounds[group])), high = std::min(begin + width, int(bounds[group + 1]));
            for (int r = 0; low < high && r < ranks[slot]; r++) {
                const float* row = b + (size_t(slot) * rank + r) * outs;
                const float by = inner[group * rank + r];
                for (int i = low; i < high; i++) out[i - begin] += by * row[i];
            }
        }
    }
};
