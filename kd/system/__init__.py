"""Infrastructure that any training program needs.

Errors, console output, crash-safe files, locks, signals, devices and multiple processes.
"""
