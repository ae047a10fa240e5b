"""Whatever a manifest holds: a listing whose files lie in the root, or an error that says why; the same each time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskaug.envs.confinement import Confinement, confined
from maskaug.envs.errors import DatasetError, ImageError, MaskAugError
from maskaug.envs.listing import Listing
from maskaug.envs.manifest import list_hip_fracture, list_manifest
from maskaug.envs.manifest_rows import COLUMNS

VALID = (
    "path,label,patient,study,split,region,sha256\n"
    "a.png,no,P1,S1,train,,\n"
    'sub/b.png,yes,P2,S1,train,1 2 30 40|m.png,\n'
    f'"sub/c.png",no,"P,3",S2,val,sub/m.png,{"0f" * 32}\n'
    "in/d.png,yes,P4,S3,test,,\n"
)  # fmt: skip
#: What breaks readers, put in anywhere.
TOKENS = [
    "..", "../", "/", "\\", "~", "~/", "C:", "C:\\", "\\\\?\\", "//", "file://", "http://x/", "out/", "out.png", "in/",
    "\0", "\x1b", "\ufeff", "\u2028", "\x85", "\u202e", "é", "𝔸", '"', '""', "'", ",", ";", "\t", "|", "\n", "\r",
    "nan", "inf", "-1", "1e9", "9" * 400, "x" * 300, "path", "label", "patient", "pateint", "split", "region", "=1+1",
    "manifest.csv", "a.png", "1 2 3 4", "train", "valid", "0" * 64, ".", "...", "loop", "\ud7ff", "\ufffe",
    "\r\n", " ", "CON", "aux.png",
]  # fmt: skip

bounded = settings(
    max_examples=150, derandomize=True, deadline=2000, database=None, suppress_health_check=list(HealthCheck)
)


@contextlib.contextmanager
def temporary_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        (root / "sub").mkdir(parents=True)
        (Path(folder) / "secret.png").write_bytes(b"secret")
        (root / "a.png").write_bytes(b"picture")
        for link, target in {
            "out": "..", "out.png": "../secret.png", "in": "sub", "loop": "loop", "sub/up": "../..", "gone": "nothing"
        }.items():  # fmt: skip
            (root / link).symlink_to(target)
        yield root


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with temporary_root() as made:
        yield made


def look(root: Path, data: bytes, class_names: str | None = None) -> Listing | None:
    """List it, and check what every answer promises."""
    (root / "manifest.csv").write_bytes(data)
    listing = None
    with contextlib.suppress(MaskAugError):
        listing = list_manifest(root, class_names=class_names)
    if listing is None:
        return None
    real = os.path.realpath(root)
    names = [entry.name for entry in listing.entries]
    assert len(set(names)) == len(names)
    for entry in listing.entries:
        for path in (entry.path, *entry.masks):
            assert os.path.realpath(path).startswith(real + os.sep)
            assert path.relative_to(root).parts
            assert ".." not in path.parts
            assert confined(path, root) == Path(os.path.realpath(path))
            path.is_file()
        assert entry.label is None or 0 <= entry.label < len(listing.class_names)
        assert entry.split in (None, "train", "val", "test")
    assert len({entry.label is None for entry in listing.entries}) < 2
    assert len({entry.split is None for entry in listing.entries}) < 2
    for problem in listing.problems:
        assert problem.severity in ("error", "note")
        assert problem.where.startswith("manifest.csv")
        assert 0 < len(problem.message) < 1000
    # Rows come from somewhere: none is made up.
    assert len(names) <= data.count(b"\n") + data.count(b"\r") + 1
    return listing


def mutated(edits: list[tuple[int, int, str]]) -> str:
    text = VALID
    for place, length, token in edits:
        start = place % (len(text) + 1)
        text = text[:start] + token + text[start + length :]
    return text


edits = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(TOKENS) | st.text(max_size=4)), max_size=4
)


def test_the_valid_one_is_valid(root: Path) -> None:
    listing = look(root, VALID.encode())
    assert listing is not None
    assert listing.problems == ()
    assert [entry.name for entry in listing.entries] == ["a.png", "sub/b.png", "sub/c.png", "in/d.png"]


@bounded
@given(edits=edits)
def test_a_valid_manifest_with_edits(root: Path, edits: list[tuple[int, int, str]]) -> None:
    data = mutated(edits).encode()
    first = look(root, data)
    second = look(root, data)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert (first.entries, first.problems) == (second.entries, second.problems)
    look(root, data, "no,yes")
    with contextlib.suppress(MaskAugError):
        list_hip_fracture(root)


@bounded
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.binary(max_size=4)), min_size=1, max_size=4))
def test_a_valid_manifest_with_other_bytes(root: Path, edits: list[tuple[int, int, bytes]]) -> None:
    data = VALID.encode()
    for place, length, piece in edits:
        data = data[:place] + piece + data[place + length :]
    look(root, data)


@bounded
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_for_a_file(root: Path, data: bytes) -> None:
    look(root, data)
    look(root, b"path\n" + data)


cells = st.text(max_size=8) | st.lists(st.sampled_from(TOKENS), max_size=4).map("".join)


@bounded
@given(
    header=st.lists(st.sampled_from(COLUMNS), unique=True, max_size=5),
    rows=st.lists(st.lists(cells, min_size=6, max_size=6), max_size=5),
    delimiter=st.sampled_from(",;\t"),
)
def test_any_cells_below_a_right_header(root: Path, header: list[str], rows: list[list[str]], delimiter: str) -> None:
    columns = ["path", *(column for column in header if column != "path")]
    lines = [delimiter.join(columns)]
    for row in rows:
        lines.append(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row[: len(columns)]))
    listing = look(root, "\n".join(lines).encode())
    if listing is not None:
        # In quotation marks, each row is an entry, a problem or blank: none is lost or counted twice.
        wrong = sum(problem.severity == "error" for problem in listing.problems)
        blank = sum(not any(cell.strip() for cell in row[: len(columns)]) for row in rows)
        assert len(listing.entries) + wrong + blank == len(rows)


@bounded
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(TOKENS), max_size=6).map("".join))
def test_any_path(root: Path, text: str) -> None:
    name, reason = "", ""
    try:
        name = Confinement(root).accept(text)
    except DatasetError as error:
        reason = str(error)
    if not name:
        # It is said in a few words, and the path is not said again.
        assert 0 < len(reason) < 150
        return
    assert os.path.realpath(root / name).startswith(os.path.realpath(root) + os.sep)
    assert not {"", ".", ".."} & set(name.split("/"))
    assert "\\" not in name
    # What was accepted is accepted as it is now written, too.
    assert Confinement(root).accept(name) == name
    # A second question, from what the first has left behind, has the same answer.
    paths = Confinement(root)
    assert paths.accept(text) == paths.accept(text) == name


TARGETS = ["", "a", "b", "c", "..", "../..", "/", "a/b", "../root/a"]


@bounded
@given(
    links=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(TARGETS)), max_size=4),
    parts=st.lists(st.sampled_from(["a", "b", "c", "x.png"]), min_size=1, max_size=4),
)
def test_any_links(links: list[tuple[str, str]], parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "root"
        made.mkdir()
        for i, (name, target) in enumerate(links):
            where = made / name if i % 2 == 0 else made / "d" / name
            where.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                where.symlink_to(target) if target else where.mkdir()
        for text in ("/".join(parts), "d/" + "/".join(parts)):
            real = os.path.realpath(made / text)
            within = real == os.path.realpath(made) or real.startswith(os.path.realpath(made) + os.sep)
            try:
                Confinement(made).accept(text)
            except DatasetError:
                # Refused: the path itself, or a link on its way, lies outside.
                ways = [
                    os.path.realpath(made / Path(*Path(text).parts[:i])) for i in range(1, len(Path(text).parts) + 1)
                ]
                assert not all(way.startswith(os.path.realpath(made)) for way in ways)
                continue
            assert within
            try:
                confined(made / text, made)
            except ImageError:
                pytest.fail(f"{text} is listed, and then refused")
