"""A language model as a row of blocks: data, families, slicing, children."""
