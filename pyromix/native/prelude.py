"""C that generated code calls: the C library's functions, special functions, and small dense linear algebra."""

from __future__ import annotations

from pyromix.native import lapack

# name -> number of arguments
MATHS = dict.fromkeys(
    (
        *("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan"),
        *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "sqrt", "fabs", "floor", "ceil"),
        *("rint", "trunc"),
    ),
    1,
) | {"pow": 2, "atan2": 2, "hypot": 2, "fmod": 2}

_INLINE = "static inline __attribute__((always_inline)) double"

# 1 - x for x < 1/2 (reflection), then up to z >= 8 for the asymptotic series; without a branch, so that it vectorises
_LGAMMA = f"""
{_INLINE} px_lgamma(double x) {{
  const double y = x < 0.5 ? 1 - x : x;
  double z = y, p = 1;
  for (int k = 0; k < 8; k++) {{
    const _Bool low = z < 8;
    p = low ? p * z : p;
    z = low ? z + 1 : z;
  }}
  const double w = 1 / z, q = w * w;
  double s = -3617.0 / 122400;
  s = s * q + 1.0 / 156;
  s = s * q - 691.0 / 360360;
  s = s * q + 1.0 / 1188;
  s = s * q - 1.0 / 1680;
  s = s * q + 1.0 / 1260;
  s = s * q - 1.0 / 360;
  s = s * q + 1.0 / 12;
  const double direct = (z - 0.5) * (log(z) - 1) + (0.91893853320467274178 - 0.5) + s * w - log(p);
  const double f = x - rint(x);
  const double reflected = log(3.14159265358979323846 / fabs(sin(3.14159265358979323846 * f))) - direct;
  const double found = x < 0.5 ? reflected : direct;
  return fabs(x) == __builtin_inf() ? __builtin_inf() : found;
}}"""

_DIGAMMA = f"""
{_INLINE} px_digamma(double x) {{
  const double y = x < 0.5 ? 1 - x : x;
  double z = y, p = 0;
  for (int k = 0; k < 8; k++) {{
    const _Bool low = z < 8;
    p = low ? p + 1 / z : p;
    z = low ? z + 1 : z;
  }}
  const double w = 1 / z, q = w * w;
  double s = 3617.0 / 8160;
  s = s * q - 1.0 / 12;
  s = s * q + 691.0 / 32760;
  s = s * q - 1.0 / 132;
  s = s * q + 1.0 / 240;
  s = s * q - 1.0 / 252;
  s = s * q + 1.0 / 120;
  s = s * q - 1.0 / 12;
  const double direct = log(z) - 0.5 * w + s * q - p;
  const double f = x - rint(x);
  const double reflected = direct - 3.14159265358979323846 / tan(3.14159265358979323846 * f);
  const double found = x < 0.5 ? reflected : direct;
  return x == 0 ? -__builtin_copysign(__builtin_inf(), x) : x < 0 && f == 0 ? __builtin_nan("") : found;
}}"""

_TRIGAMMA = f"""
{_INLINE} px_trigamma(double x) {{
  const double y = x < 0.5 ? 1 - x : x;
  double z = y, p = 0;
  for (int k = 0; k < 8; k++) {{
    const _Bool low = z < 8;
    p = low ? p + 1 / (z * z) : p;
    z = low ? z + 1 : z;
  }}
  const double w = 1 / z, q = w * w;
  double s = -3617.0 / 510;
  s = s * q + 7.0 / 6;
  s = s * q - 691.0 / 2730;
  s = s * q + 5.0 / 66;
  s = s * q - 1.0 / 30;
  s = s * q + 1.0 / 42;
  s = s * q - 1.0 / 30;
  s = s * q + 1.0 / 6;
  const double direct = w + 0.5 * q + s * q * w + p;
  const double f = sin(3.14159265358979323846 * (x - rint(x)));
  const double reflected = 9.86960440108935861883 / (f * f) - direct;
  return x < 0.5 ? reflected : direct;
}}"""

# sums by group: order[start[g]..start[g+1]] are the entries of group g
_SCATTER_SORTED = """
static void px_scatter_sorted(const int *order, const int *start, const double *value, double *out, long groups) {
  for (long g = 0; g < groups; g++) {
    double sum = 0;
    #pragma omp simd reduction(+: sum)
    for (int k = start[g]; k < start[g + 1]; k++) sum += value[order[k]];
    out[g] += sum;
  }
}"""

_SCATTER_RUNS = """
static void px_scatter_runs(const int *start, const double *value, double *out, long groups) {
  for (long g = 0; g < groups; g++) {
    double sum = 0;
    #pragma omp simd reduction(+: sum)
    for (int k = start[g]; k < start[g + 1]; k++) sum += value[k];
    out[g] += sum;
  }
}"""

_SCATTER = """
static void px_scatter_add(const int *place, const double *value, double *out, long n) {
  for (long k = 0; k < n; k++) out[place[k]] += value[k];
}"""

_CUMULATE = """
static inline void px_cumsum(const double *in, double *out, long outer, long n, long inner) {
  for (long o = 0; o < outer; o++)
    for (long i = 0; i < inner; i++) {
      double total = 0;
      for (long k = 0; k < n; k++) {
        total += in[(o * n + k) * inner + i];
        out[(o * n + k) * inner + i] = total;
      }
    }
}"""

# blocks of 64 of the inner dimension, four of its entries at a time; c starts at zero, b's rows are contiguous
_MM = """
static void px_mm(long n, long k, long m, const double *restrict a, long ai, long ak,
                  const double *restrict b, long bk, double *restrict c) {
  if (n * k * m >= 32768 && px_mm_large(n, k, m, a, ai, ak, b, bk, c)) return;
  for (long p0 = 0; p0 < k; p0 += 64) {
    const long p1 = p0 + 64 < k ? p0 + 64 : k;
    for (long i = 0; i < n; i++) {
      long p = p0;
      for (; p + 4 <= p1; p += 4) {
        const double a0 = a[i * ai + p * ak], a1 = a[i * ai + (p + 1) * ak];
        const double a2 = a[i * ai + (p + 2) * ak], a3 = a[i * ai + (p + 3) * ak];
        const double *b0 = b + p * bk, *b1 = b0 + bk, *b2 = b1 + bk, *b3 = b2 + bk;
        #pragma omp simd
        for (long j = 0; j < m; j++) c[i * m + j] += (a0 * b0[j] + a1 * b1[j]) + (a2 * b2[j] + a3 * b3[j]);
      }
      for (; p < p1; p++) {
        const double a0 = a[i * ai + p * ak];
        #pragma omp simd
        for (long j = 0; j < m; j++) c[i * m + j] += a0 * b[p * bk + j];
      }
    }
  }
}"""

_MV = """
static void px_mv(long n, long k, const double *restrict a, long ai, long ak, const double *restrict b,
                  double *restrict c) {
  if (ak == 1) {
    for (long i = 0; i < n; i++) {
      double sum = 0;
      #pragma omp simd reduction(+: sum)
      for (long p = 0; p < k; p++) sum += a[i * ai + p] * b[p];
      c[i] += sum;
    }
    return;
  }
  long p = 0;
  for (; p + 4 <= k; p += 4) {
    const double *a0 = a + p * ak, *a1 = a0 + ak, *a2 = a1 + ak, *a3 = a2 + ak;
    const double b0 = b[p], b1 = b[p + 1], b2 = b[p + 2], b3 = b[p + 3];
    #pragma omp simd
    for (long i = 0; i < n; i++) c[i] += (a0[i * ai] * b0 + a1[i * ai] * b1) + (a2[i * ai] * b2 + a3[i * ai] * b3);
  }
  for (; p < k; p++) {
    const double *a0 = a + p * ak, b0 = b[p];
    #pragma omp simd
    for (long i = 0; i < n; i++) c[i] += a0[i * ai] * b0;
  }
}"""

# in place on the lower triangle; NaN everywhere if the matrix is not positive definite
_CHOLESKY = """
static void px_cholesky(double *a, long n) {
  if (n >= 32) {
    px_cholesky_large(a, n);
    return;
  }
  for (long j = 0; j < n; j++) {
    double d = a[j * n + j];
    for (long k = 0; k < j; k++) d -= a[j * n + k] * a[j * n + k];
    d = d > 0 ? sqrt(d) : __builtin_nan("");
    a[j * n + j] = d;
    for (long i = j + 1; i < n; i++) {
      double s = a[i * n + j];
      for (long k = 0; k < j; k++) s -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = s / d;
      a[j * n + i] = 0;
    }
  }
}"""

# X with A X = B in place of B: a[i, j] at i * ai + j * aj, b[i, c] at i * bi + c * bj
_SOLVE = """
static void px_solve(long n, long m, const double *a, long ai, long aj, _Bool upper, _Bool unit,
                     double *b, long bi, long bj) {
  if (n >= 16 && n * m >= 1024 && px_solve_large(n, m, a, ai, aj, upper, unit, b, bi, bj)) return;
  for (long c = 0; c < m; c++)
    for (long r = 0; r < n; r++) {
      const long i = upper ? n - 1 - r : r;
      double s = b[i * bi + c * bj];
      const long from = upper ? i + 1 : 0, to = upper ? n : i;
      for (long k = from; k < to; k++) s -= a[i * ai + k * aj] * b[k * bi + c * bj];
      b[i * bi + c * bj] = unit ? s : s / a[i * ai + i * aj];
    }
}"""

FUNCTIONS = {
    "px_lgamma": _LGAMMA,
    "px_digamma": _DIGAMMA,
    "px_trigamma": _TRIGAMMA,
    "px_scatter_sorted": _SCATTER_SORTED,
    "px_scatter_runs": _SCATTER_RUNS,
    "px_scatter_add": _SCATTER,
    "px_scatter_put": _SCATTER.replace("px_scatter_add", "px_scatter_put").replace("+=", "="),
    "px_cumsum": _CUMULATE,
    "px_cumprod": _CUMULATE.replace("px_cumsum", "px_cumprod")
    .replace("total = 0", "total = 1")
    .replace("total +=", "total *="),
    "px_mm": _MM,
    "px_mv": _MV,
    "px_cholesky": _CHOLESKY,
    "px_solve": _SOLVE,
    **lapack.FUNCTIONS,
}
