"""What is said of libraries that are missing, and what they may say themselves."""

import logging
import sys

import pytest

from app import libraries
from app.access_settings import AccessSettings, access_of
from app.errors import ExtraMissing
from app.imaging.decode import decode
from app.libraries import require, silence_libraries
from tests.pictures import tiff_of

ASCII = 2
IMAGE_DESCRIPTION = 270
OIDC = AccessSettings(oidc_issuer="https://login.example", oidc_audience="tessera")


def test_the_extras_are_named_whichever_package_is_missing():
    require("this", ("json", "logging"), "none")
    for packages in (("json", "no_such_package"), ("no_such_package", "json")):
        with pytest.raises(ExtraMissing, match="this needs the extra 'one' and the extra 'two'"):
            require("this", packages, "one", "two")


@pytest.mark.parametrize("package", ["jwt", "cryptography"])
def test_an_issuer_without_the_extra_stops_the_start_with_its_name(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissing, match="OpenID Connect needs the extra 'oidc'"):
        access_of(OIDC, "127.0.0.1")


def test_a_module_that_is_missing_below_is_not_taken_for_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "app.access.tokens", raising=False)
    monkeypatch.setitem(sys.modules, "app.addresses", None)
    with pytest.raises(ModuleNotFoundError, match=r"app\.addresses"):
        access_of(OIDC, "127.0.0.1")


@pytest.fixture
def talking():
    """Let every library log all, as it would if nobody had silenced it."""
    loggers = [logging.getLogger(name) for name in (*libraries._TALKATIVE, "py.warnings")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("talking")
def test_no_library_that_may_name_a_patient_is_heard_at_any_level(caplog):
    caplog.set_level(logging.DEBUG)
    silence_libraries()
    for name in (
        "PIL.TiffImagePlugin",
        "pydicom",
        "highdicom",
        "wsidicom",
        "dicomweb_client.web",
        "urllib3.connection",
    ):
        for level in (logging.DEBUG, logging.CRITICAL):
            logging.getLogger(name).log(level, "DOE^JANE")
    assert not caplog.records
    logging.getLogger("py.warnings").warning("of others")
    assert [record.message for record in caplog.records] == ["of others"]
    silence_libraries("py.warnings")
    logging.getLogger("py.warnings").warning("DOE^JANE")
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("talking")
def test_pillow_does_not_log_the_tags_of_an_image_that_is_decoded(caplog):
    caplog.set_level(logging.DEBUG)
    decode(tiff_of({IMAGE_DESCRIPTION: (ASCII, 4, int.from_bytes(b"DOE\0", "little"))}), 8)
    assert "DOE" not in caplog.text
