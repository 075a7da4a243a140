"""One module per claim: run `python -m benchmarks.<name>`; each prints a ratio measured in one run."""
