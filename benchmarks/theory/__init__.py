"""The theory of score-based selection, run: three commands, each with closed forms as the truth (docs/theory.md)."""
