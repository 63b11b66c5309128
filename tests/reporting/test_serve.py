"""The live page: served on this machine alone, and driven by Chromium while trials report."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import RECORDED, copied

from tune.reporting.serve import FIRST_PORT, HOST
from tune.store.journal import FILE_NAME

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(tmp_path):
    """A copy of the recorded run, of which the first 60 events have happened; the rest of its lines."""
    folder = copied(tmp_path)
    lines = (RECORDED / FILE_NAME).read_bytes().splitlines(keepends=True)
    (folder / FILE_NAME).write_bytes(b"".join(lines[:60]))
    return folder, lines[60:]


@pytest.fixture
def served(run):
    """(the link, what else was printed)."""
    command = [sys.executable, "tune/report.py", str(run[0]), "--serve"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        said = []
        while not (said and said[-1].startswith("live: ")):
            said.append(server.stdout.readline())
            assert said[-1], "the server has ended"
        yield said[-1].removeprefix("live: ").strip(), said[:-1]
        server.terminate()


def status_of(link, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(link, headers=headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_who_has_the_link_and_the_name_of_this_machine_sees_the_page(served):
    link, _ = served
    assert re.fullmatch(rf"http://{HOST}:\d+/[\w-]{{20,}}/", link)
    root = link[: link.rindex("/", 0, -1) + 1]
    assert status_of(link) == 200 and status_of(root) == status_of(f"{root}guess/") == 404
    assert status_of(link, Host="elsewhere.example") == 400
    request = urllib.request.Request(link, method="POST", data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=60)


def test_a_port_that_is_taken_is_said_and_the_next_is_used(run):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((HOST, FIRST_PORT))
        except OSError:
            pytest.skip("the port is taken already")
        taken.listen()
        command = [sys.executable, "tune/report.py", str(run[0]), "--serve"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
            first, second = server.stdout.readline(), server.stdout.readline()
            server.terminate()
    assert first.startswith(f"note: port {FIRST_PORT} is taken; this is {FIRST_PORT + 1}"), first
    assert f":{FIRST_PORT + 1}/" in second


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_new_points_appear_and_the_filter_stays(run, served):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    folder, rest = run
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, asked, errors = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served[0], wait_until="load")
        page.evaluate("window.same = true")
        page.fill("#filter", "paused")
        before = page.evaluate("[data.rows.length, document.getElementById('answer').innerText]")
        with open(folder / FILE_NAME, "ab") as journal:
            journal.writelines(rest)
        page.wait_for_function(f"data.rows.length > {before[0]}", timeout=60_000)
        after = page.evaluate("[data.rows.length, document.getElementById('answer').innerText, window.same, filter.value]")
        assert after[0] > before[0] and after[1] != before[1] and after[2] and after[3] == "paused"
        points = "document.getElementById('plot-curves').data.reduce((n, trace) => n + trace.x.length, 0)"
        page.wait_for_function(f"{points} > 100", timeout=60_000)
        page.reload(wait_until="load")
        assert page.evaluate("filter.value") == "paused" and page.inner_text("#count").split()[0] != str(after[0])
        page.goto("about:blank")
        page.go_back(wait_until="load")
        assert page.evaluate("filter.value") == "paused"
        browser.close()
    assert not errors and all(url.startswith((served[0], "data:", "blob:", "about:")) for url in asked), (errors, asked)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_the_page_beside_a_search_follows_it(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = Path("tests/programs/ten_lines.py:train")
    words = ["--trainable", str(program), "--range", "rate=1e-3:1e-1", "--budget", "64", "--num_samples", "40", "--serve"]
    command = [sys.executable, "tune/search.py", *words, "--storage_path", str(tmp_path), "--name", "run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as search:
        link = next(line for line in search.stdout if line.startswith("live: ")).removeprefix("live: ").strip()
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(link)
            page.wait_for_function(
                "document.readyState === 'complete' && data.rows && data.rows.length > 0", timeout=120_000
            )
            seen = page.evaluate("window.same = data.rows.length")
            page.wait_for_function("window.same && data.rows.length > window.same", timeout=120_000)
            assert search.poll() is None and seen
            browser.close()
        search.terminate()
        search.communicate(timeout=120)
    end = time.monotonic() + 10
    while status_ends(link) and time.monotonic() < end:
        time.sleep(0.2)
    assert not status_ends(link)


def status_ends(link):
    """True while something answers at the link."""
    try:
        return bool(status_of(link))
    except OSError:
        return False
