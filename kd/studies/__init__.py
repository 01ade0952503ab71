"""Evaluation of finished runs for evaluate.py: metrics, tables, comparisons and cards."""
