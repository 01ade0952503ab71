"""The report of a run: its schema, metrics, statistics and figures."""
