"""How examples are drawn: one protocol a file, each with its inclusion probabilities and weights."""
