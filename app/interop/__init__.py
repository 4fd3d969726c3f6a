"""Results in the forms that viewers and archives read, and clients of archives. Nothing here knows routes or models."""
