"""What GDAL needs where several threads use it through `rasterio.features`."""

import threading
import warnings

from rasterio.errors import NotGeoreferencedWarning

GDAL = threading.Lock()
"""To hold during a call: from GDAL 3.11 on the first ones of two threads can wait for each other for ever
(rasterio#3611)."""

# A class map has no place on Earth. Rasterio silences its own warning of that by `warnings.catch_warnings`, and threads
# that use it at once, as shapely's do, put back each other's filters; so the warning is silenced for good.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
