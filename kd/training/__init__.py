"""What the training loop works on: the objective of a phase and the state of a network."""
