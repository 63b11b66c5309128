"""The pages of docs/: they build without a warning, and name what there is."""

import re
import subprocess
import sys

from conftest import ROOT

DOCS = ROOT / "docs"


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "glossary" / "index.html").is_file()


def test_the_page_of_flags_is_what_its_generator_writes(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from write_flags import PAGE, flags_page

    assert flags_page() == PAGE.read_text(), "run: python -m docs.write_flags"


def test_every_page_is_in_the_menu():
    named = set(re.findall(r"(\S+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert named == {page.name for page in DOCS.glob("*.md")}


def test_the_glossary_has_at_most_25_words_of_at_most_25():
    rows = re.findall(r"^\| ([a-z ]+) \| (.+) \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    rows = [(word, meaning) for word, meaning in rows if word != "word"]
    assert 20 <= len(rows) <= 25 and [word for word, _ in rows] == sorted(word for word, _ in rows)
    assert all(len(meaning.split()) <= 25 for _, meaning in rows)


def test_the_architecture_names_every_module_once():
    named, folder = [], None
    for line in (DOCS / "architecture.md").read_text().splitlines():
        if heading := re.match(r"##.*", line):
            found = re.match(r"#+ `([\w/]+)`", heading.group())
            folder = found.group(1) if found else None
        elif folder and (row := re.match(r"\| `([\w/]+\.py)` \|", line)):
            named.append(f"{folder}/{row.group(1)}")
    modules = [path for package in ("myllm", "tune") for path in (ROOT / package).rglob("*.py")]
    assert sorted(named) == sorted(path.relative_to(ROOT).as_posix() for path in modules if path.name != "__init__.py")
