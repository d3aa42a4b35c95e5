"""``python -m benchmarks.verbagg``: see docs/benchmarks.md."""

from benchmarks.harness import main

if __name__ == "__main__":
    raise SystemExit(main("verbagg"))
