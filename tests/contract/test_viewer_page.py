"""The page's files: how they are served, that nothing in them leads outside, and what was vendored."""

import hashlib
import json
import re
import tomllib
from pathlib import PurePosixPath

import pytest

from app.main import create_app
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.settings import Settings
from tests.conftest import ROOT
from tests.fakes import ColourSegmenter

STATIC = ROOT / "app" / "viewer" / "static"
VENDOR = STATIC / "vendor"
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
OWN = [path for path in FILES if VENDOR not in path.parents]


def address(path):
    return f"/viewer/{path.relative_to(STATIC).as_posix()}"


def test_the_page_is_served_with_a_policy_that_allows_nothing_from_outside(client):
    answer = client.get("/viewer")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    empty = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    assert answer.headers["content-security-policy"] == (
        f"default-src 'self'; style-src 'self' {empty}; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    )
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_and_kept_until_it_changes(client, path):
    answer = client.get(address(path))
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(address(path), headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = client.head(address(path))
    assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])


@pytest.mark.parametrize("path", ["/viewer", "/viewer/main.js", "/static-offline-docs/swagger-ui.css"])
@pytest.mark.parametrize("asked", ["lines=0-9", "bytes=9-0", "bytes=x", "bytes=999999999-", "bytes=0-9", "x"])
def test_a_part_of_a_file_is_not_given_and_asking_for_one_is_no_error(client, path, asked):
    """Before, Starlette answered most of these with 400 or 416, in plain text."""
    whole = client.get(path)
    for ask in (client.get, client.head):
        answer = ask(path, headers={"Range": asked})
        assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
        assert answer.headers["content-length"] == str(len(whole.content))
    assert client.get(path, headers={"Range": asked}).content == whole.content


def test_scripts_and_styles_have_the_types_that_browsers_insist_on(client):
    assert client.get("/viewer/main.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/viewer/theme.css").headers["content-type"].startswith("text/css")
    assert client.get("/viewer/mark.svg").headers["content-type"].startswith("image/svg+xml")


@pytest.mark.parametrize(
    ("address", "status", "location", "page"),
    [
        ("/", 307, "viewer", "/viewer"),
        ("/viewer/", 308, "../viewer", "/viewer"),
        ("/viewer/index.html", 308, "../viewer", "/viewer"),
        ("/docs/", 308, "../docs", "/docs"),
        ("/redoc/", 308, "../redoc", "/redoc"),
    ],
)
def test_what_people_type_leads_to_a_page_also_behind_a_prefix(client, address, status, location, page):
    answer = client.get(f"{address}?name=x", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (status, location)
    followed = client.get(address)
    assert (followed.status_code, followed.url.path) == (200, page)
    assert client.head(address, follow_redirects=False).status_code == status
    assert client.app.state.running.metrics.registry.get_sample_value(
        "tessera_requests_total", {"route": address, "status": str(status)}
    )


@pytest.mark.parametrize("path", ["none.js", "vendor", "..%2fpage.py", "%2e%2e/page.py", "..%2f..%2fmain.py"])
def test_nothing_else_is_served(client, path):
    answer = client.get(f"/viewer/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_page_is_no_part_of_the_api():
    paths = create_app(Settings(cores=1), ColourSegmenter()).openapi()["paths"]
    assert not [path for path in paths if "viewer" in path]


def test_every_file_that_the_page_names_exists():
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="viewer/([^"]+)"', page)
    assert {"main.js", "theme.css", "vendor/openseadragon.min.js"} <= set(named)
    for module in STATIC.glob("*.js"):
        named += re.findall(r'from "\./([^"]+)"', module.read_text(encoding="utf-8"))
    assert [name for name in named if not (STATIC / name).is_file()] == []
    unused = {path.name for path in STATIC.glob("*.js")} - set(named)
    assert unused == set()


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_of_ours_names_another_server(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "://" not in text
    assert not re.search(r"""["'(]//""", text)


def test_the_page_takes_the_pixel_sizes_that_the_service_takes():
    script = (STATIC / "spacing.js").read_text(encoding="utf-8")
    bounds = {name: float(value) for name, value in re.findall(r"const (\w+_UM_PER_PX) = ([0-9.]+);", script)}
    assert bounds == {"LEAST_UM_PER_PX": LEAST_UM_PER_PX, "MOST_UM_PER_PX": MOST_UM_PER_PX}


def test_the_page_has_no_inline_script_or_style():
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", page) == []
    assert re.findall(r"\sstyle=|\son\w+=", page) == []
    assert re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL) == [""]


def test_vendored_files_are_what_was_published():
    known = json.loads((VENDOR / "VENDORED.json").read_text(encoding="utf-8"))
    entries = [entry for package in known["packages"] for entry in package["files"]]
    assert {entry["file"] for entry in entries} == {path.name for path in VENDOR.iterdir()} - {"VENDORED.json"}
    for entry in entries:
        assert hashlib.sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    for package in known["packages"]:
        assert package["licence"]
        assert package["version"] in (VENDOR / package["files"][0]["file"]).read_text(encoding="utf-8")[:200]


def test_an_installed_package_holds_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["app"]
    names = [PurePosixPath(path.relative_to(ROOT / "app")) for path in FILES]
    assert [name for name in names if not any(name.match(pattern) for pattern in patterns)] == []
