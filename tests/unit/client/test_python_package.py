"""Packing a Python package."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.client.python_package import packed, read_steps
from headrace.errors import InvalidArgument

HASH = f"--hash=sha256:{'0' * 64}"
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
NAMES = st.text(LETTERS, min_size=1, max_size=8)
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".py"),
    st.binary(max_size=200),
    max_size=6,
)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def archive_of(folder: Path) -> bytes:
    with packed(folder) as archive:
        return archive.read_bytes()


@given(files=FILES, seconds=st.integers(0, 1 << 31))
@settings(deadline=None)
def test_the_same_files_are_the_same_archive_and_come_out_of_it_as_they_were(
    files: dict[str, bytes], seconds: int
) -> None:
    files["package.yaml"] = b"steps: [model:Model]"
    files["model.py"] = b""
    with tempfile.TemporaryDirectory() as temporary:
        one, other, out = (Path(temporary) / name for name in ("one", "other", "out"))
        write(one, files)
        write(other, dict(reversed(files.items())))
        for path in other.rglob("*"):
            os.utime(path, (seconds, seconds))
        data = archive_of(one)
        assert archive_of(other) == data
        (Path(temporary) / "a.zip").write_bytes(data)
        with zipfile.ZipFile(Path(temporary) / "a.zip") as archive:
            archive.extractall(out)
        assert (out / "headrace.json").read_text() == '{"steps": ["model:Model"]}'
        found = {
            path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()
        }
    del found["headrace.json"]
    assert found == files


def test_caches_environments_and_what_is_hidden_stay_outside(tmp_path: Path) -> None:
    kept = ["package.yaml", "model.py", "data/words.txt"]
    left = [".git/config", "__pycache__/model.pyc", "env/pyvenv.cfg", "env/bin/python", "data/.cache/x"]
    write(tmp_path, dict.fromkeys([*kept, *left], b"steps: [model:Model]"))
    with packed(tmp_path) as archive, zipfile.ZipFile(archive) as files:
        assert set(files.namelist()) == {"headrace.json", *kept}


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ("steps: []", "package.yaml:1:8: steps: needs one step or more"),
        ("step: [model:Model]", "unknown key 'step'; did you mean 'steps'?"),
        ("steps: model:Model", "steps: must be a list"),
        ("steps: [model]", r"steps\[0\]: must be module:Class, such as model:Model, not 'model'"),
        ("steps: ['model:Model()']", "must be module:Class"),
        ("steps: ['../model:Model']", "must be module:Class"),
        ("steps: [model:Model, cleen:Clean]", r"steps\[1\]: there is no cleen.py beside it"),
        ("steps: [", "not YAML"),
    ],
)
def test_mistakes_in_the_steps_are_said_with_their_place(tmp_path: Path, manifest: str, why: str) -> None:
    write(tmp_path, {"package.yaml": manifest.encode(), "model.py": b""})
    with pytest.raises(InvalidArgument, match=why) as raised:
        read_steps(tmp_path)
    assert raised.value.reason == "INVALID_PACKAGE"


def test_a_folder_without_steps_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"package\.yaml cannot be read") as raised:
        read_steps(tmp_path)
    assert raised.value.reason == "INVALID_PACKAGE"


def test_what_the_import_writes_cannot_lie_there(tmp_path: Path) -> None:
    write(tmp_path, {"package.yaml": b"steps: [m:M]", "m.py": b"", "headrace.json": b""})
    with pytest.raises(InvalidArgument, match=r"headrace\.json is what the import makes"):
        read_steps(tmp_path)


@pytest.mark.parametrize(
    "requirements",
    [
        "",
        "# nothing\n\n",
        f"numpy==2.4.6 {HASH}",
        f"numpy==2.4.6 \\\n    {HASH} \\\n    {HASH}\nftfy==6.3.1 ; os_name != 'x' \\\n    {HASH}  # why\n",
    ],
)
def test_locked_requirements_are_taken(tmp_path: Path, requirements: str) -> None:
    files = {
        "package.yaml": b"steps: [model:Model]",
        "model.py": b"",
        "requirements.txt": requirements.encode(),
    }
    write(tmp_path, files)
    assert read_steps(tmp_path) == ["model:Model"]


@pytest.mark.parametrize(
    ("requirements", "why"),
    [
        ("numpy", "requirements.txt:1: a version and its hashes are missing"),
        (f"numpy>=2 {HASH}", ":1: a version and its hashes are missing"),
        (f"a==1 {HASH}\n\nb==2 \\\n  # no hash\n", ":3: a version and its hashes are missing"),
        ("--index-url https://example.org", "no options here"),
        ("-r other.txt", "no options here"),
        (f"a @ https://example.org/a.whl {HASH}", "packages come by name and version, not by address"),
        ("a\nb\nc", r"\(and 2 more\)"),
    ],
)
def test_what_could_be_another_package_tomorrow_is_refused(
    tmp_path: Path, requirements: str, why: str
) -> None:
    write(tmp_path, {"package.yaml": b"steps: [model:Model]", "requirements.txt": requirements.encode()})
    with pytest.raises(InvalidArgument, match=why) as raised:
        read_steps(tmp_path)
    assert raised.value.reason == "INVALID_PACKAGE"


def test_a_step_may_come_with_a_requirement(tmp_path: Path) -> None:
    requirements = f"theirs==1 {HASH}".encode()
    write(tmp_path, {"package.yaml": b"steps: [theirs.steps:Step]", "requirements.txt": requirements})
    assert read_steps(tmp_path) == ["theirs.steps:Step"]
