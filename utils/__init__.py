"""Things every other folder may use: errors, the registry, config sections, fast BLAS, metrics. Knows no model."""
