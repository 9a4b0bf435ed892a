"""befit fits neural networks to the hardware they must run on."""
