/* The middle of a cross-entropy: from a row of logits to its loss and gradient. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "vector.h"

typedef uint16_t half __attribute__((vector_size(2 * V)));
typedef half half_anywhere __attribute__((aligned(2), may_alias));

static inline v widen(const uint16_t *p) {
    return (v)(__builtin_convertvector(*(const half_anywhere *)p, vi) << 16);
}

/* To the nearest, ties to even. */
static inline vi narrow(v x) { return (((vi)x + 0x7fff + (((vi)x >> 16) & 1)) >> 16) & 0xffff; }

/* x: [rows, width] in bfloat16, logits; becomes softmax(x) less one at y. */
void cross_entropy(int rows, int width, uint16_t *x, const int64_t *y, float *loss) {
#pragma omp parallel
    {
        float *e = aligned_alloc(64, sizeof(float) * width);
#pragma omp for schedule(static)
        for (int row = 0; row < rows; row++) {
            uint16_t *at = x + (long)row * width;
            v most = widen(at), sum = {0};
            for (int i = 0; i < width; i += V) {
                v l = widen(at + i);
                vi more = l > most;
                most = (v)(((vi)l & more) | ((vi)most & ~more));
            }
            float top = most[0], whole = 0;
            for (int i = 1; i < V; i++) top = most[i] > top ? most[i] : top;
            for (int i = 0; i < width; i += V) {
                v l = exp_(widen(at + i) - top);
                store(e + i, l);
                sum += l;
            }
            for (int i = 0; i < V; i++) whole += sum[i];
            loss[row] = logf(whole) + top - widen(at + y[row] / V * V)[y[row] % V];
            e[y[row]] -= whole;
            for (int i = 0; i < width; i += V)
                *(half_anywhere *)(at + i) =
                    __builtin_convertvector(narrow(load(e + i) * (1.0f / whole)), half);
        }
        free(e);
    }
}
