"""``python -m benchmarks.eight_schools_posterior``: see docs/benchmarks.md."""

from benchmarks.posterior_report import main

if __name__ == "__main__":
    raise SystemExit(main("eight_schools_posterior"))
