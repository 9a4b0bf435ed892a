"""Tasks that are generated from a seed: nothing is downloaded, and whoever has the seed has the same items."""
