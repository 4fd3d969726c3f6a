"""Programs that are not Python packages: Debian's Orthanc, Chromium, dciodvfy and the like."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """Return the path of `name`; where it is not installed the test is skipped, and in CI it fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed; .ci/run should have brought it")
        pytest.skip(f"{name} is not installed; docs/integrations.md says which Debian package has it")
    return found
