"""Results in the forms that viewers and archives read. Nothing here knows HTTP routes or models."""
