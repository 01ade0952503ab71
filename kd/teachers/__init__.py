"""Teachers: finding them, ensembles of them, their stored logits, and the check for leakage."""
