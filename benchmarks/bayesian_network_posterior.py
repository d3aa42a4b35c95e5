"""``python -m benchmarks.bayesian_network_posterior``: see docs/benchmarks.md."""

from benchmarks.posterior_report import main

if __name__ == "__main__":
    raise SystemExit(main("bayesian_network_posterior"))
