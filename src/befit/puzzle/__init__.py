"""Puzzle: a library of cheaper blocks, scored one by one, combined by exact search under a budget, healed."""
