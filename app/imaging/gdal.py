"""One thread at a time in GDAL."""

import threading

GDAL = threading.Lock()
"""To hold while calling `rasterio.features`.

Rasterio silences its own NotGeoreferencedWarning by `warnings.catch_warnings`, which swaps the process's filters:
threads undo it for each other, so that the warning comes up, or others stay silenced. And from GDAL 3.11 on, the first
calls of two threads can wait for each other for ever (rasterio#3611).
"""
