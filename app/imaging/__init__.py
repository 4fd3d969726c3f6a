"""Bytes and pixels: decoding uploads, planning windows, stitching and painting results."""
