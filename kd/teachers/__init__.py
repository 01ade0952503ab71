"""Teachers: where they come from, several as one, their stored logits, and who may teach whom."""
