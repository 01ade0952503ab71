"""Runs from their plans to their reports: folders, sessions, phases and results."""
