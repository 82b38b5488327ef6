/* RWKV-7's recurrence and the mixing with the token before, forward and backward.

   A head's state is 32 x 32. Values lie across lanes: row j of the memory is
   what key channel j holds, two vectors. One head of one sequence is one task:
   no two threads add to the same number, and sums come out the same every time. */

#include <stdlib.h>
#include <string.h>

#include "vector.h"

#define N 32     /* channels a head */
#define CHUNK 16 /* steps from one kept state to the next */

typedef struct {
    v lo[N], hi[N];
} State;

/* sa = S a, with the old S. */
static inline void removed(const State *s, const float *a, v *lo, v *hi) {
    v l[2] = {{0}}, h[2] = {{0}};
    for (int j = 0; j < N; j += 2) {
        l[0] += s->lo[j] * a[j], h[0] += s->hi[j] * a[j];
        l[1] += s->lo[j + 1] * a[j + 1], h[1] += s->hi[j + 1] * a[j + 1];
    }
    *lo = l[0] + l[1], *hi = h[0] + h[1];
}

/* S = S diag(w) + (S a) b^T + v k^T;  o = S r.
   All are [B, T, H * N]; kept: the state before steps 0, CHUNK, ... of each head. */
void wkv_forward(int B, int T, int H, const float *r, const float *w, const float *k,
                 const float *val, const float *a, const float *b, float *o, float *kept) {
    int chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < B * H; task++) {
        State s;
        memset(&s, 0, sizeof s);
        for (int t = 0; t < T; t++) {
            long at = ((long)(task / H) * T + t) * H * N + task % H * N;
            if (t % CHUNK == 0)
                memcpy(kept + ((long)task * chunks + t / CHUNK) * 2 * N * V, &s, sizeof s);
            v lo, hi, v0 = load(val + at), v1 = load(val + at + V), o0[2] = {{0}}, o1[2] = {{0}};
            removed(&s, a + at, &lo, &hi);
            for (int j = 0; j < N; j++) {
                float wj = w[at + j], bj = b[at + j], kj = k[at + j], rj = r[at + j];
                s.lo[j] = s.lo[j] * wj + lo * bj + v0 * kj;
                s.hi[j] = s.hi[j] * wj + hi * bj + v1 * kj;
                o0[j & 1] += s.lo[j] * rj;
                o1[j & 1] += s.hi[j] * rj;
            }
            store(o + at, o0[0] + o0[1]);
            store(o + at + V, o1[0] + o1[1]);
        }
    }
}

/* From each kept state, the last first: runs its steps again, then goes back through them. */
void wkv_backward(int B, int T, int H, const float *r, const float *w, const float *k,
                  const float *val, const float *a, const float *b, const float *kept,
                  const float *d_o, float *dr, float *dw, float *dk, float *dv, float *da,
                  float *db) {
    int chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < B * H; task++) {
        State *s = aligned_alloc(64, sizeof(State) * (CHUNK + 1)), d;
        v sa[CHUNK][2];
        memset(&d, 0, sizeof d);
        for (int chunk = chunks - 1; chunk >= 0; chunk--) {
            int first = chunk * CHUNK, steps = T - first < CHUNK ? T - first : CHUNK;
            memcpy(s, kept + ((long)task * chunks + chunk) * 2 * N * V, sizeof(State));
            for (int i = 0; i < steps; i++) {
                long at = ((long)(task / H) * T + first + i) * H * N + task % H * N;
                v v0 = load(val + at), v1 = load(val + at + V);
                removed(&s[i], a + at, &sa[i][0], &sa[i][1]);
                for (int j = 0; j < N; j++) {
                    s[i + 1].lo[j] = s[i].lo[j] * w[at + j] + sa[i][0] * b[at + j] + v0 * k[at + j];
                    s[i + 1].hi[j] = s[i].hi[j] * w[at + j] + sa[i][1] * b[at + j] + v1 * k[at + j];
                }
            }
            for (int i = steps - 1; i >= 0; i--) {
                long at = ((long)(task / H) * T + first + i) * H * N + task % H * N;
                v v0 = load(val + at), v1 = load(val + at + V), o0 = load(d_o + at),
                  o1 = load(d_o + at + V);
                v dv0 = {0}, dv1 = {0}, s0 = {0}, s1 = {0}; /* s0, s1: the gradient of sa */
                v pr[N], pk[N], pb[N], pw[N], pa[N];
                for (int j = 0; j < N; j++) {
                    v l = d.lo[j] + o0 * r[at + j], h = d.hi[j] + o1 * r[at + j];
                    d.lo[j] = l, d.hi[j] = h;
                    dv0 += l * k[at + j], dv1 += h * k[at + j];
                    s0 += l * b[at + j], s1 += h * b[at + j];
                    pr[j] = o0 * s[i + 1].lo[j] + o1 * s[i + 1].hi[j];
                    pk[j] = l * v0 + h * v1;
                    pb[j] = l * sa[i][0] + h * sa[i][1];
                    pw[j] = l * s[i].lo[j] + h * s[i].hi[j];
                }
                for (int j = 0; j < N; j++) {
                    pa[j] = s0 * s[i].lo[j] + s1 * s[i].hi[j];
                    d.lo[j] = d.lo[j] * w[at + j] + s0 * a[at + j];
                    d.hi[j] = d.hi[j] * w[at + j] + s1 * a[at + j];
                }
                for (int j = 0; j < N; j += V) {
                    store(dr + at + j, sums(pr + j));
                    store(dk + at + j, sums(pk + j));
                    store(db + at + j, sums(pb + j));
                    store(dw + at + j, sums(pw + j));
                    store(da + at + j, sums(pa + j));
                }
                store(dv + at, dv0);
                store(dv + at + V, dv1);
            }
        }
        free(s);
    }
}

/* y[f] = x + (x of the token before - x) m[f]. x: [B, T, C]; m: [F, C]; y: [F, B, T, C]. */
void mix_forward(int F, int B, int T, int C, const float *x, const float *m, float *y) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++)
            for (int c = 0; c < C; c += V) {
                long at = ((long)b * T + t) * C + c;
                v now = load(x + at), step = (t ? load(x + at - C) : (v){0}) - now;
                for (int f = 0; f < F; f++)
                    store(y + (long)f * B * T * C + at, now + step * load(m + f * C + c));
            }
}

/* dm: [B, F, C]: each sequence its own. F is at most 6. */
void mix_backward(int F, int B, int T, int C, const float *x, const float *m, const float *dy,
                  float *dx, float *dm) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c += V) {
            v later = {0}, d[6] = {{0}}, mf[6];
            for (int f = 0; f < F; f++) mf[f] = load(m + f * C + c);
            for (int t = T - 1; t >= 0; t--) {
                long at = ((long)b * T + t) * C + c;
                v step = (t ? load(x + at - C) : (v){0}) - load(x + at), own = later;
                later = (v){0};
                for (int f = 0; f < F; f++) {
                    v g = load(dy + (long)f * B * T * C + at);
                    d[f] += g * step;
                    later += g * mf[f];
                    own += g;
                }
                store(dx + at, own - later);
            }
            for (int f = 0; f < F; f++) store(dm + ((long)b * F + f) * C + c, d[f]);
        }
}
