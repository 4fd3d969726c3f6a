"""What the words mean: classes, sizes, the model's contract. Stands on numpy and pydantic alone."""
