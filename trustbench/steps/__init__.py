"""One SAE's training step: what it keeps, and the ways to compute it."""
