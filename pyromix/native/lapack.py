"""Dense linear algebra of some size, by SciPy's BLAS and LAPACK, which generated code calls by their addresses."""

from __future__ import annotations

import ctypes
from functools import cache

from scipy.linalg import cython_blas, cython_lapack

ROUTINES = {"dpotrf": cython_lapack, "dtrsm": cython_blas, "dgemm": cython_blas}


@cache
def declarations() -> str:
    """C names of the routines. An address is this process' own, and so is code that is compiled here."""
    text = []
    for name, module in ROUTINES.items():
        capsule = module.__pyx_capi__[name]
        kind = ctypes.pythonapi.PyCapsule_GetName
        kind.restype, kind.argtypes = ctypes.c_char_p, [ctypes.py_object]
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        address = pointer(capsule, kind(capsule))
        text.append(f"#define px_{name} (*(void (*)()){address:#x}L)")
    return "\n".join(text)


# The lower factor in place, rows contiguous, which to LAPACK is the upper one; NaN where the matrix has none.
CHOLESKY = """
static void px_cholesky_large(double *a, long n) {
  int size = n, info = 0;
  px_dpotrf("U", &size, a, &size, &info);
  const double nan = __builtin_nan("");
  if (info) for (long k = 0; k < n * n; k++) a[k] = nan;
  for (long j = 0; j < n; j++) for (long i = j + 1; i < n; i++) a[j * n + i] = 0;
}"""

# As px_solve; whether the strides are such that BLAS could do it.
SOLVE = """
static _Bool px_solve_large(long n, long m, const double *a, long ai, long aj, _Bool upper, _Bool unit,
                            double *b, long bi, long bj) {
  const _Bool columns = bi == 1 && (bj >= n || m == 1), turned = !columns && bj == 1 && bi >= m;
  const _Bool plain = ai == 1 && aj >= n, across = !plain && aj == 1 && ai >= n;
  if (!(columns || turned) || !(plain || across)) return 0;
  int rows = columns ? n : m, others = columns ? m : n, lda = plain ? aj : ai, ldb = columns ? (m == 1 ? n : bj) : bi;
  double one = 1;
  px_dtrsm(columns ? "L" : "R", upper == plain ? "U" : "L", across == columns ? "T" : "N", unit ? "U" : "N",
           &rows, &others, &one, a, &lda, b, &ldb);
  return 1;
}"""

# As px_mm.
PRODUCT = """
static _Bool px_mm_large(long n, long k, long m, const double *a, long ai, long ak, const double *b, long bk,
                         double *c) {
  const _Bool plain = ak == 1 && ai >= k, turned = !plain && ai == 1 && ak >= n;
  if (!(plain || turned) || bk < m) return 0;
  int rows = m, columns = n, inner = k, ldb = bk, lda = plain ? ai : ak;
  double one = 1;
  px_dgemm("N", plain ? "N" : "T", &rows, &columns, &inner, &one, b, &ldb, a, &lda, &one, c, &rows);
  return 1;
}"""

FUNCTIONS = {"px_cholesky_large": CHOLESKY, "px_solve_large": SOLVE, "px_mm_large": PRODUCT}
