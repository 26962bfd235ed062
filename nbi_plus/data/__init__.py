"""Data: what people hand over, made one kind of numbers before anything is computed."""
