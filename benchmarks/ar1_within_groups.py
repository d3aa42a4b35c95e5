"""``python -m benchmarks.ar1_within_groups``: see docs/benchmarks.md."""

from benchmarks.harness import main

if __name__ == "__main__":
    raise SystemExit(main("ar1_within_groups"))
