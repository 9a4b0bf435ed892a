"""Image networks: from an arch to a module, its training, and how good it is."""
