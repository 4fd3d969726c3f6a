"""Writing a bundle: built in a temporary folder beside its place, then moved there in one step."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from app.pathology.manifest import MANIFEST_FILE, ModelManifest
from model_export.atomic import naming
from model_export.errors import InvalidData, first_fault


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        InvalidData: `target` exists and may not be overwritten, holds something else than a bundle, or its parent
            cannot be written to.
    """
    if target.exists() and not overwrite:
        raise InvalidData(f"{target}: exists already; choose another place or pass --overwrite")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_FILE).is_file():
        raise InvalidData(f"{target}: holds something else than a bundle; --overwrite replaces bundles only")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise InvalidData(f"{target}: cannot be written: {error.strerror}") from error
    try:
        with naming(target):
            yield temporary
        temporary.chmod(0o755)
        if target.exists():
            retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
            try:
                os.replace(target, retired / target.name)
                os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):  # nothing to bring back when the first move failed
                    os.replace(retired / target.name, target)
                with suppress(OSError):
                    retired.rmdir()
                raise
            shutil.rmtree(retired)
        else:
            os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_manifest(bundle: Path) -> ModelManifest:
    """Read a bundle's manifest.

    Raises:
        InvalidData: It is missing or breaks the contract.
    """
    path = bundle / MANIFEST_FILE
    try:
        return ModelManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidData(f"{path}: no such file") from None
    except ValidationError as error:
        raise InvalidData(f"{path}: {first_fault(error)}") from error


def require_intact(path: Path, digest: str) -> None:
    """Make sure that a bundle's file is the one whose digest its manifest states.

    Raises:
        InvalidData: It is missing, or another.
    """
    if not path.is_file():
        raise InvalidData(f"{path}: no such file")
    if sha256_of(path) != digest:
        raise InvalidData(f"{path}: is not the file that its manifest names; export the bundle anew")


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
