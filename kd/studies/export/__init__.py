"""Export of a finished run to files that need neither this program nor torch, and their check."""
