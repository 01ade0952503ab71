"""What any program of this kind needs: errors, console, files that survive, locks, signals,
devices, processes.
"""
