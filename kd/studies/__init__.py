"""What evaluate.py does with finished runs: tables, comparisons, cards and evaluations."""
