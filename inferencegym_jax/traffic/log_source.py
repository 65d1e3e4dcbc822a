"""The bytes of a log, whatever they are packed in: plain, gzip, bzip2, xz, zstd, a zip archive, a pipe.

``path -> LogSource -> text or UTF-8 bytes``. What a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa

from inferencegym_jax.traffic.log_rows import TraceError, named

HEAD_BYTES = 1 << 18
FIRST_BYTES = 1 << 12  # that say what a file is
MEMBERS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")  # of a zip archive
NOT_LOGS = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save it as CSV"),
    (b"SQLite format 3", "an SQLite database; export its table as CSV"),
    (b"ARROW1", "an Arrow file; write it as Parquet or CSV"),
    (b"FEA1", "a Feather file; write it as Parquet or CSV"),
    (b"ORC", "an ORC file; write it as Parquet or CSV"),
    (b"Obj\x01", "an Avro file; write it as Parquet or CSV"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "a picture"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"<!DOCTYPE", "a page in HTML (is it the page of a sign-in?)"),
    (b"<!doctype", "a page in HTML (is it the page of a sign-in?)"),
    (b"<html", "a page in HTML (is it the page of a sign-in?)"),
    (b"<?xml", "XML"),
)


def _latin1(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are no UTF-8, as Latin-1: in a log they are a user's name or a prompt, which nobody reads here."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("inferencegym-latin-1", _latin1)


class LogSource:
    """A log's bytes, which can be read several times.

    Attributes:
        path: the regular file that holds them.
        name: what messages call it.
        encoding: "utf-8-sig" (with Latin-1 for what is none), "utf-16", "utf-16-le", "utf-16-be" or "utf-32".
        head: the first 256 kB, decoded.
        is_parquet: whether it is a Parquet file.
    """

    path: Path
    name: str

    def __init__(self, path: Path, name: str | None = None):
        """Look at the first bytes.

        Raises:
            TraceError: not a log: empty, or a file of another kind.
        """
        self.path, self.name = path, name or path.name
        self._member: str | None = None
        with self.guard(), self.open_bytes() as file:
            first = file.read(HEAD_BYTES)
        if not first.strip(b"\xef\xbb\xbf \t\r\n"):
            raise TraceError(
                f"{self.name}: the file is empty; wanted: a request log with time, prompt tokens, output tokens"
            )
        self.is_parquet: bool = first.startswith(b"PAR1")
        self.encoding: str = "utf-8-sig"
        self.head: str = ""
        if self.is_parquet:
            return
        if first[257:262] == b"ustar":
            raise TraceError(f"{self.name}: this is a tar archive; unpack it and name the log")
        for magic, what in NOT_LOGS:
            if first.startswith(magic):
                raise TraceError(f"{self.name}: this is {what}; wanted: CSV, JSON lines, JSON or Parquet")
        self.encoding = self._encoding(first[:FIRST_BYTES])
        self.head = codecs.getincrementaldecoder(self.encoding)("inferencegym-latin-1").decode(first)
        if not self.head.strip("\ufeff \t\r\n"):
            raise TraceError(
                f"{self.name}: the file is empty; wanted: a request log with time, prompt tokens, output tokens"
            )

    def _encoding(self, first: bytes) -> str:
        if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            return "utf-32"
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        even, odd = first[::2].count(0), first[1::2].count(0)
        if even + odd == 0:
            return "utf-8-sig"
        most = 0.3 * len(first) / 2
        one_side = min(even, odd) == 0 and max(even, odd) > 0.2 * most  # few of its letters are Latin ones
        if one_side or (max(even, odd) > most and min(even, odd) < 0.1 * most + 1):
            return "utf-16-le" if odd > even else "utf-16-be"
        raise TraceError(
            f"{self.name}: not a text file (it holds zero bytes); wanted: CSV, JSON lines, JSON or Parquet"
        )

    def open_bytes(self) -> BinaryIO:
        """The unpacked bytes, from the start.

        Raises:
            TraceError: an archive without a log, or with several.
        """
        return self._unpacked(cast(BinaryIO, self.path.open("rb")), nested=False)

    def _unpacked(self, file: BinaryIO, nested: bool) -> BinaryIO:
        magic = file.read(6)
        file.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            opened: Any = gzip.GzipFile(fileobj=file)
        elif magic.startswith(b"BZh"):
            opened = bz2.BZ2File(file)
        elif magic.startswith(b"\xfd7zXZ"):
            opened = lzma.LZMAFile(file)
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            opened = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
        elif magic.startswith(b"PK\x03\x04"):
            archive = zipfile.ZipFile(file)
            opened = archive.open(self._log_member(archive))
        else:
            return file
        if nested:
            return cast(BinaryIO, opened)
        return self._unpacked(opened, nested=True) if opened.seekable() else cast(BinaryIO, opened)

    def _log_member(self, archive: zipfile.ZipFile) -> str:
        if "[Content_Types].xml" in archive.namelist():
            raise TraceError(f"{self.name}: this is an Excel workbook; save it as CSV")
        members = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
        likely = [n for n in members if n.lower().removesuffix(".gz").endswith(MEMBERS)] or members
        if len(likely) != 1:
            raise TraceError(
                f"{self.name}: an archive of {len(likely)} files ({named(likely)}); wanted: one log; unpack it and name"
                " the file"
            )
        return likely[0]

    def open_text(self) -> TextIO:
        """The log as text, line ends as they are."""
        return io.TextIOWrapper(
            cast(Any, self.open_bytes()), encoding=self.encoding, errors="inferencegym-latin-1", newline=""
        )

    def open_utf8(self) -> Any:
        """The bytes as pyarrow reads them: UTF-8, or (in cells that nobody reads) any superset of ASCII."""
        file = self.open_bytes()
        if self.encoding == "utf-8-sig":
            return file
        return pa.transcoding_input_stream(pa.PythonFile(file, "r"), self.encoding, "utf-8")

    @contextmanager
    def guard(self) -> Generator[None]:
        """A context in which an archive that breaks off is a ``TraceError``."""
        try:
            yield
        except (EOFError, OSError, UnicodeDecodeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
            raise TraceError(f"{self.name}: the file breaks off or is damaged: {str(error)[:80]}") from None


def is_there(path: Path) -> bool:
    """Whether there is a file or a pipe of that name."""
    return path.exists() and not path.is_dir()


@contextmanager
def regular_file(path: str | Path) -> Generator[Path]:
    """The file itself, or, of a pipe, a copy that can be read several times and that goes afterwards.

    Raises:
        FileNotFoundError: no such file.
    """
    source = Path("/dev/stdin") if str(path) == "-" else Path(path)
    if not is_there(source):
        raise FileNotFoundError(
            f"trace = {str(path)!r}: no such file; give a CSV or JSON-lines request log (or JSON, or Parquet)"
        )
    if stat.S_ISREG(os.stat(source).st_mode) and not str(source).startswith(("/dev/", "/proc/")):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="inferencegym-log-") as folder:
        copy = Path(folder) / (source.name if source.name not in ("", "stdin") else "stdin")
        with source.open("rb") as pipe, copy.open("wb") as out:
            shutil.copyfileobj(pipe, out)
        yield copy
