"""How we answer: weights, posteriors and the ladder of corrections."""
