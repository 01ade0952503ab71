"""What the loop moves: the objective of a phase and the state of a network in training."""
