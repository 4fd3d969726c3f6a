"""Bytes and pixels: decoding uploads, judging and resampling images, painting and tracing results."""
