"""Command line: text or token files -> train_ids.bin and val_ids.bin.

    python myllm/data.py --input text.txt --out_dir DIR --tokenizer gpt2 --val_fraction 0.1

writes flat little-endian uint16 ids (uint32 where the vocabulary needs it), with a .json beside each that names type,
tokenizer and content. What may stand for --input: see datasets/data_paths.py, token_layout.py and documents.py.
"""

import os
import sys

if __name__ == "__main__" and not __spec__:  # as a file, not as a module
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import myllm.system.imports

myllm.system.imports.check_imports()

from pathlib import Path

from myllm.datasets.data_paths import are_tokens, find_files
from myllm.datasets.load_tokens import encoded, prepare, progress_bar, split_text
from myllm.datasets.token_file import write_token_file
from myllm.datasets.token_layout import DTYPES
from myllm.datasets.tokenizer import get_tokenizer
from myllm.system.errors import InputError, Parser, run_command
from myllm.system.files import check_writable
from myllm.system.machine import refuse_torchrun


def main() -> None:
    refuse_torchrun("myllm/data.py")
    parser = Parser(prog="data.py", description="Writes text as train_ids.bin and val_ids.bin.")
    parser.add_argument("--input", required=True, nargs="+", help="text or token files: names, a glob, or a folder")
    parser.add_argument("--out_dir", required=True, help="folder to write to")
    parser.add_argument(
        "--tokenizer", default="gpt2", help="byte, a tiktoken encoding, or a .tiktoken or tokenizer.json file"
    )
    parser.add_argument("--val_fraction", type=float, default=0.1, help="share of the characters, at the end, for val")
    parser.add_argument(
        "--text_column", help="column that is the text, of .jsonl, .csv, .parquet and .arrow files (default: found)"
    )
    parser.add_argument("--token_dtype", choices=list(DTYPES), help="what bare .bin files hold (default: uint16)")
    args = parser.parse_args()
    if not 0 < args.val_fraction < 1:
        raise InputError(f"--val_fraction is {args.val_fraction}; it must lie between 0 and 1")
    files, tokenizer = find_files(args.input), get_tokenizer(args.tokenizer)
    outputs = [Path(args.out_dir) / name for name in ("train_ids.bin", "val_ids.bin")]
    for path in outputs:
        check_writable(path, "--out_dir")
        if os.path.realpath(path) in map(os.path.realpath, files):
            raise InputError(f"--out_dir {args.out_dir}: {path} is an --input too")
    if are_tokens(files):
        tokens = prepare(args.input, "train", args.tokenizer, tokenizer, token_dtype=args.token_dtype)
        cut = int(len(tokens) * (1 - args.val_fraction))
        parts = [tokens.pieces(0, cut), tokens.pieces(cut, len(tokens))]
        bar = progress_bar(len(tokens), "writing")
    elif args.token_dtype:
        raise InputError(f"--token_dtype {args.token_dtype} is for .bin files of token ids; --input is text")
    else:
        train, val, size = split_text(files, args.text_column, args.val_fraction)
        bar = progress_bar(size, "tokenizing")
        parts = [encoded(train, tokenizer, bar), encoded(val, tokenizer, bar)]
    with bar:
        for path, ids in zip(outputs, parts, strict=True):
            tokens = write_token_file(path, ids, args.tokenizer, tokenizer, str(path))
            print(f"{path}: {len(tokens)} tokens")


def cli() -> None:
    """Runs the command with its errors in one line; ends the process."""
    run_command(main)


if __name__ == "__main__":
    cli()
