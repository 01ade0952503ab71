"""What any training program needs, whatever it trains.

Errors, console, files that survive, locks, signals, devices and several processes.
"""
