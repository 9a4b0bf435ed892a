"""Code that nobody has read runs here: a fork server, one confined process a candidate, and nothing but raw data comes back."""
