"""One nested model for all budgets: train once, cut any size."""
