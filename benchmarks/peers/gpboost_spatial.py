"""A Matern process by GPBoost, exactly or by Vecchia's approximation: data, method, repeats on the command line."""

import json
import resource
import sys
import time
from importlib.metadata import version

import gpboost as gpb
import numpy as np
import pandas as pd

path, method, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
d = pd.read_csv(path)
places, y = d[["s1", "s2"]].to_numpy(), d["y"].to_numpy()
x = np.column_stack([np.ones(len(d)), d["x"]])
times = []
for _ in range(repeats):
    start = time.perf_counter()
    model = gpb.GPModel(
        gp_coords=places, cov_function="matern", cov_fct_shape=1.5, likelihood="gaussian",
        gp_approx="none" if method == "exact" else "vecchia", num_parallel_threads=1,
    )  # fmt: skip
    model.fit(y=y, X=x)
    times.append(time.perf_counter() - start)
result = {
    "times": times,
    "loglik": -model.get_current_neg_log_likelihood(),
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "version": f"GPBoost {version('gpboost')}, {method}",
}
print("RESULT " + json.dumps(result))
