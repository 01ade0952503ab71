"""Reports of runs: schema, metrics, statistics and figures."""
