"""What a selection does to the distribution of the train split, measured before any training."""
