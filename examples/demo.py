"""`make demo`: starts the service on a free port, posts the example patches over HTTP and writes what comes back.

Only the standard library is used, so this is also an example of a client.
"""

import base64
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATCHES = Path(__file__).parent / "patches"
OUT = Path("demo-out")
START_SECONDS = 60
STOP_SECONDS = 30


@contextlib.contextmanager
def running_service() -> Iterator[str]:
    """Run `tessera serve` on a free port and give its address; stop it afterwards and check that it ended well."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(START_SECONDS, process.kill)
        watchdog.start()
        lines: list[str] = []
        address = None
        for line in process.stderr or ():
            lines.append(line)
            if found := re.search(r"running on (http://[0-9.:]+)", line):
                address = found.group(1)
                break
        watchdog.cancel()
        if address is None:
            process.wait()
            raise SystemExit("the service did not start:\n" + "".join(lines))
        drain = threading.Thread(target=lambda: process.stderr and process.stderr.read(), daemon=True)
        drain.start()
        try:
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(STOP_SECONDS)
            drain.join()
        if status != 0:
            raise SystemExit(f"the service ended with status {status}")


# The service is on this machine: a proxy that the environment names must not be asked for it.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def segment(address: str, image: bytes) -> dict[str, Any]:
    """Post one PNG and return the service's answer."""
    request = urllib.request.Request(
        f"{address}/segment?view=overlay", data=image, headers={"Content-Type": "image/png"}
    )
    try:
        with OPEN(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise SystemExit(f"the service answered {error.code}: {json.load(error)['detail']}") from error


def row(name: str, answer: dict[str, Any]) -> str:
    """Return one line of the table: the patch, its labels and each class's share of its pixels."""
    fractions = "  ".join(f"{result['fraction']:10.1%}" for result in answer["classes"])
    size = f"{answer['image']['width']}x{answer['image']['height']}"
    return f"{name:22}  {size:>9}  {answer['code'] or '-':8}{fractions}"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>tessera demo</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }}
table {{ border-collapse: collapse }}
td, th {{ padding: .25rem .5rem; text-align: left; vertical-align: middle; white-space: nowrap }}
img {{ width: 170px; height: 170px; image-rendering: auto; border: 1px solid #ccc; display: block }}
i {{ display: inline-block; width: .9em; height: .9em; border: 1px solid #888; vertical-align: -.1em }}
</style>
<p>{legend} &nbsp; {about}</p>
<p>The cmu1-skin patches are skin: the model knows lung, and calls epithelium tumor.</p>
<table><tr><th>patch<th>mask<th>overlay<th>labels<th>share of pixels</tr>
{rows}</table></html>
"""


def cell(answer: dict[str, Any], name: str) -> str:
    """Return one row of the page: patch, mask, overlay, labels, fractions."""
    pictures = "".join(f'<td><img src="{name}{part}.png" alt="{name}{part}">' for part in ("", "_mask", "_overlay"))
    shares = "<br>".join(f"{result['name']} {result['fraction']:.1%}" for result in answer["classes"])
    return f"<tr>{pictures}<td><b>{answer['code'] or '-'}</b><td>{shares}</tr>"


def main() -> None:
    """Run the demonstration."""
    OUT.mkdir(exist_ok=True)
    with running_service() as address:
        with OPEN(f"{address}/model", timeout=10) as response:
            model = json.load(response)
        about = f"{model['name']} {model['version']} on {model['device']}, {model['intended_use']}"
        print(f"{about}\n")
        names = "  ".join(f"{tissue['name']:>10}" for tissue in model["classes"])
        print(f"{'patch':22}  {'size':>9}  {'labels':8}{names}")
        rows = []
        for path in sorted(PATCHES.glob("*.png")):
            answer = segment(address, path.read_bytes())
            print(row(path.stem, answer))
            rows.append(cell(answer, path.stem))
            (OUT / path.name).write_bytes(path.read_bytes())
            for picture in ("mask", "overlay"):
                (OUT / f"{path.stem}_{picture}.png").write_bytes(base64.b64decode(answer[picture]["base64"]))
    legend = " &nbsp; ".join(
        f'<i style="background:rgb({",".join(map(str, tissue["color"]))})"></i> {tissue["name"]}'
        for tissue in model["classes"]
    )
    (OUT / "index.html").write_text(PAGE.format(legend=legend, about=about, rows="\n".join(rows)), encoding="utf-8")
    print(f"\nmasks and overlays: {OUT}/ (open {OUT}/index.html)")


if __name__ == "__main__":
    main()
