"""Files are whole or absent, and logs survive a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from lamp.errors import DataError, unreadable
from lamp.files import (
    NAME_LENGTH,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    is_file_name,
    locked,
    path_inside,
    remove_folder,
    remove_leftovers,
    safe_file_name,
)
from lamp.json_files import append_line, read_json, read_json_object, read_lines_json, write_json
from lamp.train.shards import write_tensors

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "deep" / "a.txt", "old and longer")
    atomic_write_text(tmp_path / "deep" / "a.txt", "nü")
    atomic_write_bytes(tmp_path / "deep" / "b", b"\x00\xff")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "nü"
    assert (tmp_path / "deep" / "b").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "deep") == ["a.txt", "b"]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "weights.npy"
    atomic_write_bytes(target, b"old")
    with pytest.raises(RuntimeError), atomic_path(target) as staged:
        assert staged.name == target.name
        staged.write_bytes(b"half")
        raise RuntimeError("killed")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["weights.npy"]


def test_neither_a_file_nor_a_folder_takes_the_other_s_place(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "data" / "years.txt", "of work")
    with pytest.raises(IsADirectoryError) as caught:
        atomic_write_text(tmp_path / "data", "a recipe")
    assert caught.value.filename == str(tmp_path / "data")
    with pytest.raises(NotADirectoryError), atomic_path(tmp_path / "data" / "years.txt") as staged:
        staged.mkdir()
    assert (tmp_path / "data" / "years.txt").read_text() == "of work"
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["years.txt"]


@pytest.mark.parametrize("system_call", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_call: bool) -> None:
    if not system_call:
        monkeypatch.setattr("lamp.files.ctypes.CDLL", lambda *_, **__: object())
    target = tmp_path / "checkpoint"
    for content in ("first", "second"):
        with atomic_path(target) as staged:
            staged.mkdir()
            (staged / f"{content}.txt").write_text(content)
            (staged / "sub").mkdir()
    assert names(target) == ["second.txt", "sub"]
    assert names(tmp_path) == ["checkpoint"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was written"), atomic_path(tmp_path / "x"):
        pass


@given(obj=JSON)
@settings(max_examples=30, deadline=None)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, obj: object) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, obj)
    assert read_json(path) == obj


def test_json_takes_numpy_and_paths_but_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": Path("d")})
    assert read_json(tmp_path / "x.json") == {"a": 0.5, "b": [0, 1], "c": "d"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json")["a"] == 0.5


def test_json_errors_name_the_file_and_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint description at .*lamp\.json"):
        read_json(tmp_path / "lamp.json", "checkpoint description")
    (tmp_path / "lamp.json").write_text('{"a": 1')
    with pytest.raises(DataError, match=r"checkpoint description .*lamp\.json is not valid JSON"):
        read_json(tmp_path / "lamp.json", "checkpoint description")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_json_of_another_kind_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(
        DataError, match=r"the feature cache's description .*manifest\.json is not a JSON object; restore"
    ):
        read_json_object(path, "feature cache's description")


def test_log_appends_and_reads(tmp_path: Path) -> None:
    log = tmp_path / "runs" / "log.jsonl"
    assert read_lines_json(log) == []
    append_line(log, '{"a": 1}')
    append_line(log, '{"a": 2}')
    assert read_lines_json(log) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="line break"):
        append_line(log, "{}\n{}")


@pytest.mark.parametrize("cut", range(1, len(b'{"episode": 12}')))
def test_a_torn_last_line_is_dropped_and_never_continued(tmp_path: Path, cut: int) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"episode": 11}\n' + b'{"episode": 12}'[:cut])
    assert read_lines_json(log) == [{"episode": 11}]
    append_line(log, '{"episode": 13}')
    assert read_lines_json(log) == [{"episode": 11}, {"episode": 13}]


def test_a_whole_last_line_without_its_break_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"episode": 11}')
    assert read_lines_json(log) == [{"episode": 11}]
    append_line(log, '{"episode": 12}')
    assert read_lines_json(log) == [{"episode": 11}, {"episode": 12}]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"line 2 of .*log\.jsonl"):
        read_lines_json(log)


def _append_many(path: Path, writer: int) -> None:
    for number in range(20):
        append_line(path, json.dumps([writer, number]))


def test_several_processes_append_to_one_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(log, writer)) for writer in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(read_lines_json(log)) == [[writer, number] for writer in range(3) for number in range(20)]


@pytest.mark.parametrize("name", ["front", "observation.images.front", "libero_object-03-0007", "cámara 1", "前"])
def test_a_name_that_can_be_a_files_stays_as_it_is(name: str) -> None:
    assert is_file_name(name) and safe_file_name(name) == name


@settings(deadline=None)
@given(name=st.text())
def test_every_foreign_name_becomes_one_file_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    safe = safe_file_name(name)
    assert is_file_name(safe) and len(safe.encode()) <= NAME_LENGTH
    (folder / safe).write_text("here")
    assert [path.name for path in folder.iterdir()] == [safe]


def test_names_that_look_alike_stay_apart() -> None:
    names = ["a/b", "a_b", "a\\b", "../a/b", "..", ".", "", "a\0b", "x" * 500, "x" * 501, ".hidden", "hidden"]
    assert len({safe_file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/etc/passwd", "a/../../b", "../b", "a\0b", "x" * 300, "a/" * 3000 + "b"]
)
def test_a_foreign_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"camera path .* (leads out|too long)"):
        path_inside(tmp_path, path, "camera path")
    assert path_inside(tmp_path, "videos/front..left/a.mp4") == tmp_path / "videos/front..left/a.mp4"


def test_links_lead_to_a_hubs_blobs_and_to_another_disk_and_nowhere_else(tmp_path: Path) -> None:
    blobs = tmp_path / "datasets--somebody--cubes/blobs"
    root = tmp_path / "datasets--somebody--cubes/snapshots/1234"
    disk, secret = tmp_path / "disk", tmp_path / "secret.png"
    for folder in (blobs, root / "data", root / "images", disk / "chunk-000"):
        folder.mkdir(parents=True)
    secret.write_text("secret")
    (blobs / "0abc").write_text("a file of the hub")
    (root / "data/file-000.parquet").symlink_to("../../../blobs/0abc")
    (root / "videos").symlink_to(disk)
    assert path_inside(root, "data/file-000.parquet").read_text() == "a file of the hub"
    assert path_inside(root, "videos/chunk-000/file-000.mp4") == root / "videos/chunk-000/file-000.mp4"
    (root / "images/0.png").symlink_to(secret)
    (root / "images/deep").symlink_to(tmp_path)
    (root / "0.png").symlink_to(secret)
    (disk / "chunk-000/0.png").symlink_to(secret)
    for path in ("images/0.png", "images/deep/secret.png", "0.png", "videos/chunk-000/0.png"):
        with pytest.raises(DataError, match="through a link"):
            path_inside(root, path)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "made" / ".lock"
    code = "import sys, time; from lamp.files import locked\nwith locked(sys.argv[1], ''): print(flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        with (
            pytest.raises(DataError, match=rf"^busy \(process {other.pid}, since 2.*: -c .*/made/\.lock\)$"),
            locked(path, "busy"),
        ):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(path, "busy"):
        assert json.loads(path.read_text())["process"] == os.getpid()
        with pytest.raises(DataError, match=rf"busy \(process {os.getpid()}"), locked(path, "busy"):
            pass
        path.write_text("nothing known")
        with pytest.raises(DataError, match=r"^busy$"), locked(path, "busy"):
            pass


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        OSError(errno.ENOSPC, "No space left on device", "somewhere/.tmp-abc/model"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_cannot_be_written_is_named_and_what_was_there_stays(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("before")
    with pytest.raises(OSError) as caught, atomic_path(path) as staged:
        staged.write_text("half")
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_errors_that_are_not_the_system_s_pass_as_they_are(tmp_path: Path) -> None:
    for error in (ValueError("no space for more"), DataError("[Errno 28]"), ConnectionResetError(104, "reset")):
        with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "model"):
            raise error
        assert caught.value is error


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = tmp_path / "log.jsonl", os.write
    append_line(log, '{"episode": 1}')

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])  # as a disk does that is almost full

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as caught:
        patch.setattr(os, "write", full)
        append_line(log, '{"episode": 2, "more": "words"}')
    assert caught.value.filename == str(log)
    assert log.read_text() == '{"episode": 1}\n'
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    append_line(log, '{"episode": 3}')
    assert read_lines_json(log) == [{"episode": 1}, {"episode": 3}]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_that_the_system_refuses_is_not_called_corrupt(number: int, tmp_path: Path) -> None:
    damaged = DataError("it is corrupt")
    found = unreadable(tmp_path, OSError(number, os.strerror(number)), damaged)
    assert isinstance(found, OSError) and (found.errno, found.filename) == (number, str(tmp_path))
    assert unreadable(tmp_path, OSError(f"refused (os error {number})"), damaged).errno == number  # pyright: ignore[reportAttributeAccessIssue]
    assert unreadable(tmp_path, SafetensorError("header too short"), damaged) is damaged
    assert unreadable(tmp_path, FileNotFoundError(errno.ENOENT, "no"), damaged) is damaged


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_others_may_read_what_is_written_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        with atomic_path(tmp_path / "b.safetensors") as path:
            save_file({"x": torch.zeros(2)}, path)
        with atomic_path(tmp_path / "folder") as path:
            (path / "deep").mkdir(parents=True)
            write_tensors(path / "deep" / "c.safetensors", {"x": torch.zeros(2)})
            (path / "run.sh").touch(0o755)
        with atomic_path(tmp_path / "d") as path:
            os.rename(tempfile.mkstemp(dir=path.parent)[1], path)
        with atomic_path(tmp_path / "e") as path:
            os.rename(tempfile.mkdtemp(dir=path.parent), path)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    files = {"a.json", "b.safetensors", "d", "folder/deep/c.safetensors"}
    assert modes == {
        **dict.fromkeys(files, 0o666 & ~umask),
        **dict.fromkeys({"folder", "folder/deep", "e"}, 0o777 & ~umask),
        "folder/run.sh": 0o755 & ~umask,
    }


KILLED_WHILE_WRITING = """
import sys, time
from lamp.files import atomic_path
with atomic_path(sys.argv[1]) as staged:
    staged.write_text("half")
    print(staged.parent, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], Path]]]:
    """Starts a process that is in the middle of writing a file of `tmp_path`; returns it and its temporary folder."""
    started = []

    def start(name: str) -> tuple[subprocess.Popen[str], Path]:
        words = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / name)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        return started[-1], Path(started[-1].stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_stays(
    tmp_path: Path, writer: Callable[[str], tuple[subprocess.Popen[str], Path]]
) -> None:
    killed, abandoned = writer("one.json")
    _, in_use = writer("two.json")
    killed.kill()
    killed.wait()
    atomic_write_text(tmp_path / "three.json", "3")
    assert {path.name for path in tmp_path.iterdir()} == {in_use.name, "three.json"} and not abandoned.exists()


def test_the_temporary_folder_of_another_machine_counts_as_abandoned_after_an_hour(tmp_path: Path) -> None:
    for name, age in ((".tmp-0ther0-young", 60), (".tmp-0ther0-old", 7200), (".tmp-early", 7200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text("half")
        then = time.time() - age
        for path in (tmp_path / name / "model", tmp_path / name):
            os.utime(path, (then, then))
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-0ther0-young"]


@pytest.mark.parametrize("locks", [True, False])
def test_files_are_written_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    with atomic_path(tmp_path / "a.txt") as staged:
        staged.write_text("a")
        remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_replacement_that_was_killed_between_its_renames_is_finished(tmp_path: Path) -> None:
    for name, text in (("model", "new"), ("model.replaced", "old")):
        (tmp_path / ".tmp-early" / name).mkdir(parents=True)
        (tmp_path / ".tmp-early" / name / "file").write_text(text)
    old = time.time() - 7200
    for path in [*(tmp_path / ".tmp-early").rglob("*"), tmp_path / ".tmp-early"]:
        os.utime(path, (old, old))
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "new"


def test_a_folder_is_removed_at_once_and_a_link_is_emptied(tmp_path: Path) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("here", "link", "missing"):
        remove_folder(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "link"}
    assert list((tmp_path / "elsewhere").iterdir()) == [] and (tmp_path / "link").is_symlink()
