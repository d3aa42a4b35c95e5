"""A compiled density in affine coordinates, as samplers written in other languages call it: no Python in between.

``density(dim, w, gradient, value, walk)`` evaluates :math:`-U(c + Lw)` and its gradient :math:`-L^T U'` by a function
``run(z, U, U')`` of `pyromix.native`; ``copy(...)`` hands a draw over as it is. What L is made of comes in a structure.
"""

from __future__ import annotations

import ctypes
from functools import cache

from pyromix.native.build import load

DIAGONAL, DENSE, BORDERED, NESTED = range(4)


class Root(ctypes.Structure):
    """A square matrix: its diagonal, itself, or a bordered root (`pyromix.marginal.roots.BorderedRoot`)."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("kind", "d", "levels", "q", "border")),
        *((name, ctypes.c_void_p) for name in ("matrix", "lead", "tail", "blocks", "coupling", "corner")),
    ]


class Walk(ctypes.Structure):
    """Everything that `density` needs; `work` is memory of 5 d numbers."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("run", "centre", "work")),
        ("outer", Root),
        ("inner", Root),
        *((name, ctypes.c_long) for name in ("h", "parts")),
        *((name, ctypes.c_void_p) for name in ("hypers", "effects", "hyper", "follow", "part", "tril")),
    ]


SOURCE = """
struct root { long kind, d, levels, q, border; const double *matrix; const long *lead, *tail;
              const double *blocks, *coupling, *corner; };
struct walk { void (*run)(const double *, double *, double *); const double *centre; double *work;
              struct root outer, inner; long h, parts; const long *hypers, *effects;
              const double *hyper, *follow; const long *part; const double *tril; };

// out += A x and out += A^T x, A (n, m)
static void add(long n, long m, const double *restrict a, const double *restrict x, double *restrict out, double f) {
  for (long i = 0; i < n; i++) {
    double total = 0;
    #pragma omp simd reduction(+: total)
    for (long j = 0; j < m; j++) total += a[i * m + j] * x[j];
    out[i] += f * total;
  }
}
static void add_turned(long n, long m, const double *restrict a, const double *restrict x, double *restrict out,
                       double f) {
  for (long i = 0; i < n; i++) {
    const double y = f * x[i];
    for (long j = 0; j < m; j++) out[j] += y * a[i * m + j];
  }
}
// work holds 2 d numbers
static void times(const struct root *r, const double *restrict w, double *restrict out, double *restrict work) {
  const long d = r->d;
  if (r->kind == 0) { for (long i = 0; i < d; i++) out[i] = r->matrix[i] * w[i]; return; }
  if (r->kind == 1) { for (long i = 0; i < d; i++) out[i] = 0; add(d, d, r->matrix, w, out, 1); return; }
  const long q = r->q, n = r->levels * q, m = r->border;
  double *restrict x = work, *restrict t = work + m;
  for (long j = 0; j < m; j++) { x[j] = w[r->tail[j]]; t[j] = 0; }
  add(m, m, r->corner, x, t, 1);
  for (long j = 0; j < m; j++) out[r->tail[j]] = t[j];
  double *restrict head = work + 2 * m;
  for (long i = 0; i < n; i++) head[i] = w[r->lead[i]];
  if (r->coupling) add(n, m, r->coupling, t, head, -1);
  for (long i = 0; i < r->levels; i++)
    for (long a = 0; a < q; a++) {
      double total = 0;
      for (long b = 0; b < q; b++) total += r->blocks[(i * q + a) * q + b] * head[i * q + b];
      out[r->lead[i * q + a]] = total;
    }
}
static void turned(const struct root *r, const double *restrict g, double *restrict out, double *restrict work) {
  const long d = r->d;
  if (r->kind == 0) { for (long i = 0; i < d; i++) out[i] = r->matrix[i] * g[i]; return; }
  if (r->kind == 1) { for (long i = 0; i < d; i++) out[i] = 0; add_turned(d, d, r->matrix, g, out, 1); return; }
  const long q = r->q, n = r->levels * q, m = r->border;
  double *restrict x = work, *restrict t = work + m, *restrict head = work + 2 * m;
  for (long i = 0; i < r->levels; i++)
    for (long b = 0; b < q; b++) {
      double total = 0;
      for (long a = 0; a < q; a++) total += r->blocks[(i * q + a) * q + b] * g[r->lead[i * q + a]];
      out[r->lead[i * q + b]] = head[i * q + b] = total;
    }
  for (long j = 0; j < m; j++) { t[j] = g[r->tail[j]]; x[j] = 0; }
  if (r->coupling) add_turned(n, m, r->coupling, head, t, -1);
  add_turned(m, m, r->corner, t, x, 1);
  for (long j = 0; j < m; j++) out[r->tail[j]] = x[j];
}
// effects sampled centred: x <- x L^T by level, or with L
static void scaled(const struct walk *k, double *restrict x, int back) {
  const double *l = k->tril;
  for (long p = 0; p < k->parts; p++) {
    const long q = k->part[3 * p + 2];
    for (double *y = x + k->part[3 * p]; y < x + k->part[3 * p + 1]; y += q) {
      if (back)
        for (long a = 0; a < q; a++) {
          double total = 0;
          for (long b = a; b < q; b++) total += l[b * q + a] * y[b];
          y[a] = total;
        }
      else
        for (long a = q - 1; a >= 0; a--) {
          double total = 0;
          for (long b = 0; b <= a; b++) total += l[a * q + b] * y[b];
          y[a] = total;
        }
    }
    l += q * q;
  }
}
// 0, or that the density is not finite there
long long density(unsigned long long dim, const double *w, double *gradient, double *value, const struct walk *k) {
  const long d = dim, h = k->h, e = d - h;
  double *restrict z = k->work, *restrict g = z + d, *restrict x = g + d, *restrict work = x + d;
  if (k->outer.kind != 3) {
    times(&k->outer, w, z, work);
    for (long i = 0; i < d; i++) z[i] += k->centre[i];
  } else {
    for (long i = 0; i < d; i++) z[i] = k->centre[i];
    for (long i = 0; i < h; i++)
      for (long j = 0; j < h; j++) z[k->hypers[i]] += k->hyper[i * h + j] * w[j];
    times(&k->inner, w + h, x, work);
    scaled(k, x, 0);
    add(e, h, k->follow, w, x, 1);
    for (long i = 0; i < e; i++) z[k->effects[i]] += x[i];
  }
  double potential;
  k->run(z, &potential, g);
  double sum = 0;
  for (long i = 0; i < d; i++) sum += 0 * g[i];
  if (!(potential - potential + sum == 0)) return 1;
  *value = -potential;
  for (long i = 0; i < d; i++) g[i] = -g[i];
  if (k->outer.kind != 3) { turned(&k->outer, g, gradient, work); return 0; }
  for (long i = 0; i < e; i++) x[i] = g[k->effects[i]];
  for (long j = 0; j < h; j++) {
    gradient[j] = 0;
    for (long i = 0; i < h; i++) gradient[j] += k->hyper[i * h + j] * g[k->hypers[i]];
  }
  add_turned(e, h, k->follow, x, gradient, 1);
  scaled(k, x, 1);
  turned(&k->inner, x, gradient + h, work);
  return 0;
}
long long copy(unsigned long long dim, unsigned long long n, const double *x, double *out, const void *k) {
  for (unsigned long long i = 0; i < dim; i++) out[i] = x[i];
  return 0;
}
"""


@cache
def library() -> ctypes.PyDLL:
    """The compiled source.

    Raises
    ------
    Unsupported
        There is no compiler, or it fails.
    """
    return load(SOURCE, False)
