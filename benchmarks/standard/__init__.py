"""The field's standard problems, every algorithm on each: `python -m benchmarks.standard.race`."""
