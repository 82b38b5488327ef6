/* Vectors of 16 floats, in GCC's and Clang's own notation. */

#define V 16 /* lanes of a vector */

typedef float v __attribute__((vector_size(4 * V)));
typedef int vi __attribute__((vector_size(4 * V)));
typedef float anywhere __attribute__((vector_size(4 * V), aligned(4), may_alias));

static inline v load(const float *p) { return *(const anywhere *)p; }
static inline void store(float *p, v x) { *(anywhere *)p = x; }

/* e^x where x < 87, and 0 below -87: 2^n times a polynomial for the rest. */
static inline v exp_(v x) {
    vi some = x > -87.0f;
    v y = x * 1.44269504f;
    v n = y + 12582912.0f; /* the sum's last bits are the nearest integer */
    v f = y - (n - 12582912.0f);
    v p = 0.00015403530f * f + 0.0013333558f;
    p = p * f + 0.0096181291f;
    p = p * f + 0.055504109f;
    p = p * f + 0.24022651f;
    p = p * f + 0.69314718f;
    p = p * f + 1.0f;
    return (v)(((vi)p + ((vi)n << 23)) & some);
}

/* Lane i of the result is the sum of x[i]'s lanes. */
static inline v sums(const v *x) {
    v y[8], z[4], w[2];
    for (int i = 0; i < 8; i++)
        y[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1],
                                 (vi){0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}) +
               __builtin_shuffle(x[2 * i], x[2 * i + 1],
                                 (vi){1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31});
    for (int i = 0; i < 4; i++)
        z[i] = __builtin_shuffle(y[2 * i], y[2 * i + 1],
                                 (vi){0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29}) +
               __builtin_shuffle(y[2 * i], y[2 * i + 1],
                                 (vi){2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31});
    for (int i = 0; i < 2; i++)
        w[i] = __builtin_shuffle(z[2 * i], z[2 * i + 1],
                                 (vi){0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27}) +
               __builtin_shuffle(z[2 * i], z[2 * i + 1],
                                 (vi){4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31});
    return __builtin_shuffle(w[0], w[1],
                             (vi){0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}) +
           __builtin_shuffle(w[0], w[1],
                             (vi){8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
}
