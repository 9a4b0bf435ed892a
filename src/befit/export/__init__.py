"""A network that befit made, in the formats that other programs run."""
