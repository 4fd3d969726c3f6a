"""Every error the project raises on purpose, as one tree. It knows no HTTP; `app/api/problems.py` maps it.

TesseraError
├── ImageRejected             this image cannot be segmented; the next one may
│   ├── UnsupportedImage        not one of the accepted formats or pixel types
│   ├── UnreadableImage         the format is right, the content is damaged
│   ├── ImageTooLarge           more pixels than the service accepts
│   ├── TooManyRegions          its class map cannot be answered as polygons
│   ├── SlideUnreadable         a slide, or what holds it, does not give its pixels
│   ├── AreaOutside             an area of a slide that holds none of its pixels
│   ├── NotASlide               a series of an archive that is no pyramid of a slide
│   ├── OtherStain              a slide of an archive that is not stained with H&E
│   └── SeriesNotFound          an archive holds no such series
├── AccessDenied              the caller may not do this
│   ├── CredentialsMissing      nothing says who the caller is
│   ├── CredentialsRejected     a key or token that is not valid
│   ├── ScopeMissing            a valid one that does not allow this
│   └── AdminClosed             nobody may, before keys or an issuer of tokens are set
├── NotServed                 nothing is wrong with the image, try again later
│   ├── ComeBackLater           and when that makes sense is known
│   │   ├── QueueFull             the queue holds as many images as it may
│   │   ├── RateExceeded          the caller sent as many images of late as it may
│   │   └── TooManyConnections    as many clients are connected as may be
│   ├── DeadlineExceeded        the answer was not ready in time
│   ├── OutOfMemory             there is no memory for it now
│   ├── ModelNotReady           the model is not loaded, or the service is stopping
│   ├── KeysUnavailable         whether a key is valid cannot be told now
│   ├── IssuerUnavailable       whether a token is valid cannot be told now
│   ├── AuditUnavailable        the request could not be written down
│   ├── MetricsIncomplete       a process of the service does not tell its metrics
│   ├── OrderCancelled          the user took the order back
│   ├── ArchiveUnavailable      the archive cannot be reached, or does not answer now
│   └── ArchiveDenied           the archive does not accept the credentials
├── ArchiveRefused            the archive answers that it will not do this
├── CallbackRefused           an order names an address to which nothing is sent
├── InferenceFailed           the model failed on this image
├── ReloadRefused             the bundle cannot be served; what was served before still is
├── ProcessEnded              a process of the service ended by itself, and the service with it
├── ExtraMissing              installed without the packages that this needs
└── StartupError              the service must not start
    ├── InvalidBundle           the bundle is missing, damaged or not what its manifest says
    ├── DeviceUnavailable       the device asked for is not there
    ├── AddressUnavailable      the address to listen on cannot be had
    ├── AccessUnusable          a file of keys, a certificate or an audit log cannot be used
    └── ArchiveNotAllowed       the archive's address is not one to send patients' data to
"""

STOPPING = "the service is stopping"
"""Said of whatever is not done for that reason."""
MODEL_GONE = "the model does not answer, and the service starts anew; try again in a few seconds"
"""Said to who asks a model that is stuck or broken, or whose process is gone: to them it is the same."""


def no_memory_to(do: str) -> str:
    """Return what is said where there is no memory to do something, as in "decode this image"."""
    return f"there is no memory to {do} now; try again later"


def reason_of(error: OSError) -> str:
    """Return what the system says is wrong, as the part of a sentence."""
    return (error.strerror or str(error)).lower()


class TesseraError(Exception):
    """Base of the tree. The message is one line that a user may see: it never names a file of theirs."""


class ImageRejected(TesseraError):
    """This image cannot be segmented."""


class UnsupportedImage(ImageRejected):
    """The bytes are not one of the accepted image formats or pixel types."""


class UnreadableImage(ImageRejected):
    """The bytes look like an accepted format but do not decode."""


class ImageTooLarge(ImageRejected):
    """The image has more pixels than allowed."""


class TooManyRegions(ImageRejected):
    """The image's class map falls into more regions than are answered as polygons."""


class SlideUnreadable(ImageRejected):
    """A slide, or the archive that holds it, does not give its pixels."""


class AreaOutside(ImageRejected):
    """An area of a slide holds none of its pixels."""


class NotASlide(ImageRejected):
    """A series of an archive holds no pyramid of a slide: a label, an overview, or no microscopy at all."""


class OtherStain(ImageRejected):
    """A slide of an archive that is not stained with haematoxylin and eosin, by its header or its colours."""


class SeriesNotFound(ImageRejected):
    """The archive holds no such series."""


class AccessDenied(TesseraError):
    """The caller may not do this."""


class CredentialsMissing(AccessDenied):
    """Nothing says who the caller is, and this is not for everybody."""


class CredentialsRejected(AccessDenied):
    """The key or token is not known, not valid any more, or not for this service."""


class ScopeMissing(AccessDenied):
    """The key or token is valid, and does not allow this.

    Attributes:
        scope: What it would have to allow.
    """

    def __init__(self, message: str, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class AdminClosed(AccessDenied):
    """Administration is for nobody as long as nobody has to show who they are."""


class NotServed(TesseraError):
    """The image is fine and was not processed; a later try may succeed."""


class ComeBackLater(NotServed):
    """A later try will do, and when is known.

    Attributes:
        retry_after_seconds: A whole number of seconds, at least 1, after which a retry is sensible.
    """

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(ComeBackLater):
    """As many images are in the service as it may hold."""


class RateExceeded(ComeBackLater):
    """The caller sent as many images of late as it may."""


class TooManyConnections(ComeBackLater):
    """As many clients are connected as may be."""

    def __init__(self) -> None:
        super().__init__("the service has as many connections as it may have; try again later")


class DeadlineExceeded(NotServed):
    """The answer was not ready before the request's deadline."""


class OutOfMemory(NotServed):
    """There is no memory now to decode, rescale or segment the image."""


class ModelNotReady(NotServed):
    """The model is not loaded yet, or stuck, or the service is stopping."""


class KeysUnavailable(NotServed):
    """The file of keys cannot be read, or can be written to by others."""


class IssuerUnavailable(NotServed):
    """The issuer of tokens does not give the keys with which they are checked."""


class AuditUnavailable(NotServed):
    """The request could not be written down, and is not answered without that."""


class MetricsIncomplete(NotServed):
    """A process of the service does not tell its metrics: the sum would be too small."""


class OrderCancelled(NotServed):
    """The user took the order back."""


class ArchiveUnavailable(NotServed):
    """The archive cannot be reached, is not trusted, or says that it does not answer now."""


class ArchiveDenied(NotServed):
    """The archive does not accept the credentials, or that they do this."""


class ArchiveRefused(TesseraError):
    """The archive answers that it will not do this, or something that it should not answer."""


class CallbackRefused(TesseraError):
    """An order names an address that the administrator did not allow, or in a way that is no address."""


class InferenceFailed(TesseraError):
    """The runtime failed on this image."""


class ReloadRefused(TesseraError):
    """The bundle as it lies there now cannot be served; what was served before still is."""


class ProcessEnded(TesseraError):
    """A process of the service ended that nobody had asked to, and the others were ended with it."""


class ExtraMissing(TesseraError):
    """The installation lacks the packages of one or several extras.

    Args:
        what: What needs them, as in "DICOM".
        extras: Their names in `pyproject.toml`.
    """

    def __init__(self, what: str, *extras: str) -> None:
        named = " and ".join(f"the extra {extra!r}" for extra in extras)
        super().__init__(
            f"{what} needs {named}: pip install --require-hashes -r requirements/integrations.txt,"
            " or build the image with EXTRAS=integrations"
        )


class StartupError(TesseraError):
    """The service must not start."""


class InvalidBundle(StartupError):
    """The model bundle is missing, damaged or contradicts its manifest."""


class DeviceUnavailable(StartupError):
    """The device that was asked for cannot be used."""


class AddressUnavailable(StartupError):
    """The address to listen on is in use, or not allowed."""


class AccessUnusable(StartupError):
    """A file that says who may ask, shows who the service is, or takes the audit log cannot be used."""


class ArchiveNotAllowed(StartupError):
    """The archive's address is not on the allow-list, or would send patients' data in the clear."""
