"""Readers: from a data set on disk, or one that is drawn, to its index."""
