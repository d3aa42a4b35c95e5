"""The parts of a mode search in C that are the same for every pattern, but for sizes that are defined before."""

from __future__ import annotations

STATE = """
#define INLINE static inline __attribute__((always_inline))
#define ADDED _Pragma("omp simd reduction(+: total)")
static double eta[N], log_prob[N], score[N], weight[N], slope[N], tilt[N], spread[N], moved[N];
static double u[TOTAL + 1], g[TOTAL + 1], s[TOTAL + 1], d[TOTAL + 1], trial[TOTAL + 1], tail[M + 1];
static double tril[TRIL + 1], traces[TRIL + 1];
static double factor[G * Q * Q + NV + NS + 1], T[NV + 1], spreads[NV + 1], inverse[NS + 1], corner[WIDEST * WIDEST];"""

# products of small matrices; the widths are literals where these are called
SMALL = """
INLINE void sandwich(const long j, const long k, const double *l, const double *m, const double *r, double *out) {
  double half[CELLS];
  for (long a = 0; a < j; a++) for (long b = 0; b < k; b++) {
    double x = 0;
    for (long c = b; c < k; c++) x += m[a * k + c] * r[c * k + b];
    half[a * k + b] = x;
  }
  for (long a = 0; a < j; a++) for (long b = 0; b < k; b++) {
    double x = 0;
    for (long c = a; c < j; c++) x += l[c * j + a] * half[c * k + b];
    out[a * k + b] = x;
  }
}
INLINE void spread_out(const long j, const long k, const double f, const double *l, const double *p, const double *r,
                       double *out) {
  double half[CELLS];
  for (long a = 0; a < j; a++) for (long b = 0; b < k; b++) {
    double x = 0;
    for (long c = 0; c <= b; c++) x += p[a * k + c] * r[b * k + c];
    half[a * k + b] = x;
  }
  for (long a = 0; a < j; a++) for (long b = 0; b < k; b++) {
    double x = 0;
    for (long c = 0; c <= a; c++) x += l[a * j + c] * half[c * k + b];
    out[a * k + b] = f * x;
  }
}
INLINE void add_traces(const long j, const long k, const int own, const double *l, const double *m, const double *r,
                       const double *p, double *of_j, double *of_k) {
  for (long c = 0; c < k; c++) for (long b = 0; b < j; b++) {
    double x = 0;
    for (long a = b; a < j; a++) x += m[a * k + c] * l[a * j + b];
    for (long e = 0; e < k; e++) of_k[c * k + e] += x * p[b * k + e];
  }
  if (own) return;
  for (long a = 0; a < j; a++) for (long b = 0; b < k; b++) {
    double x = 0;
    for (long c = b; c < k; c++) x += m[a * k + c] * r[c * k + b];
    for (long e = 0; e < j; e++) of_j[a * j + e] += x * p[e * k + b];
  }
}
INLINE void map_levels(const long levels, const long q, const double *l, const double *in, double *out) {
  for (long i = 0; i < levels; i++) for (long a = 0; a < q; a++) {
    double x = 0;
    for (long b = 0; b <= a; b++) x += l[a * q + b] * in[i * q + b];
    out[i * q + a] = x;
  }
}
INLINE void map_back(const long levels, const long q, const double *l, const double *in, double *out) {
  for (long i = 0; i < levels; i++) for (long a = 0; a < q; a++) {
    double x = 0;
    for (long b = a; b < q; b++) x += l[b * q + a] * in[i * q + b];
    out[i * q + a] = x;
  }
}
INLINE void add_slopes(const long levels, const long q, const double *g, const double *b, const double *s,
                       const double *v, const double *traces, double *out) {
  for (long a = 0; a < q; a++) for (long c = 0; c < q; c++) {
    double total = 0;
    ADDED
    for (long i = 0; i < levels; i++) total += g[i * q + a] * b[i * q + c] + s[i * q + a] * v[i * q + c];
    out[a * q + c] = c > a ? 0 : total - traces[a * q + c];
  }
}
static double dot(const double *a, const double *b, const long n) {
  double total = 0;
  ADDED
  for (long i = 0; i < n; i++) total += a[i] * b[i];
  return total;
}"""

# V's columns of one lead level
CROSSED = """
#define FIRST(i) ((i) * M)
#define WIDTH(i) M
#define BLOCK(i) 0
#define COLUMN(i, c) (c)"""

NESTED = """
#define FIRST(i) ((long)level_start[i])
#define WIDTH(i) ((long)(level_start[(i) + 1] - level_start[i]))
#define BLOCK(i) level_block[i]
#define COLUMN(i, c) columns[level_start[i] + (c)]"""

ROOTS = """
INLINE int small_root(double *r) {
  for (long j = 0; j < Q; j++) {
    double pivot = r[j * Q + j] + 1;
    for (long k = 0; k < j; k++) pivot -= r[j * Q + k] * r[j * Q + k];
    if (!(pivot > 0)) return 1;
    r[j * Q + j] = pivot = __builtin_sqrt(pivot);
    for (long i = j + 1; i < Q; i++) {
      double x = r[i * Q + j];
      for (long k = 0; k < j; k++) x -= r[i * Q + k] * r[j * Q + k];
      r[i * Q + j] = x / pivot;
      r[j * Q + i] = 0;
    }
  }
  return 0;
}
// the upper triangle of x + I becomes U
static int upper_root(double *restrict x, const long m) {
  for (long k = 0; k < m; k++) x[k * m + k] += 1;
  for (long k = 0; k < m; k++) {
    double *restrict row = x + k * m;
    if (!(row[k] > 0)) return 1;
    const double scale = 1 / __builtin_sqrt(row[k]);
    for (long j = k; j < m; j++) row[j] *= scale;
    for (long i = k + 1; i < m; i++) {
      double *restrict target = x + i * m;
      const double f = row[i];
      for (long j = i; j < m; j++) target[j] -= f * row[j];
    }
  }
  return 0;
}
static int roots(void) {
  double *restrict R = factor, *restrict V = factor + G * Q * Q, *restrict S = V + NV;
  for (long i = 0; i < G; i++) {
    const double *r = R + i * Q * Q;
    const long e = WIDTH(i);
    double *restrict v = V + Q * FIRST(i);
    if (small_root(R + i * Q * Q)) return 1;
    for (long a = 0; a < Q; a++) {
      for (long k = 0; k < a; k++) for (long c = 0; c < e; c++) v[a * e + c] -= r[a * Q + k] * v[k * e + c];
      const double scale = 1 / r[a * Q + a];
      for (long c = 0; c < e; c++) v[a * e + c] *= scale;
    }
  }
  subtract_products(V, S);
  for (long k = 0; k < BLOCKS; k++) if (upper_root(S + block_at[k], block_size[k])) return 1;
  return 0;
}
static double log_volume(void) {
  const double *restrict R = factor, *restrict S = factor + G * Q * Q + NV;
  double total = 0;
  for (long a = 0; a < Q; a++) {
    ADDED
    for (long i = 0; i < G; i++) total += log(R[i * Q * Q + a * Q + a]);
  }
  for (long k = 0; k < BLOCKS; k++) {
    const long m = block_size[k];
    for (long i = 0; i < m; i++) total += log(S[block_at[k] + i * m + i]);
  }
  return 2 * total;
}"""

PRODUCTS_FULL = """
static void subtract_products(const double *restrict V, double *restrict S) {
  long i = 0;
  for (; i + 4 <= G * Q; i += 4) {
    const double *restrict v0 = V + i * M, *restrict v1 = v0 + M, *restrict v2 = v1 + M, *restrict v3 = v2 + M;
    for (long a = 0; a < M; a++)
      for (long b = a & ~3L; b < M; b++) S[a * M + b] -= v0[a] * v0[b] + v1[a] * v1[b] + v2[a] * v2[b] + v3[a] * v3[b];
  }
  for (; i < G * Q; i++)
    for (long a = 0; a < M; a++) for (long b = a; b < M; b++) S[a * M + b] -= V[i * M + a] * V[i * M + b];
}
static void times_inverse(void) {
  long i = 0;
  for (; i + 4 <= G * Q; i += 4) {
    double total[4][M + 1];
    for (long b = 0; b < M; b++) total[0][b] = total[1][b] = total[2][b] = total[3][b] = 0;
    for (long a = 0; a < M; a++) {
      const double *restrict x = inverse + a * M;
      const double t0 = T[i * M + a], t1 = T[(i + 1) * M + a], t2 = T[(i + 2) * M + a], t3 = T[(i + 3) * M + a];
      for (long b = 0; b < M; b++) {
        total[0][b] += t0 * x[b];
        total[1][b] += t1 * x[b];
        total[2][b] += t2 * x[b];
        total[3][b] += t3 * x[b];
      }
    }
    for (long k = 0; k < 4; k++) for (long b = 0; b < M; b++) spreads[(i + k) * M + b] = total[k][b];
  }
  for (; i < G * Q; i++)
    for (long b = 0; b < M; b++) {
      double x = 0;
      for (long a = 0; a < M; a++) x += T[i * M + a] * inverse[a * M + b];
      spreads[i * M + b] = x;
    }
}"""

PRODUCTS_FEW = """
static void subtract_products(const double *restrict V, double *restrict S) {
  for (long i = 0; i < G; i++) {
    const long e = WIDTH(i), m = e ? block_size[BLOCK(i)] : 0;
    const int *restrict column = columns + FIRST(i);
    const double *restrict v = V + Q * FIRST(i);
    double *restrict x = S + block_at[BLOCK(i)];
    for (long r = 0; r < Q; r++)
      for (long a = 0; a < e; a++)
        for (long b = a; b < e; b++) x[column[a] * m + column[b]] -= v[r * e + a] * v[r * e + b];
  }
}
static void times_inverse(void) {
  for (long i = 0; i < G; i++) {
    const long e = WIDTH(i), m = e ? block_size[BLOCK(i)] : 0;
    const int *restrict column = columns + FIRST(i);
    const double *restrict x = inverse + block_at[BLOCK(i)], *restrict t = T + Q * FIRST(i);
    double *restrict out = spreads + Q * FIRST(i);
    for (long r = 0; r < Q; r++)
      for (long b = 0; b < e; b++) {
        double total = 0;
        for (long a = 0; a < e; a++) total += t[r * e + a] * x[column[a] * m + column[b]];
        out[r * e + b] = total;
      }
  }
}"""

SOLVES = """
static void solve(const double *restrict rhs, double *restrict out) {
  const double *restrict R = factor, *restrict V = factor + G * Q * Q, *restrict S = V + NV;
  for (long j = 0; j < M; j++) tail[j] = rhs[scalars[j]];
  for (long i = 0; i < G; i++) {
    const double *r = R + i * Q * Q, *v = V + Q * FIRST(i);
    double *restrict half = out + LEAD + i * Q, *restrict t = tail + block_row[BLOCK(i)];
    const long e = WIDTH(i);
    for (long a = 0; a < Q; a++) {
      double x = rhs[LEAD + i * Q + a];
      for (long k = 0; k < a; k++) x -= r[a * Q + k] * half[k];
      half[a] = x / r[a * Q + a];
    }
    for (long a = 0; a < Q; a++) for (long c = 0; c < e; c++) t[COLUMN(i, c)] -= v[a * e + c] * half[a];
  }
  for (long k = 0; k < BLOCKS; k++) {
    const long m = block_size[k];
    const double *restrict x = S + block_at[k];
    double *restrict t = tail + block_row[k];
    for (long i = 0; i < m; i++) {
      const double f = t[i] /= x[i * m + i];
      for (long j = i + 1; j < m; j++) t[j] -= x[i * m + j] * f;
    }
  }
  back(factor, out);
}
// from R^-1 x and U^-T x
static void back(const double *restrict from, double *restrict out) {
  const double *restrict R = from, *restrict V = from + G * Q * Q, *restrict S = V + NV;
  for (long k = 0; k < BLOCKS; k++) {
    const long m = block_size[k];
    const double *restrict x = S + block_at[k];
    double *restrict t = tail + block_row[k];
    for (long i = m - 1; i >= 0; i--) {
      double total = t[i];
      for (long j = i + 1; j < m; j++) total -= x[i * m + j] * t[j];
      t[i] = total / x[i * m + i];
    }
  }
  for (long i = 0; i < G; i++) {
    const double *r = R + i * Q * Q, *v = V + Q * FIRST(i), *t = tail + block_row[BLOCK(i)];
    double *restrict half = out + LEAD + i * Q;
    const long e = WIDTH(i);
    for (long a = 0; a < Q; a++) {
      double total = 0;
      ADDED
      for (long c = 0; c < e; c++) total += v[a * e + c] * t[COLUMN(i, c)];
      half[a] -= total;
    }
    for (long a = Q - 1; a >= 0; a--) {
      double x = half[a];
      for (long k = a + 1; k < Q; k++) x -= r[k * Q + a] * half[k];
      half[a] = x / r[a * Q + a];
    }
  }
  for (long j = 0; j < M; j++) out[scalars[j]] = tail[j];
}
// a draw: the mode and a root of A^-1 times white noise
void sample(const double *from, const double *mode, const double *noise, double *restrict out) {
  for (long i = 0; i < G * Q; i++) out[LEAD + i] = noise[LEAD + i];
  for (long j = 0; j < M; j++) tail[j] = noise[scalars[j]];
  back(from, out);
  for (long i = 0; i < TOTAL; i++) out[i] += mode[i];
}"""

# S^-1, T = R^-T V, T S^-1 and the lead term's blocks of A^-1
INVERSES = """
static void invert(void) {
  const double *restrict R = factor, *restrict V = factor + G * Q * Q, *restrict S = V + NV;
  for (long k = 0; k < BLOCKS; k++) {
    const long m = block_size[k];
    const double *restrict x = S + block_at[k];
    double *restrict out = inverse + block_at[k];
    for (long i = m - 1; i >= 0; i--) {
      double *restrict row = corner + i * m;
      for (long j = i; j < m; j++) row[j] = 0;
      for (long l = i + 1; l < m; l++) {
        const double f = x[i * m + l], *restrict other = corner + l * m;
        for (long j = l; j < m; j++) row[j] -= f * other[j];
      }
      const double scale = 1 / x[i * m + i];
      row[i] = 1;
      for (long j = i; j < m; j++) row[j] *= scale;
    }
    for (long i = 0; i < m; i++)
      for (long j = i; j < m; j++) out[i * m + j] = out[j * m + i] = dot(corner + i * m + j, corner + j * m + j, m - j);
  }
  for (long i = 0; i < G; i++) {
    const long e = WIDTH(i);
    const double *r = R + i * Q * Q, *restrict v = V + Q * FIRST(i);
    double *restrict t = T + Q * FIRST(i);
    for (long a = Q - 1; a >= 0; a--) {
      const double scale = 1 / r[a * Q + a];
      for (long c = 0; c < e; c++) t[a * e + c] = v[a * e + c];
      for (long k = a + 1; k < Q; k++) for (long c = 0; c < e; c++) t[a * e + c] -= r[k * Q + a] * t[k * e + c];
      for (long c = 0; c < e; c++) t[a * e + c] *= scale;
    }
  }
  times_inverse();
}
INLINE void lead_block(const long i, double *p) {
  const double *r = factor + i * Q * Q, *t = T + Q * FIRST(i), *x = spreads + Q * FIRST(i);
  const long e = WIDTH(i);
  double w[Q * Q];
  for (long c = 0; c < Q; c++)
    for (long a = c; a < Q; a++) {
      double y = a == c;
      for (long k = c; k < a; k++) y -= r[a * Q + k] * w[k * Q + c];
      w[a * Q + c] = y / r[a * Q + a];
    }
  for (long a = 0; a < Q; a++) for (long b = 0; b < Q; b++) {
    double y = dot(x + a * e, t + b * e, e);
    for (long k = a > b ? a : b; k < Q; k++) y += w[k * Q + a] * w[k * Q + b];
    p[a * Q + b] = y;
  }
}"""

ASCENT = """
static double climb_to(const double *base, const double *const *disp, const double *b) {
  to_effects(b, u);
  predictor(base, eta);
  rows(eta ARGUMENTS, log_prob, score, weight, slope);
  double total = 0;
  ADDED
  for (long n = 0; n < N; n++) total += log_prob[n];
  return total - 0.5 * dot(b, b, TOTAL);
}
static int ascend(const double *base, const double *const *disp, double *b, const double enough, double *result) {
  double value = climb_to(base, disp, b), last = __builtin_inf();
  if (!(value - value == 0)) return 1;
  for (long step = 0; step < MAX_STEPS; step++) {
    cross_products();
    assemble();
    if (roots()) return 2;
    to_spherical(s, g);
    for (long i = 0; i < TOTAL; i++) g[i] -= b[i];
    solve(g, d);
    const double decrement = dot(g, d, TOTAL), size = 1 + __builtin_fabs(value);
    if (!(decrement - decrement == 0)) return 3;
    const int close = decrement <= FLOOR * size;
    if (decrement <= enough * __builtin_sqrt(size) || (close && decrement >= 0.25 * last)) {
      result[0] = value, result[1] = log_volume(), result[2] = step;
      return 0;
    }
    const double slack = close ? ROUNDING * size : -1e-4 * decrement;
    double share = 1, found = 0;
    long tries = 0;
    for (; tries <= MAX_HALVINGS; tries++, share *= 0.5) {
      for (long i = 0; i < TOTAL; i++) trial[i] = b[i] + share * d[i];
      found = climb_to(base, disp, trial);
      if (found - found == 0 && found >= value - slack * share) break;
    }
    if (tries > MAX_HALVINGS) return 4;
    for (long i = 0; i < TOTAL; i++) b[i] = trial[i];
    value = found;
    last = decrement;
  }
  return 5;
}
// 0, or why there is no result; what is not wanted is a null pointer
int run(const double *base, const double *l, const double *const *disp, double *b, double enough, double *result,
        double *out, double *d_tril, double *const *d_disp, double *kept) {
  for (long i = 0; i < TRIL; i++) tril[i] = l[i];
  const int problem = ascend(base, disp, b, enough, result);
  if (problem) return problem;
  if (kept) for (long i = 0; i < G * Q * Q + NV + NS; i++) kept[i] = factor[i];
  if (!out) return 0;
  invert();
  inverse_blocks();
  leverage();
  gather(tilt);
  to_spherical(g, trial);
  solve(trial, d);
  to_effects(d, u);
  last_rows(out);
  gather(out);
  slopes(b, d_tril);
  SURROGATE
  return 0;
}"""
