"""What may be built: values only. Nothing here imports torch."""
