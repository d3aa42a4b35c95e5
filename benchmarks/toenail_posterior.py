"""``python -m benchmarks.toenail_posterior``: see docs/benchmarks.md."""

from benchmarks.posterior_report import main

if __name__ == "__main__":
    raise SystemExit(main("toenail_posterior"))
