"""The built-in corpus: text that needs no download."""

import hashlib
import os
import sysconfig
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "pydoc_data",
    "encodings",
}


def corpus_texts() -> tuple[list[bytes], list[bytes]]:
    """Returns the standard library's .py files as (train, val), split by the hash of their names (1 in 16).

    Tests, generated tables, bundled packages and files that are not UTF-8 are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    train: list[bytes] = []
    val: list[bytes] = []
    found: list[Path] = []
    for folder, inner, files in os.walk(root):
        inner[:] = set(inner) - LEFT_OUT  # not even looked into: site-packages has ten times as many files
        found += [Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")]
    for path in sorted(found):
        relative = path.relative_to(root)
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError:
            continue
        name_hash = hashlib.sha256(relative.as_posix().encode()).digest()[0]
        (val if name_hash < 16 else train).append(content)
    return train, val


def corpus_text(split: str) -> str:
    """Returns the corpus as one text: of val, or of train."""
    return b"\n".join(corpus_texts()[split == "val"]).decode()
