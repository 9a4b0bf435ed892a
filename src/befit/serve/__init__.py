"""Models in a serving engine: started there, measured there under real concurrency, and predicted from a few of them."""
