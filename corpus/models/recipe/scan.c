/* Mamba's selective scan and the convolution before it, forward and backward.

   Channels lie side by side in memory, so a vector is 16 channels and the 16
   states of each are 16 vectors. One sequence is one task: no two threads add
   to the same number, and sums come out the same every time. */

#include <string.h>

#include "vector.h"

#define N 16     /* states a channel: as many as lanes, or scan_backward's sums are wrong */
#define K 4      /* taps of the convolution */
#define CHUNK 16 /* steps from one kept state to the next */

static inline v sigmoid(v x) {
    vi some = x > -80.0f;
    v y = 1.0f / (1.0f + exp_((v)((vi)-x & some)));
    return (v)((vi)y & some);
}

/* u = silu(bias + sum_k w[k] x[t - (K-1) + k]). x: [B, T, xs] of which I; w: [K, I]. */
void conv_forward(int B, int T, int I, int xs, const float *x, const float *w, const float *bias,
                  float *u) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++)
            for (int c = 0; c < I; c += V) {
                v s = load(bias + c);
                for (int k = 0; k < K; k++) {
                    int from = t - (K - 1) + k;
                    if (from >= 0)
                        s += load(w + k * I + c) * load(x + ((long)b * T + from) * xs + c);
                }
                store(u + ((long)b * T + t) * I + c, s * sigmoid(s));
            }
}

/* dw: [B, K, I], dbias: [B, I]: each sequence its own. */
void conv_backward(int B, int T, int I, int xs, const float *x, const float *w, const float *bias,
                   const float *du, float *dx, float *dw, float *dbias) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++)
        for (int c = 0; c < I; c += V) {
            v wk[K], dwk[K] = {{0}}, db = {0}, tail[K] = {{0}};
            for (int k = 0; k < K; k++) wk[k] = load(w + k * I + c);
            v b0 = load(bias + c);
            /* tail[m] gathers the gradient of x[t + m] from the outputs before t. */
            for (int t = T - 1; t >= 0; t--) {
                v in[K], s = b0;
                for (int k = 0; k < K; k++) {
                    int from = t - (K - 1) + k;
                    in[k] = from >= 0 ? load(x + ((long)b * T + from) * xs + c) : (v){0};
                    s += wk[k] * in[k];
                }
                v g = sigmoid(s);
                v d = load(du + ((long)b * T + t) * I + c) * g * (1.0f + s * (1.0f - g));
                db += d;
                for (int k = 0; k < K; k++) {
                    dwk[k] += d * in[k];
                    tail[K - 1 - k] += d * wk[k]; /* to x[t - (K-1-k)] */
                }
                store(dx + ((long)b * T + t) * I + c, tail[0]);
                for (int m = 0; m + 1 < K; m++) tail[m] = tail[m + 1];
                tail[K - 1] = (v){0};
            }
            for (int k = 0; k < K; k++) store(dw + ((long)b * K + k) * I + c, dwk[k]);
            store(dbias + (long)b * I + c, db);
        }
}

/* h[n] = exp(A[n] dt) h[n] + dt B[n] u;  y = (sum_n h[n] C[n] + D u) silu(z).
   u, dt, y: [B, T, I]; A: [N, I]; bc: B then C in [B, T, bs]; z: [B, T, zs] of which I.
   kept: the states before steps 0, CHUNK, ..., as vectors in the order of the loops. */
void scan_forward(int B, int T, int I, int bs, int zs, const float *u, const float *dt,
                  const float *A, const float *bc, const float *D, const float *z, float *y,
                  float *kept) {
    int chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++)
        for (int c = 0; c < I; c += V) {
            v h[N] = {{0}};
            for (int t = 0; t < T; t++) {
                long row = (long)b * T + t, at = row * I + c;
                const float *Bt = bc + row * bs, *Ct = Bt + N;
                if (t % CHUNK == 0)
                    memcpy(kept + (((long)b * I + c) * chunks + t / CHUNK * V) * N, h, sizeof h);
                v d = load(dt + at), x = load(u + at), dx = d * x, s = load(D + c) * x;
                for (int n = 0; n < N; n++) {
                    h[n] = exp_(load(A + n * I + c) * d) * h[n] + dx * Bt[n];
                    s += h[n] * Ct[n];
                }
                v g = load(z + row * zs + c);
                store(y + at, s * g * sigmoid(g));
            }
        }
}

/* From each kept state, the last first: runs its steps again, noting what each
   kept and by what factor, then goes back through them.
   dA: [B, N, I], dD: [B, I]: each sequence its own; dbc: [B, T, 2N]. */
void scan_backward(int B, int T, int I, int bs, int zs, const float *u, const float *dt,
                   const float *A, const float *bc, const float *D, const float *z,
                   const float *kept, const float *dy, float *du, float *ddt, float *dA, float *dbc,
                   float *dD, float *dz) {
    int chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < B; b++) {
        memset(dbc + (long)b * T * 2 * N, 0, sizeof(float) * T * 2 * N);
        for (int c = 0; c < I; c += V) {
            v part[CHUNK][N], factor[CHUNK][N], out[CHUNK];
            v a[N], da[N] = {{0}}, dd = {0}, D0 = load(D + c);
            v g[N] = {{0}}; /* the gradient of h after this step */
            for (int n = 0; n < N; n++) a[n] = load(A + n * I + c);
            for (int chunk = chunks - 1; chunk >= 0; chunk--) {
                int first = chunk * CHUNK, steps = T - first < CHUNK ? T - first : CHUNK;
                v h[N];
                memcpy(h, kept + (((long)b * I + c) * chunks + chunk * V) * N, sizeof h);
                for (int i = 0; i < steps; i++) {
                    long row = (long)b * T + first + i, at = row * I + c;
                    const float *Bt = bc + row * bs, *Ct = Bt + N;
                    v d = load(dt + at), x = load(u + at), dx = d * x, s = D0 * x;
                    for (int n = 0; n < N; n++) {
                        factor[i][n] = exp_(a[n] * d);
                        part[i][n] = factor[i][n] * h[n];
                        h[n] = part[i][n] + dx * Bt[n];
                        s += h[n] * Ct[n];
                    }
                    out[i] = s;
                }
                for (int i = steps - 1; i >= 0; i--) {
                    long row = (long)b * T + first + i, at = row * I + c;
                    const float *Bt = bc + row * bs, *Ct = Bt + N;
                    v d = load(dt + at), x = load(u + at), dx = d * x;
                    v gate = load(z + row * zs + c), sg = sigmoid(gate), e = load(dy + at);
                    store(dz + at, e * out[i] * sg * (1.0f + gate * (1.0f - sg)));
                    e *= gate * sg;
                    dd += e * x;
                    v ddx = {0}, ddt_ = {0}, dB[N], dC[N];
                    for (int n = 0; n < N; n++) {
                        v p = part[i][n], q;
                        g[n] += e * Ct[n];
                        dC[n] = e * (p + dx * Bt[n]);
                        dB[n] = g[n] * dx;
                        ddx += g[n] * Bt[n];
                        q = g[n] * p;
                        ddt_ += q * a[n];
                        da[n] += q * d;
                        g[n] *= factor[i][n];
                    }
                    store(du + at, e * D0 + ddx * d);
                    store(ddt + at, ddt_ + ddx * x);
                    float *to = dbc + row * 2 * N;
                    store(to, load(to) + sums(dB));
                    store(to + N, load(to + N) + sums(dC));
                }
            }
            for (int n = 0; n < N; n++) store(dA + ((long)b * N + n) * I + c, da[n]);
            store(dD + (long)b * I + c, dd);
        }
    }
}
