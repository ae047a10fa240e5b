"""What the rows of a manifest mean, and which are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifest_files import PLAIN, errors, folder, known, listed, load, picture

from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.manifest import (
    list_manifest,
)
from maskaug.envs.manifest_entries import MAX_CLASSES, TOLD


# ---- the file --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        "\ufeff" + PLAIN,
        "\n  \n" + PLAIN.replace("\n", "\n\n"),
        " Patient , PATH,Label\nP1, a.png ,no\nP2,b.png,  yes\n",
        'path,label,patient\n"a.png",no,"P1"\n\'\'\n'.replace("''\n", '"b.png","yes",P2\n'),
        "path,label,patient,,\na.png,no,P1,,\nb.png,yes,P2,,\n",
        "path,label,patient\na.png,no,P1\n,,\nb.png,yes,P2\n, ,\n",
        "path,label,patient,study,split,region,sha256\na.png,no,P1,,,,\nb.png,yes,P2,,,,\n",
        "path,label,patient\n./a.png,no,P1\n.//b.png,yes,P2\n",
    ],
)
def test_files_that_mean_the_same(tmp_path: Path, text: str) -> None:
    listing = listed(tmp_path, text)
    assert listing.problems == ()
    assert [(e.name, e.label, e.group, e.study, e.split) for e in listing.entries] == [
        ("a.png", 0, "patient P1", None, None),
        ("b.png", 1, "patient P2", None, None),
    ]
    assert listing.class_names == ("no", "yes")
    assert not listing.regions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; its first row must name the columns: path, label, patient, study, split, region, sha256"),
        ("\n \n", "is empty"),
        ("path,label\n", r"lists no pictures; expected\n.*manifest.csv"),
        ("a.png,0\nb.png,1\n", r"row 1: 'a.png, 0' is no header; the first row names columns: known are path, label"),
        ("label,patient\n0,P1\n", "row 1: there is no column 'path'"),
        ("\n\npath,pateint\na.png,P1\n", "row 3: 'pateint' is no column of a manifest; did you mean 'patient'"),
        ("path,patient_id\na.png,P1\n", "did you mean 'patient'"),
        ("path,age\na.png,5\n", "'age' is no column of a manifest; .*remove what is not to be read"),
        ("path,,label\na.png,5,0\n", "'' is no column of a manifest"),
        ("path,label,Label\na.png,0,0\n", "the column 'label' is there 2 times; keep one"),
        (b"path,label\na.png,0\nb.png,M\xe4rz\n", "manifest.csv, row 3: is not UTF-8; save the file as 'CSV UTF-8'"),
        (b"path,label\na.png,0\nb.png,\xe4", "manifest.csv, row 3: is not UTF-8"),
        (b"path\n" + b"x" * 9000 + b"\n\xff\n", "row 3: is not UTF-8"),
        (b"path\na.png\n\xc3", "row 3: is not UTF-8"),
        ("path,label\na.png,0\n".encode("utf-16"), "row 1: is not UTF-8"),
        ("path,label\na.png,0\n".encode("utf-16-le"), "row 1: is not UTF-8"),
        ("path\n" + "x" * 1_000_001, "has a line of more than 1000000 characters; is it a CSV file"),
        (
            "path,label\n" + "".join(f"{i}.png,{i}\n" for i in range(MAX_CLASSES + 1)),
            "'label' holds 1001 different values, more than 1000 classes; is it the right column",
        ),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        listed(tmp_path, text)


def test_the_manifest_is_a_plain_file_of_the_root(tmp_path: Path) -> None:
    root = folder(tmp_path, PLAIN)
    (tmp_path / "other.csv").write_text(PLAIN)
    for name in (
        "../other.csv",
        "sub/m.csv",
        "/etc/passwd",
        "..",
        ".",
        "",
        "C:m.csv",
        "..\\other.csv",
        "a\0b",
        5,
        None,
    ):
        with pytest.raises(ConfigurationError, match="must be the plain name of a CSV file"):
            list_manifest(root, manifest=name)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"holds no labels.csv; expected\n.*root/labels.csv: a CSV file"):
        list_manifest(root, manifest="labels.csv")
    with pytest.raises(DatasetError, match="is not a folder"):
        list_manifest(root / "a.png")
    (root / "link.csv").symlink_to(tmp_path / "other.csv")
    with pytest.raises(DatasetError, match="leads out of the root by a link"):
        list_manifest(root, manifest="link.csv")
    (root / "inside.csv").symlink_to("manifest.csv")
    assert len(list_manifest(root, manifest="inside.csv").entries) == 2
    (root / "dangling.csv").symlink_to("nothing.csv")
    with pytest.raises(DatasetError, match=r"dangling.csv cannot be read"):
        list_manifest(root, manifest="dangling.csv")
    os.mkfifo(root / "pipe.csv")
    (root / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(DatasetError, match=f"{name} is no ordinary file"):
            list_manifest(root, manifest=name)
    (root / "second.csv").write_text("path,label\nb.png,x\nc.png,y\n")
    assert load(root, manifest="second.csv").names == ("b.png", "c.png")


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ("a.png,0,P,,train", "row", "has 5 cells where the header has 7; put quotation marks around a cell .* comma"),
        ("a.png,0,P,S,train,,,x", "row", "has 8 cells where the header has 7"),
        ('"a.png"x,0,P,,train,,', "row", "is no row of a CSV file .*is a quotation mark left open"),
        ('"a.png,0,P,,train,,', "row", "is no row of a CSV file .*is a quotation mark left open"),
        (f"a.png,{'x' * 140_000},P,,train,,", "row", "field larger than field limit"),
        (",0,P,,train,,", "path", "the path is blank"),
        ("ok.png,0,P,,train,,", "path", "the path 'ok.png' stands in row 2 already; .*with | between"),
        ("./ok.png,0,P,,train,,", "path", "the path 'ok.png' stands in row 2 already"),
        ("a\0.png,0,P,,train,,", "path", "control characters"),
        ('"a\n.png",0,P,,train,,', "path", "control characters"),
        ("a.png,,P,,train,,", "label", "no label, while other rows have one"),
        ('a.png,"0\n1",P,,train,,', "label", "control characters"),
        ("a.png,nan,P,,train,,", "label", "'nan' is none of the classes; known are 0, 1"),
        ("a.png,1.0,P,,train,,", "label", "'1.0' is written '1' in row 3; write both alike, or give class_names"),
        ("a.png,0,,,train,,", "patient", "no patient, while other rows have one"),
        ("a.png,0,,S,train,,", "patient", "no patient, while other rows have one"),
        ("a.png,0,P,,,,", "split", "no split, while other rows have one"),
        ("a.png,0,P,,tarin,,", "split", "'tarin' is unknown; write train, val .*or test"),
        ("a.png,0,P,,train,,abc", "sha256", "has 64 digits"),
        (f"a.png,0,P,,train,,{'g' * 64}", "sha256", "has 64 digits"),
        ("a.png,0,P,,train,../m.png,", "region", r"the mask '../m.png' has '\.\.' in it"),
        ("a.png,0,P,,train,a.png,", "region", "the mask 'a.png' is the picture itself"),
        ("a.png,0,P,,train,m.png|./ok.png,", "region", "the mask 'ok.png' is the picture of row 2; write the mask's"),
        ("a.png,0,P,,train,m.png|,", "region", "has an empty part"),
        ("a.png,0,P,,train,1 2 3,", "region", "'1 2 3' is no box; write x0 y0 x1 y1, in pixels"),
        ("a.png,0,P,,train,1 2 3 4 5,", "region", "is no box"),
        ("a.png,0,P,,train,[1 2 3 4],", "region", "is no box"),
        ("a.png,0,P,,train,1 2 nan 4,", "region", "is no box"),
        ("a.png,0,P,,train,1 2 inf 4,", "region", "is no box"),
        ("a.png,0,P,,train,1 2 -Infinity 4,", "region", "is no box"),
        ("a.png,0,P,,train,1 2 1e400 4,", "region", "is no box"),
        ("a.png,0,P,,train,1e0 2 3,", "region", "'1e0 2 3' is no box"),
        ("a.png,0,P,,train,0.0,", "region", r"'0.0' is no box; .*\(a mask of this name is written ./0.0\)"),
        ("a.png,0,P,,train,nan,", "region", r"'nan' says nothing; leave the cell blank .*is written ./nan\)"),
        ("a.png,0,P,,train,NaN,", "region", "'NaN' says nothing"),
        ("a.png,0,P,,train,None,", "region", "'None' says nothing"),
        ("a.png,0,P,,train,NULL,", "region", "'NULL' says nothing"),
        ("a.png,0,P,,train,N/A,", "region", "'N/A' says nothing"),
        ("a.png,0,P,,train,<NA>,", "region", "'<NA>' says nothing"),
        ("a.png,0,P,,train,m.png|nan,", "region", "'nan' says nothing"),
        ("a.png,0,P,,train,3e0 9 2E0 10,", "region", "'3e0 9 2E0 10' is empty or begins outside"),
        ("a.png,0,P,,train,1 2 33333333333333333333 4,", "region", "is no box"),
        ("a.png,0,P,,train,5 2 5 4,", "region", "is empty or begins outside"),
        ("a.png,0,P,,train,5 9 6 4,", "region", "is empty or begins outside"),
        ("a.png,0,P,,train,-5 0 6 4,", "region", "is empty or begins outside"),
    ],
)
def test_a_wrong_row_is_told_by_its_line(tmp_path: Path, row: str, kind: str, words: str) -> None:
    head = "path,label,patient,study,split,region,sha256\nok.png,0,P,,train,,\nok2.png,1,P,S,train,m.png,\n\n"
    listing = listed(tmp_path, f"{head}{row}\n")
    (problem,) = errors(listing)
    assert (problem.kind, problem.where) == (kind, "manifest.csv, row 5")
    assert re.search(words, problem.message)
    assert [entry.name for entry in listing.entries] == ["ok.png", "ok2.png"]
    with pytest.raises(DatasetError, match=f"manifest.csv, row 5: .*{words}"):
        load(listing.root)


@pytest.mark.parametrize(
    ("region", "box"),
    [
        ("1e3 0 2000 5", (1000, 0, 2000, 5)),
        ("1E+3,0.0,2e3,.5e1", (1000, 0, 2000, 5)),
        ("1.e3  -1e-1 2000. +5", (1000, -0.1, 2000, 5)),
        ("10 0.000000000000000000001 20 5", (10, 1e-21, 20, 5)),
    ],
)
def test_a_box_may_be_written_in_any_notation(tmp_path: Path, region: str, box: tuple[float, ...]) -> None:
    (entry,) = listed(tmp_path, f'path,region\na.png,"{region}"\n').entries
    assert (entry.boxes, entry.masks) == ((box,), ())


@pytest.mark.parametrize("region", ["./nan", "./7", "./1e3", "1_000", "none.png", "7.png", "m/7", "١ ٢ ٣ ٤"])
def test_a_mask_may_be_called_like_a_number(tmp_path: Path, region: str) -> None:
    (entry,) = listed(tmp_path, f"path,region\na.png,{region}\n").entries
    assert (entry.boxes, entry.masks) == ((), (tmp_path / "root" / region,))


def test_a_long_region_is_refused(tmp_path: Path) -> None:
    for region in ("1 " * 60_000 + "x", "1" * 120_000, "1" * 120_000 + "x", "(" * 120_000 + "x", "nan " * 30_000):
        assert [problem.kind for problem in errors(listed(tmp_path, f"path,region\na.png,{region}\n"))] == ["region"]


def test_all_wrong_rows_are_told_in_their_order(tmp_path: Path) -> None:
    text = 'path,label,patient\n/a.png,0,P\nb.png,,P\n"x\ny.png",0,P\nc.png,1,\n\nd.png,2,P\ne.png,0,P\n,0,P\n'
    listing = listed(tmp_path, text, class_names="0,1")
    found = [(problem.where.split()[-1], problem.kind) for problem in errors(listing)]
    assert found == [("2", "path"), ("3", "label"), ("4", "path"), ("6", "patient"), ("8", "label"), ("10", "path")]
    assert [entry.name for entry in listing.entries] == ["e.png"]
    with pytest.raises(DatasetError, match=r"row 2: .*\(and 5 more: `maskaug data check manifest` lists them\)"):
        load(listing.root, class_names="0,1")


def test_a_mask_that_is_a_picture_further_down_is_told_in_order(tmp_path: Path) -> None:
    text = "path,region\na.png,c.png\n/b.png,m.png\nc.png,1 2 3 4\nd.png,m.png\ne.png,d.png\nf.png,m.png\n"
    listing = listed(tmp_path, text)
    assert [(problem.where.split()[-1], problem.kind) for problem in errors(listing)] == [
        ("2", "region"),
        ("3", "path"),
        ("6", "region"),
    ]
    assert "'c.png' is the picture of row 4" in errors(listing)[0].message
    assert [entry.name for entry in listing.entries] == ["c.png", "d.png", "f.png"]


def test_a_row_after_an_open_quotation_mark_is_told_too(tmp_path: Path) -> None:
    rows = "".join(f"{i:06d}.png,0\n" for i in range(20_000))
    listing = listed(tmp_path, f'path,label\n"a.png,0\n{rows}../x.png,1\n')
    first, *_, last = errors(listing)
    assert (first.where, first.kind) == ("manifest.csv, row 2", "row")
    assert (last.where, last.kind) == ("manifest.csv, row 20003", "path")


def test_so_many_wrong_rows_are_told_and_the_others_counted(tmp_path: Path) -> None:
    found = errors(listed(tmp_path, "path\nok.png\n" + "../x\n" * (TOLD + 7)))
    assert len(found) == TOLD + 1
    assert found[-2].where == f"manifest.csv, row {TOLD + 2}"
    assert (found[-1].where, found[-1].message) == ("manifest.csv", "7 more rows are wrong; mend these first")


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ("1 0 1", ("0", "1"), [1, 0, 1]),
        ("10 9 -1", ("-1", "9", "10"), [2, 1, 0]),
        ("2.5 10 2.25", ("2.25", "2.5", "10"), [1, 2, 0]),
        ("b a c", ("a", "b", "c"), [1, 0, 2]),
        ("10 9 x", ("10", "9", "x"), [0, 1, 2]),
        ("x x x", ("x",), [0, 0, 0]),
        ("12345678901234567890 3 x", ("12345678901234567890", "3", "x"), [0, 1, 2]),
    ],
)
def test_classes_are_the_labels_sorted(tmp_path: Path, labels: str, names: tuple[str, ...], numbers: list[int]) -> None:
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels.split()))
    listing = listed(tmp_path, f"path,label\n{rows}")
    assert (listing.class_names, [entry.label for entry in listing.entries]) == (names, numbers)
    assert not errors(listing)


def test_class_names_fix_order_and_spelling(tmp_path: Path) -> None:
    text = "path,label\na.png,Fracture\nb.png,normal\nc.png,FRACTURE\n"
    for given in ("normal, fracture ,implant", ["normal", "fracture", "implant"], ("normal", "fracture", "implant")):
        listing = listed(tmp_path, text, class_names=given)
        assert listing.class_names == ("normal", "fracture", "implant")
        assert [entry.label for entry in listing.entries] == [1, 0, 1]
        assert not errors(listing)
    assert [e.label for e in listed(tmp_path, text, class_names="fracture,normal").entries] == [0, 1, 0]
    (problem,) = errors(listed(tmp_path, text, class_names="fracture,implant"))
    assert (problem.where, problem.kind) == ("manifest.csv, row 3", "label")
    assert problem.message == "the label 'normal' is none of the classes; known are fracture, implant"
    (problem,) = errors(listed(tmp_path, text))
    assert "'FRACTURE' is written 'Fracture' in row 2" in problem.message
    numbers = listed(tmp_path, "path,label\na.png,1.0\nb.png,0\nc.png,01\n", class_names=(0, 1))
    assert [entry.label for entry in numbers.entries] == [1, 0, 1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a", "at least two names"),
        ("a,", "none of them empty"),
        ([], "at least two names"),
        ("a,A", "has a name twice; upper and lower case"),
        ("1,1.0", "has a name twice"),
        (3, "must be names with commas between, or a list"),
    ],
)
def test_class_names_that_cannot_be(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        listed(tmp_path, PLAIN, class_names=given)


def test_without_labels(tmp_path: Path) -> None:
    for text in ("path\na.png\nb.png\n", "path,label\na.png,\nb.png,\n"):
        listing = listed(tmp_path, text)
        assert [entry.label for entry in listing.entries] == [None, None]
        assert listing.class_names == ()
        with pytest.raises(ConfigurationError, match=r"no row of manifest\.csv has a label; leave it out"):
            listed(tmp_path, text, class_names="a,b")


def test_who_belongs_together(tmp_path: Path) -> None:
    both = listed(tmp_path, "path,patient,study\na.png,P1,S1\nb.png,P2,S1\nc.png,P1,\nd.png,P1,S1\n")
    assert [entry.group for entry in both.entries] == ["patient P1", "patient P2", "patient P1", "patient P1"]
    assert [entry.study for entry in both.entries] == ["P1/S1", "P2/S1", "./c.png", "P1/S1"]
    assert both.problems == ()
    study = listed(tmp_path, "path,study\na.png,S1\nb.png,\nc.png,S1\n")
    assert [entry.group for entry in study.entries] == ["study S1", "b.png", "study S1"]
    assert [entry.study for entry in study.entries] == ["S1", "./b.png", "S1"]
    alone = listed(tmp_path, "path\na.png\nb.png\n")
    assert [(entry.group, entry.study) for entry in alone.entries] == [("a.png", None), ("b.png", None)]
    for listing, instead in ((study, "study"), (alone, "picture")):
        (note,) = listing.problems
        assert (note.severity, note.kind) == ("note", "patient")
        assert f"each {instead} counts as one" in note.message


ODD = ["a", "b", "a/b", "b/c", "/", "a/", "/b", ".", "./a", "./a.png", '"', '"a"', '"a/b"', "a\\/b", "a\\", "a|b", "1"]


def test_two_studies_never_have_one_name(tmp_path: Path) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    who = [(patient, study) for patient in ODD for study in [*ODD, ""]] * 2
    # Files without a suffix in folders, as DICOM files often are, look like a patient and a study.
    names = ["/".join("ab"[int(bit)] for bit in f"{i:b}") for i in range(len(who))]
    rows = [f"{name},{quoted(p)},{quoted(s)}\n" for name, (p, s) in zip(names, who, strict=True)]
    listing = listed(tmp_path, "path,patient,study\n" + "".join(rows))
    assert not errors(listing)
    expected = [(p, s) if s else (name,) for name, (p, s) in zip(names, who, strict=True)]
    studies = [known(entry.study) for entry in listing.entries]
    assert len(set(zip(studies, expected, strict=True))) == len(set(studies)) == len(set(expected))
    # So without patients.
    text = 'path,study\na.png,\nb.png,./a.png\nc.png,"""./a.png"""\nd.png,2026/01\n'
    assert [entry.study for entry in listed(tmp_path, text).entries] == [
        "./a.png",
        '"./a.png"',
        '"\\"./a.png\\""',
        "2026/01",
    ]


def test_studies_that_share_slashes_are_judged_apart(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,label,patient,study\na.png,0,a/b,c\nb.png,1,a,b/c\nc.png,1,a,b/c\n")
    data = load(root)
    assert [data.study_names[number] for number in known(data.studies)] == ['"a/b"/c', "a/b/c", "a/b/c"]


def test_nobody_is_in_two_splits(tmp_path: Path) -> None:
    for columns, who in (("patient", "patient X"), ("study", "study X")):
        root = folder(tmp_path, f"path,{columns},split\na.png,X,train\nb.png,Y,train\nc.png,X,Test\nd.png,Z,valid\n")
        with pytest.raises(DatasetError, match=rf"1 patients of .* in more than one part \({who}\)"):
            load(root)
    load(folder(tmp_path, "path,patient,study,split\na.png,P,X,train\nc.png,Q,X,test\n"))


def test_splits(tmp_path: Path) -> None:
    splits = ["train", "Valid", "VAL", "validation", "test"]
    text = "path,split\n" + "".join(f"{i}.png,{split}\n" for i, split in enumerate(splits))
    assert [entry.split for entry in listed(tmp_path, text).entries] == ["train", "val", "val", "val", "test"]


def test_validation_is_carved_from_train_where_no_row_says_val(tmp_path: Path) -> None:
    root = tmp_path / "root"
    rows = []
    for i in range(60):
        picture(root / f"{i}.png", i)
        rows.append(f"{i}.png,{i % 2},P{i // 2},{'test' if i >= 50 else 'train'}\n")
    (root / "manifest.csv").write_text("path,label,patient,split\n" + "".join(rows))
    data = load(root)
    official = known(data.official)
    assert 2 <= (official == 1).sum() <= 8
    assert (official[50:] == 2).all()
    assert (official[:50] != 2).all()
    assert (official[::2] == official[1::2]).all()
    assert known(load(root, seed=1).official).tolist() != official.tolist()
    # With train alone there is no test split, and saying so is better than to make one up.
    (root / "manifest.csv").write_text("path,label,patient,split\n" + "".join(rows[:50]))
    assert 2 <= len(load(root).part("val")) <= 8
    with pytest.raises(DatasetError, match="has no test images"):
        load(root).part("test")
    # A division that has a val part is taken as it is.
    (root / "manifest.csv").write_text("path,label,patient,split\n" + "".join(rows).replace("P0,train", "P0,val"))
    assert np.bincount(known(load(root).official)).tolist() == [48, 2, 10]
    # Without one, by patient.
    (root / "manifest.csv").write_text("path,label,patient\n" + "".join(r.rpartition(",")[0] + "\n" for r in rows))
    parts = [load(root).part(split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 60
    assert [len(part) for part in parts] == pytest.approx([42, 9, 9], abs=3)
