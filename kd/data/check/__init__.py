"""The check of a data set for faults, before hours are spent on it."""
