"""A run's folder, session and life, from its plan to its report."""
