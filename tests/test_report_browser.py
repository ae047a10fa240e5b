"""The report in a real browser, Debian's chromium without a window; `make slow` installs it and runs these."""

from __future__ import annotations

import dataclasses
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_page import Page
from report_toy import everything

from maskaug.benchmarks.report import report

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
    # Nothing leaves this machine, whatever the page or the browser would like.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
LIGHT, DARK = 1, 0


@dataclasses.dataclass
class Shown:
    """What the browser made of a page: its document after the script ran, what its console says, what was asked for."""

    document: Page
    console: list[str]
    requests: list[str]


@dataclasses.dataclass
class Browser:
    """A browser without a past: every page gets a new profile."""

    folder: Path
    program: str
    count: int = 0

    def _run(self, page: Path, hash_: str, *flags: str) -> subprocess.CompletedProcess[str]:
        self.count += 1
        profile, log = self.folder / f"profile{self.count}", self.folder / f"net{self.count}.json"
        command = [self.program, *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={log}", *flags]
        done = subprocess.run(
            [*command, f"{page.as_uri()}{hash_}"], capture_output=True, encoding="utf-8", timeout=120, check=True
        )
        shutil.rmtree(profile, ignore_errors=True)
        return done

    def show(self, page: Path, hash_: str = "") -> Shown:
        done = self._run(page, hash_, "--dump-dom")
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        # What the browser itself wants from its maker says nothing of this page: no page is its origin.
        net = json.loads((self.folder / f"net{self.count}.json").read_text(encoding="utf-8"))
        asked = [event.get("params", {}) for event in net["events"]]
        requests = [p["url"] for p in asked if "url" in p and p.get("initiator", "not an origin") != "not an origin"]
        return Shown(Page(done.stdout), console, requests)

    def picture(self, page: Path, scheme: int, height: int, to: Path) -> np.ndarray:
        size = f"--window-size=1400,{height}"
        self._run(page, "", f"--screenshot={to}", size, f"--blink-settings=preferredColorScheme={scheme}")
        return np.asarray(Image.open(to).convert("RGB"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = shutil.which("chromium")
    assert program is not None, "there is no chromium; `make browser` installs it"
    return Browser(tmp_path_factory.mktemp("browser"), program)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    report([everything(root / "all")], root / "report.html")
    return root / "report.html"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()
        thread.join()


def order(shown: Shown, table: str, title: str) -> list[str]:
    return shown.document.column(table, title)


def test_it_runs_without_a_word_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    shown = browser.show(page)
    assert shown.console == []
    assert shown.requests == []
    assert "owned" not in next(text for text in shown.document.words if text.strip())
    assert order(shown, "runs", "run") == Page(page.read_text(encoding="utf-8")).column("runs", "run")


def test_tables_sort_by_number_with_gaps_last(browser: Browser, page: Path) -> None:
    titles = Page(page.read_text(encoding="utf-8")).titles("runs")
    at = titles.index("test.auroc")
    down = browser.show(page, f"#sort=runs:{at}:desc")
    assert down.console == []
    assert order(down, "runs", "test.auroc") == ["0.861", "0.8", "0.79", "-1.5e-07", *["–"] * 6]
    up = browser.show(page, f"#sort=runs:{at}:asc")
    assert order(up, "runs", "test.auroc") == ["-1.5e-07", "0.79", "0.8", "0.861", *["–"] * 6]
    ways = [attributes["aria-sort"] for _, attributes in up.document.tables["runs"][0]]
    assert ways == ["ascending" if i == at else "none" for i in range(len(titles))]
    # The rows went as a whole.
    assert order(up, "runs", "run")[:4] == [f"grid/cell{i}" for i in (3, 1, 0, 2)]


def test_words_sort_as_words_and_numbers_in_them_by_value(browser: Browser, page: Path) -> None:
    names = order(browser.show(page, "#sort=runs:0:desc"), "runs", "run")
    assert [name for name in names if name.startswith("apga")] == ["apga/seed10", "apga/seed1", "apga/seed0"]
    words = order(browser.show(page, "#sort=table-1:3:desc"), "table-1", "words")
    assert words == ["12 of 10", "3 of 10", "no", "–"]
    intervals = order(browser.show(page, "#sort=table-1:2:asc"), "table-1", "with interval")
    assert intervals == ["−0.3 %", "0.812 [0.790, 0.830]", "0.861 [0.842, 0.880]", "–"]


def test_a_gallery_sorts_by_what_an_arm_selects(browser: Browser, page: Path) -> None:
    shown = browser.show(page, "#sort=gallery-1:0:desc")
    assert [name.split(" <")[0] for name in order(shown, "gallery-1", "image")] == [f"image {i}" for i in (3, 2, 1, 0)]


def test_the_filter_hides_rows_and_their_details(browser: Browser, page: Path) -> None:
    shown = browser.show(page, "#filter=APGA%20seed1&sort=runs:0:desc")
    visible = [i for i, row in enumerate(shown.document.rows["runs"][1:]) if "hidden" not in row]
    assert [order(shown, "runs", "run")[i] for i in visible] == ["apga/seed10", "apga/seed1"]
    assert "2 of 10 runs" in shown.document.text
    details = [a for tag, a in shown.document.tags if tag == "details" and a.get("id", "").startswith("run-")]
    assert sum("hidden" not in attributes for attributes in details) == 2


def test_a_link_to_a_run_opens_it(browser: Browser, page: Path) -> None:
    def opened(hash_: str) -> list[str]:
        tags = browser.show(page, hash_).document.tags
        return [a["id"] for tag, a in tags if tag == "details" and "open" in a and "id" in a]

    assert opened("#run-3") == ["run-3"]
    assert opened("") == []


@pytest.mark.parametrize(
    "hash_", ["#sort=runs:99:asc", "#sort=nothing:0:asc", "#sort=section-runs:0:asc", "#%", "#=&:"]
)
def test_a_wrong_address_does_nothing(browser: Browser, page: Path, hash_: str) -> None:
    shown = browser.show(page, hash_)
    assert shown.console == []
    assert order(shown, "runs", "run")[0] == "apga/seed0"


def test_clicks_and_keys_sort(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The page's script is kept as it is; a second one, let in for this test, clicks."""
    clicks = """
        const head = document.querySelector("#table-1 th:nth-child(2) button");
        head.click(); head.click();
        const box = document.getElementById("filter");
        box.value = "dqn"; box.dispatchEvent(new Event("input"));
        document.getElementById("masks").click();
        document.body.dataset.hash = location.hash;
        head.focus(); document.body.dataset.focus = document.activeElement === head;"""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text)
    (tmp_path / "clicked.html").write_text(text.replace("</body>", f"<script>{clicks}</script></body>"))
    shown = browser.show(tmp_path / "clicked.html")
    assert shown.console == []
    assert order(shown, "table-1", "AUROC") == ["0.861", "0.812", "-2", "–"]
    assert "1 of 10 runs" in shown.document.text
    (body,) = [attributes for tag, attributes in shown.document.tags if tag == "body"]
    assert body == {"class": "bare", "data-hash": "#sort=table-1%3A1%3Adesc&filter=dqn", "data-focus": "true"}
    # The address that it left leads to the same.
    again = browser.show(page, body["data-hash"])
    assert order(again, "table-1", "AUROC") == order(shown, "table-1", "AUROC")
    assert "1 of 10 runs" in again.document.text


def test_the_policy_stops_what_slips_in(
    browser: Browser, page: Path, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    evil = (
        f'<img src="{address}/img"><img src="https://example.com/far">'
        f'<iframe src="{address}/frame"></iframe><link rel="stylesheet" href="{address}/css">'
        f'<script>fetch("{address}/fetch"); document.body.dataset.evil = "ran"</script>'
        f'<img src="data:," onerror="document.body.dataset.evil = 1"><p style="background: url({address}/style)">x</p>'
    )
    text = page.read_text(encoding="utf-8").replace("</main>", f"{evil}</main>")
    (tmp_path / "slipped.html").write_text(text)
    # Without the policy all of it happens: the test can fail.
    (tmp_path / "open.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", text))
    shown = browser.show(tmp_path / "slipped.html")
    assert shown.console != []
    assert asked == []
    assert shown.requests == []
    assert not [1 for tag, attributes in shown.document.tags if tag == "body" and attributes]
    opened = browser.show(tmp_path / "open.html")
    assert {"/img", "/frame", "/css", "/style"} <= set(asked)
    assert {f"{address}/img", "https://example.com/far"} <= set(opened.requests)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_light_and_dark(browser: Browser, page: Path, tmp_path: Path, scheme: int) -> None:
    values = browser.picture(page, scheme, 2400, tmp_path / "shot.png").astype(int)
    assert values.shape == (2400, 1400, 3)
    paper = np.median(values.reshape(-1, 3), axis=0)
    assert (paper > 240).all() if scheme == LIGHT else (paper < 40).all()
    # Ink stands out: somewhere on the page there is what is far from the paper, the heading first of all.
    heading = values[20:60, 20:300].mean(-1)
    assert np.abs(heading - paper.mean()).max() > 180
    # Masks and outlines are on the page, in their own colours.
    teal = (np.abs(values - (64, 224, 208)).max(-1) < 12).sum()
    assert teal > 500
