"""Text as people have it."""

import bz2
import csv
import gzip
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from myllm.datasets.data_paths import find_files
from myllm.datasets.documents import Piece, read_pieces
from myllm.datasets.encoding import encode_job, encode_pieces, jobs
from myllm.datasets.load_tokens import prepare
from myllm.datasets.token_file import TokenFile
from myllm.datasets.tokenizer import byte_tokenizer, encode
from myllm.system.errors import InputError

END = 256  # of the byte tokenizer
ROWS = [{"text": "héllo\nthere", "url": "a"}, {"text": "", "url": "b"}, {"text": None}, {"text": "good bye", "url": "c"}]


def documents(path, **kwargs):
    found = [""]
    for piece in read_pieces(path, **kwargs):
        found[-1] += piece.text
        if piece.ends:
            found.append("")
    assert found.pop() == ""
    return found


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_are_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS) + "\n\n" + '{"text": "last"}')
    assert documents(path) == ["héllo\nthere", "", "", "good bye", "last"]
    path.write_text(lines([{"source": "web", "text": None}, {"source": "web", "text": "b"}]))
    assert documents(path) == ["", "b"]  # found although the first document is empty
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prose": "a"}\r\n{"prose": "b"}\r\n')
    assert documents(path) == ["a", "b"]
    path.write_text('{"Text": "a", "url": "b"}')
    assert documents(path) == ["a"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_compressed_text_is_read_by_its_content(tmp_path, suffix):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda b: pa.compress(b, "zstd", asbytes=True)}[suffix]
    text = "words and words\n" * 200_000  # several pieces
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(text[:-7].encode()) + pack(text[-7:].encode()))
    assert documents(tmp_path / f"a.txt{suffix}") == [text]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(lines(ROWS).encode()))
    assert documents(tmp_path / f"a.jsonl{suffix}") == ["héllo\nthere", "", "", "good bye"]
    named = tmp_path / os.fsdecode(b"caf\xe9.txt")
    named.write_bytes(pack(text.encode()))
    assert documents(named) == [text]
    (tmp_path / f"cut.txt{suffix}").write_bytes(pack(text.encode())[:-20])
    with pytest.raises(InputError, match="can't be read"):
        documents(tmp_path / f"cut.txt{suffix}")


def test_parquet_has_a_text_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [row["text"] for row in ROWS], "id": [1, 2, 3, 4]}), path)
    assert documents(path) == ["héllo\nthere", "", "", "good bye"]
    pq.write_table(pa.table({"prose": pa.array(["a", "b"]).dictionary_encode(), "id": [1, 2]}), path)
    assert documents(path) == ["a", "b"]
    pq.write_table(pa.table({"prose": pa.array(["a"], pa.large_string()), "poem": ["b"]}), path)
    with pytest.raises(InputError, match="Say --text_column; the text columns are prose, poem"):
        documents(path)
    assert documents(path, text_column="poem") == ["b"]
    with pytest.raises(InputError, match="no text column 'verse'; there are prose, poem"):
        documents(path, text_column="verse")
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(InputError, match="the text columns are none"):
        documents(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a Parquet file"):
        documents(path)


def test_the_column_of_json_lines_is_named_or_found_or_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a", "answer": "b", "n": 1}\n{"answer": null}\n')
    with pytest.raises(InputError, match="the text columns are question, answer"):
        documents(path)
    assert documents(path, text_column="answer") == ["b", ""]
    path.write_text('{"text": "a", "content": "b"}\n')
    with pytest.raises(InputError, match="--text_column"):
        documents(path)
    for content, word in (
        ('{"text": "a"}\n{"other": "b"}', "line 2 has no text in the column 'text'"),
        ('{"text": "a"}\n{"text": 5}', "line 2 has no text"),
        ('{"text": "a"}\nno json', "line 2 is not JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('"a"', "line 1 is no JSON object"),
        ('{"text":' + "[" * 100_000, "line 1 is not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=word):
            documents(path)


def test_tables_are_read_by_their_text_column(tmp_path):
    path = tmp_path / "a.csv"
    for content in (
        'id,text\n1,"a, b"\n\n2,"said ""c""\nand d"\n3,\n',
        '\ufeffid;text\r\n1;"a, b"\r\n2;"said ""c""\nand d"\r\n3;""\r\n',
        'id\ttext\n1\ta, b\n2\t"said ""c""\nand d"\n3\t\n',
    ):
        path.write_bytes(content.encode())
        assert documents(path) == ["a, b", 'said "c"\nand d', ""], content
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(content.encode()))
    assert documents(tmp_path / "a.tsv.gz")[0] == "a, b"
    path.write_text(",prose,stars\n0,a,4.5\n1,12,3\n")  # pandas' index has no name; what begins as a number is none
    assert documents(path) == ["a", "12"] and documents(path, text_column="stars") == ["4.5", "3"]
    path.write_text("text\n" + "x" * 2_000_000 + "\nb\n")
    assert [len(text) for text in documents(path)] == [2_000_000, 1]
    path.write_text("text,code\na,b\n")
    with pytest.raises(InputError, match="Say --text_column; the text columns are text, code"):
        documents(path)
    for content, word in (
        ("id,stars\n1,2\n", "the text columns are none"),
        ("1,a\n2,b\n", "its first line must name the columns, each once"),
        ("text,text\na,b\n", "each once"),
        ("id,text\n1,a\n2,b,c\n", "line 3 ends a row of 3 cells, not 2"),
        ('id,text\n1,"a\n2,b\n3,c\n', "the row after line 1 is no CSV: unexpected end"),
        ('id,text\n1,"a" b\n', "the row after line 1 is no CSV: ',' expected"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=word):
            documents(path)
    path.write_bytes(b"id,text\n1,caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8 text"):
        documents(path)
    path.write_text('id,text\n1,"' + "a" * 200 + "\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=r"more than 100 characters; is a quote"):
        patch.setattr("myllm.datasets.tabular_text.CELL_CHARS", 100)
        documents(path)
    assert csv.field_size_limit() > 100  # for whoever reads tables in this process next


def test_arrow_files_and_saved_datasets_are_read(tmp_path, monkeypatch):
    table = pa.table({"text": [row["text"] for row in ROWS] * 50, "id": range(200)})
    for name, writer in (("a.arrow", pa.ipc.new_stream), ("a.feather", pa.ipc.new_file), ("b.arrow", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, writer(file, table.schema) as out:
            out.write_table(table, max_chunksize=90)
        assert documents(tmp_path / name) == ["héllo\nthere", "", "", "good bye"] * 50
    assert documents(tmp_path / "a.arrow", text_column="text")[3] == "good bye"
    with pytest.raises(InputError, match="no text column 'id'; there are text"):
        documents(tmp_path / "a.arrow", text_column="id")
    cut = tmp_path / "cut.arrow"
    cut.write_bytes((tmp_path / "a.arrow").read_bytes()[:-900])
    with pytest.raises(InputError, match=r"damaged at row|can't be read"):
        documents(cut)
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):  # the second is of some .map() of the user's
        (saved / name).write_bytes((tmp_path / "a.arrow").read_bytes())
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    assert [path.name for path in find_files(str(saved))] == ["data-00000-of-00001.arrow"]
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match=f"several splits; name one of them: {saved}"):
        find_files(str(tmp_path / "saved"))
    (saved / "state.json").write_text("{}")
    with pytest.raises(InputError, match="no dataset that was saved"):
        find_files(str(saved))


def test_json_lines_may_be_called_json(tmp_path):
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
    (tmp_path / "a.json").write_text(lines(ROWS))
    for path in [*find_files(str(tmp_path)), *find_files(str(tmp_path / "*.json"))]:
        assert documents(path) == ["héllo\nthere", "", "", "good bye"]
    assert [path.name for path in find_files(str(tmp_path))] == ["c4.json.gz"]


def test_markup_and_code_are_text_as_they_are(tmp_path):
    for name in ("a.md", "a.html", "a.xml", "a.py", "LICENSE"):
        (tmp_path / name).write_text("<p>1, 2</p>\n")
        assert documents(tmp_path / name) == ["<p>1, 2</p>\n"]


def test_what_is_no_text_is_refused_by_its_true_reason(tmp_path):
    import io
    import tarfile
    import zipfile

    def archive(kind):
        content = io.BytesIO()
        if kind == "zip":
            zipfile.ZipFile(content, "w").writestr("a", "b")
        else:
            with tarfile.open(fileobj=content, mode=kind) as tar:
                tar.addfile(tarfile.TarInfo("a"))
        return content.getvalue()

    cases = [
        ("u.txt", "a text".encode("utf-16"), "UTF-16 text: convert"),
        ("u.txt", b"\xfe\xff" + "a text".encode("utf-16-be"), "UTF-16 text: convert"),
        ("u.txt", "a text".encode("utf-16-le"), "UTF-16 without its mark"),
        ("u.txt", "a text".encode("utf-32"), "UTF-32"),
        ("l.txt", b"caf\xe9 " * 3, r"not UTF-8 text \(byte 3\)"),
        ("l.txt", b"ab " * 700_000 + b"\xe9", r"not UTF-8 text \(byte 2100000\)"),
        ("l.txt", "é".encode()[:1], r"not UTF-8 text \(byte 0\)"),
        ("l.txt", b"a" + "é".encode() * 700_000 + b"\xff", r"\(byte 1400001\)"),  # the first piece ends within a character
        ("l.jsonl", b'{"text": "caf\xe9"}', "line 1 is not UTF-8"),
        ("z.txt", archive("zip"), "a zip archive: unpack"),
        ("t.txt", archive("w"), "tar archive"),
        ("t.txt.gz", archive("w:gz"), "tar archive"),
        ("t.tar", archive("w"), "tar archive"),
        ("x.txt", b"\xfd7zXZ\x00", "xz-compressed"),
        ("p.txt", b"%PDF-1.4", "a PDF"),
        ("j.json", b'[\n {"text": "a"}\n]', r"line 1 is not JSON: one object a line is read; jq -c '\.\[\]'"),
        ("j.json.gz", gzip.compress(b'[{"text": "a"}]'), "line 1 is no JSON object with a text column: one object a line"),
        ("w.docx", archive("zip"), "an office document: extract its text"),
        ("s.xlsx", archive("zip"), "a spreadsheet: save it as .csv"),
        ("n.npz", archive("zip"), "several NumPy arrays"),
        ("m.pt", archive("zip"), "weights, or tensors"),
        ("m.safetensors", b"\x40\0\0\0\0\0\0\0{}", "weights, or tensors"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("p.txt", pickle.dumps([1]), "a pickle, which is not opened"),
        ("a.txt", b"\xff\xff\xff\xff\x70\0\0\0", "an Arrow stream: name it .arrow"),
        ("f.feather", b"FEA1 and more", "not an Arrow file"),
        ("e.txt", b"", "empty"),
        ("d.txt.gz", gzip.compress(gzip.compress(b"a")), "compressed twice"),
    ]
    for name, content, word in cases:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=word):
            documents(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="a pipe can't be read twice"):
        documents(tmp_path / "pipe.txt")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa")
    (tmp_path / "bz.txt").write_bytes(b"BZh is how this text begins")
    assert documents(tmp_path / "bom.txt") == ["a"] and documents(tmp_path / "bz.txt")[0].startswith("BZh")


def test_documents_are_parted_by_the_end_of_text(tmp_path):
    byte = byte_tokenizer()
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS))
    expected = [*"héllo\nthere".encode(), END, *b"good bye"]
    assert prepare(str(path), "train", "byte", byte, tmp_path / "cache").ids.tolist() == expected
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.txt").write_text("two")
    path.write_text('{"question": "a", "answer": "b"}\n')
    for column, text in (("question", b"a"), ("answer", b"b")):  # which is a part of what a cache is known by
        found = prepare(str(path), "train", "byte", byte, tmp_path / "cache", text_column=column)
        assert found.ids.tolist() == [*text]
    (tmp_path / "a.txt").write_bytes(path.read_bytes())  # the same bytes, read as another kind of file
    assert prepare(str(tmp_path / "a.txt"), "train", "byte", byte, tmp_path / "cache").ids.tolist() == [*path.read_bytes()]
    both = prepare([str(tmp_path / "b.txt"), str(tmp_path / "c.txt")], "train", "byte", byte, tmp_path / "cache")
    assert both.ids.tolist() == [*b"one", END, *b"two"]


@pytest.mark.parametrize("pattern", ["gpt2", "o200k_base"])
@pytest.mark.parametrize("job_chars", [64, 150, 1000])
def test_cutting_and_threads_change_no_id(gpt2_tokenizer, pattern, job_chars, monkeypatch):
    tokenizer = gpt2_tokenizer
    if pattern == "o200k_base":  # which keeps "don't" in one piece; with GPT-2's ranks
        import tiktoken

        letters, more = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'ll)?", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
        pattern = rf"{letters}|{more}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ranks = gpt2_tokenizer._mergeable_ranks | {b"don't": 50257}
        specials = {"<|endoftext|>": 50256}
        tokenizer = tiktoken.Encoding("like o200k", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    monkeypatch.setattr("myllm.datasets.encoding.PROBE_CHARS", 24)
    rng = np.random.default_rng(job_chars)
    words = [
        "a",
        "don't",
        "'s",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        ".",
        "...",
        "字",
        "\uff0c",
        "e\u0301",
        "हिन्दी",
        "123",
        "_",
        "\u00a0",
        "😀",
    ]
    for _ in range(30):
        texts = ["".join(rng.choice(words, rng.integers(0, 400))) for _ in range(4)]
        pieces = [piece for text in texts for piece in (Piece(text[:30], False, 0), Piece(text[30:], True, 0))]
        whole = [encode(text, tokenizer) for text in texts if text]
        expected = np.concatenate([np.append(ids, 50256) for ids in whole])[:-1]
        for threads in (1, 3):
            monkeypatch.setattr("myllm.datasets.encoding.JOB_CHARS", job_chars)
            split = [encode_job(job, tokenizer) for job, _ in jobs(pieces, tokenizer, job_chars)]
            assert np.array_equal(np.concatenate(split), expected)
            assert len(split) > 1 or job_chars > 200
            assert np.array_equal(np.concatenate([i for i, _ in encode_pieces(pieces, tokenizer, threads)]), expected)


def test_there_are_as_many_threads_as_cores_that_may_be_used(monkeypatch):
    asked = []
    monkeypatch.setattr("myllm.datasets.encoding.available_cpus", lambda: 3)
    monkeypatch.setattr(
        "myllm.datasets.encoding.ThreadPoolExecutor", lambda count: asked.append(count) or ThreadPoolExecutor(count)
    )
    assert [ids.tolist() for ids, _ in encode_pieces([Piece("a", True, 1)], byte_tokenizer())] == [[97]] and asked == [3]


def test_long_runs_and_lines_end_in_reasonable_time(gpt2_tokenizer):
    import time

    start = time.monotonic()
    for run in ("a", " ", "\n", "-", "字", "ab", "0"):
        pieces = [Piece(run * 2_000_000, True, 1)]
        ids = np.concatenate([ids for ids, _ in encode_pieces(pieces, gpt2_tokenizer)])
        assert gpt2_tokenizer.decode(ids.tolist()) == run * 2_000_000
    assert time.monotonic() - start < 120


def test_surrogate_halves_are_no_error(gpt2_tokenizer):
    for tokenizer in (gpt2_tokenizer, byte_tokenizer()):
        assert tokenizer.decode(encode("a\ud800b", tokenizer).tolist()) == "a\ufffdb"


def test_what_a_user_names_becomes_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s_10.bin", "s_9.bin", "s_9.json", "meta.pkl", ".hidden.bin", "[odd].bin", "README.md"):
        (tmp_path / name).write_bytes(b"1234")
    os.mkdir("empty")

    def names(source):
        return [path.name for path in find_files(source)]

    assert names("s_*") == ["s_9.bin", "s_10.bin"]
    assert names(str(tmp_path)) == ["[odd].bin", "s_9.bin", "s_10.bin"]
    assert names(["s_10.bin", "s_9.bin"]) == ["s_10.bin", "s_9.bin"]
    assert names("[odd].bin") == ["[odd].bin"]
    os.symlink("s_9.bin", "link.bin")
    with pytest.raises(InputError, match=r"link\.bin: named twice"):
        find_files(["s_9.bin", "link.bin"])
    os.unlink("link.bin")
    (tmp_path / "a.txt").write_text("a")
    for source, word in (
        ("empty", "a folder without"),
        ("", "empty"),
        ("x" * 300, "too long"),
        ("none_*.bin", "no file has such a name"),
        (["s_9.bin", "./s_9.bin"], "named twice"),
        (["s_9.bin", "a.txt"], "name files of one kind"),
        (".", "name files of one kind"),
    ):
        with pytest.raises(InputError, match=word):
            find_files(source)
    os.mkdir("both")
    for name in ("fineweb_val_000000.bin", "fineweb_train_000001.bin"):
        (tmp_path / "both" / name).write_bytes(b"1234")
    with pytest.raises(InputError, match=r"both train and val; say which, as with 'both/\*train\*'"):
        find_files("both")
    assert names("both/*train*") == ["fineweb_train_000001.bin"]


def test_an_unfinished_preparation_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    byte, cache = byte_tokenizer(), tmp_path / "cache"
    path = tmp_path / "a.txt"
    path.write_text("word " * 1000)
    whole = prepare(str(path), "train", "byte", byte, cache)
    expected, cached = whole.ids.tolist(), whole.path
    cached.write_bytes(cached.read_bytes()[:-100])  # as if cut
    assert prepare(str(path), "train", "byte", byte, cache).ids.tolist() == expected
    cached.with_suffix(".json").unlink()
    assert prepare(str(path), "train", "byte", byte, cache).ids.tolist() == expected
    cached.unlink()
    assert prepare(str(path), "train", "byte", byte, cache).ids.tolist() == expected

    def fails(*_):
        yield np.zeros(10, np.uint16)
        raise KeyboardInterrupt

    path.write_text("other " * 1000)
    before = sorted(cache.iterdir())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("myllm.datasets.load_tokens.encoded", fails)
        prepare(str(path), "train", "byte", byte, cache)
    assert sorted(cache.iterdir()) == before
    assert isinstance(prepare(str(path), "train", "byte", byte, cache), TokenFile)
