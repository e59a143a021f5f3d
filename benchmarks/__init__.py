"""What a layer costs: ratios, measured side by side in one run. ``python -m benchmarks --help``."""
