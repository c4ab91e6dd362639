"""The pages in a real browser: no complaint, no request, nothing wider than a phone."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qvlm_lightning.results.html import comparison_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE = 390
# the page in a frame as wide as a phone, and beside it how wide the page wants to be
FRAME = f"""<!doctype html><link rel="icon" href="data:,"><body>
<iframe id="f" width="{PHONE}" height="800" src="page.html" style="border:0"></iframe>
<p id="found">nothing</p><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  document.getElementById("found").textContent = root.scrollWidth + "/" + root.clientWidth;
}};
</script>"""
BROKEN = """<!doctype html><body><div style="width:900px">wide</div>
<img src="http://picture.invalid/a.png"><script>console.error("broken")</script>"""


class Seen(NamedTuple):
    """What a browser did with a page."""

    complaints: list[str]
    requests: list[str]
    width: int
    room: int


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    return found


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def look(browser, served, tmp_path):
    """Open a page and tell what was seen."""
    folder, address = served

    def open_page(text: str, dark: bool = False) -> Seen:
        (folder / "page.html").write_text(text, encoding="utf-8")
        (folder / "frame.html").write_text(FRAME)
        log = tmp_path / "net.json"
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=3000", "--dump-dom", f"{address}/frame.html",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        found = re.search(r'<p id="found">(\d+)/(\d+)</p>', done.stdout)
        assert found, done.stderr[-2000:]
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Seen(complaints, requests(log, address), int(found[1]), int(found[2]))

    return open_page


def requests(log: Path, address: str) -> list[str]:
    """Return the addresses that pages asked for, other than our two files."""
    text = log.read_text(errors="replace").rstrip().rstrip(",")
    events = json.loads(text if text.endswith("}") else f"{text}]}}")["events"]
    told = [event.get("params", {}) for event in events]
    asked = {one["url"] for one in told if str(one.get("initiator", "")).startswith(address)}
    return sorted(asked - {f"{address}/page.html", f"{address}/frame.html"})


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_of_a_run(look, finished, dark):
    seen = look((finished.root / "report.html").read_text(encoding="utf-8"), dark)
    assert (seen.complaints, seen.requests) == ([], [])
    assert seen.width <= seen.room == PHONE


def test_the_page_of_a_comparison(look, compared):
    seen = look(comparison_html(*compared))
    assert (seen.complaints, seen.requests) == ([], [])
    assert seen.width <= seen.room


def test_a_page_that_is_broken_is_seen(look):
    seen = look(BROKEN)
    assert any("broken" in line for line in seen.complaints)
    assert seen.requests == ["http://picture.invalid/a.png"]
    assert seen.width > seen.room
