"""Shared weights: one network holds every option of a space, and the search is part of its training."""
