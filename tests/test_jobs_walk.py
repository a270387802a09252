import io
import os
import socket
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from facefix.errors import UsageError
from facefix.jobs.rows import Found
from facefix.jobs.walk import Closed, Walk, listed, named, roots


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def places(walk: Walk) -> list[str]:
    return [str(found.place) for found in walk if isinstance(found, Found)]


def walked(*inputs: Path, out: Path, follow_links: bool = False) -> Walk:
    return Walk(roots(inputs, out), out, follow_links=follow_links)


def test_a_tree_comes_sorted_without_what_is_hidden_or_no_picture(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    names = ["b/2.tif", "b/10.JPG", "a.png", "c/deep/x.psd", ".hidden/x.jpg", "b/.thumb.jpg", "notes.txt", "noext"]
    touch(*(scans / name for name in names), scans / "z.facefix.jpg")
    walk = walked(scans, out=tmp_path / "out")
    assert places(walk) == ["a.png", "b/10.JPG", "b/2.tif", "c/deep/x.psd"]
    assert walk.others == 3
    first = next(iter(walk))
    assert isinstance(first, Found)
    assert (first.source, first.own, first.base) == (scans / "a.png", "a.png", "a.png")
    assert first.mark.bytes == 1
    assert first.mark.inode == (scans / "a.png").stat().st_ino


def test_the_output_folder_is_skipped_wherever_it_is_met(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "restored"
    touch(scans / "a.jpg", out / "b.jpg")
    (scans / "again").symlink_to(out)
    assert places(walked(scans, out=out, follow_links=True)) == ["a.jpg"]
    inside = Walk(listed(io.BytesIO(os.fsencode(tmp_path))), out)
    assert [place.split("/")[-1] for place in places(inside)] == ["a.jpg"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    touch(scans / "a.jpg", scans / "sub" / "b.jpg", tmp_path / "other" / "c.jpg")
    (scans / "circle").symlink_to("circle")
    (scans / "sub" / "up").symlink_to("..")
    (scans / "sub" / "self").symlink_to(".")
    (scans / "other").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(scans)
    walk = walked(scans, out=tmp_path / "out")
    assert places(walk) == ["a.jpg", "sub/b.jpg"]
    assert walk.links == 3
    assert places(walked(scans, out=tmp_path / "out", follow_links=True)) == ["a.jpg", "other/c.jpg", "sub/b.jpg"]


def test_linked_photos_are_photos_and_what_is_no_file_is_left_to_the_reader(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    touch(tmp_path / "far.jpg", scans / "near.jpg")
    (scans / "linked.jpg").symlink_to(tmp_path / "far.jpg")
    (scans / "nowhere.jpg").symlink_to("nothing")
    os.mkfifo(scans / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(scans / "socket.png"))
        found = {str(each.place): each for each in walked(scans, out=tmp_path / "out") if isinstance(each, Found)}
    assert list(found) == ["linked.jpg", "near.jpg", "nowhere.jpg", "pipe.jpg", "socket.png"]
    assert found["linked.jpg"].mark.inode == (tmp_path / "far.jpg").stat().st_ino
    assert found["nowhere.jpg"].mark.inode == 0


def test_a_folder_that_cannot_be_read_is_told_and_the_others_come(tmp_path: Path) -> None:
    touch(tmp_path / "scans" / "a.jpg")
    walk = Walk(listed(io.BytesIO(os.fsencode(tmp_path / "scans"))), tmp_path / "out")
    [root] = list(walk.roots)
    os.rename(tmp_path / "scans", tmp_path / "gone")
    [closed] = list(Walk([root], tmp_path / "out"))
    assert isinstance(closed, Closed)
    assert closed.reason == "No such file or directory; allow it to be read"


@pytest.mark.skipif(os.name == "nt", reason="names that only a POSIX system has")
def test_any_name_is_a_name(tmp_path: Path) -> None:
    names = [
        b"new\nline.jpg",
        b"'quote\".jpg",
        b"-dash.jpg",
        "\u202ebidi.jpg".encode(),
        b"\xff\xfe.jpg",
        b"x" * 251 + b".jpg",
    ]
    scans = tmp_path / "scans"
    touch(*(scans / os.fsdecode(name) for name in names))
    found = [os.fsencode(place) for place in places(walked(scans, out=tmp_path / "out"))]
    assert sorted(found) == sorted(names)


def test_trees_of_any_depth_are_walked(tmp_path: Path) -> None:
    deep = tmp_path / "scans"
    here = os.getcwd()
    deep.mkdir()
    try:
        os.chdir(deep)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("a.jpg").write_bytes(b"x")
    finally:
        os.chdir(here)
    assert places(walked(deep, out=tmp_path / "out")) == ["d/" * 1200 + "a.jpg"]
    subprocess.run(["rm", "-rf", deep], check=True)  # too deep for pytest's own cleaning


def test_memory_is_that_of_one_folder(tmp_path: Path) -> None:
    folders, files = 60, 60
    for folder in range(folders):
        (tmp_path / "scans" / str(folder)).mkdir(parents=True)
        for file in range(files):
            os.close(os.open(tmp_path / "scans" / str(folder) / f"{file:0200d}.jpg", os.O_CREAT))

    def peak(below: str) -> int:
        walk = walked(tmp_path / "scans" / below, out=tmp_path / "out")
        tracemalloc.start()
        assert sum(1 for _ in walk) == (files if below else folders * files)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak("") < 10 * peak("7")  # of 60; other threads of this process may allocate meanwhile


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["same.jpg", "same.png"], [("same.jpg", "same.jpg"), ("same.png", "same.png")]),
        (["A.jpg", "a.jpg"], [("A.jpg", "A.jpg"), ("a~509b0d46.jpg", "a~509b0d46.jpg")]),
        (
            ["u\u0308.jpg", "\u00fc.jpg"],
            [("u\u0308.jpg", "u\u0308.jpg"), ("\u00fc~87028465.jpg", "\u00fc~87028465.jpg")],
        ),
        (["x.psd", "x.psd.png"], [("x.psd", "x.psd~c61caae2"), ("x.psd.png", "x.psd.png")]),
    ],
)
def test_results_get_distinct_names_that_names_alone_decide(names: list[str], expected: list[tuple[str, str]]) -> None:
    assert list(named(names)) == expected


@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "ü" * 125 + ".psd", os.fsdecode(b"\xe4" * 251 + b".png")])
def test_long_names_are_cut_where_they_would_grow(name: str) -> None:
    [(own, base)] = named([name])
    assert own == name
    assert len(os.fsencode(f"{base}.tiff")) <= 255
    assert base.startswith(name[:100])
    assert base[-9] == "~"
    [(_, other)] = named([name.replace("x", "y").replace("ü", "ö")])
    if name != os.fsdecode(b"\xe4" * 251 + b".png"):
        assert other[-8:] != base[-8:]
        base.encode()  # no character was cut in two


def test_one_folder_is_mirrored_itself_several_under_their_names(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg", tmp_path / "c.jpg")
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    assert places(walked(Path("a"), out=out)) == ["1.jpg"]
    assert places(walked(Path("a"), Path("b"), Path("c.jpg"), out=out)) == ["a/1.jpg", "b/1.jpg", "c.jpg"]
    assert places(walked(Path("a/../b/."), Path("c.jpg"), out=out)) == ["b/1.jpg", "c.jpg"]


def test_globs_mirror_what_lies_below_their_fixed_part(tmp_path: Path, monkeypatch) -> None:
    names = ["s/1/a.tif", "s/2/a.tif", "s/2/b.jpg", "s/.h/c.tif", "s/out/d.tif", "s/3/n.txt", "s/[x].jpg"]
    touch(*(tmp_path / name for name in names))
    monkeypatch.chdir(tmp_path)
    out = Path("s/out")
    assert places(walked(Path("s/**/*.tif"), out=out)) == ["1/a.tif", "2/a.tif"]
    assert places(walked(Path("s/[12]"), out=out)) == ["1/a.tif", "2/a.tif", "2/b.jpg"]
    assert places(walked(Path("s/**/*.jpg"), Path("s/1/*"), out=Path("o"))) == ["s/2/b.jpg", "s/[x].jpg", "1/a.tif"]
    assert places(walked(Path("s/[x].jpg"), out=out)) == ["[x].jpg"]
    with pytest.raises(UsageError, match="got none that fits"):
        roots([Path("s/*.gif")], out)


def test_wrong_inputs_are_one_clear_line(tmp_path: Path, monkeypatch) -> None:
    touch(
        tmp_path / "s" / "a.jpg",
        tmp_path / "t" / "s" / "a.jpg",
        tmp_path / "t" / "a.jpg",
        tmp_path / "s" / "o" / "b.jpg",
    )
    monkeypatch.chdir(tmp_path)
    for inputs, out, says in [
        (["missing"], "o", "missing: expected a photo or a folder, got nothing by that name"),
        (["s"], "s/o", "expected a folder outside of s, got one inside"),
        (["s"], "s", "expected a folder of its own, got one that holds s"),
        (["s/o"], "s", "expected a folder of its own, got one that holds s/o"),
        (["s", "t/s"], "o", "expected two names, got s twice"),
        (["s/a.jpg", "t/a.jpg"], "o", "expected two names, got a.jpg twice"),
        (["t", "t/s"], "o", "t/s lies in"),
    ]:
        with pytest.raises(UsageError) as caught:
            roots([Path(path) for path in inputs], Path(out))
        assert says in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "link").symlink_to("s/o")
    with pytest.raises(UsageError, match="got one inside"):
        roots([Path("s")], Path("link"))


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_a_list_mirrors_its_names_and_leads_nowhere_else(tmp_path: Path, monkeypatch, end: bytes) -> None:
    names = [
        b"s/a.jpg",
        b"s//./b/../c.jpg",
        b"../../up.jpg",
        b"/abs/d.jpg",
        b"s/\xff.jpg",
        b"",
        b"-dash.jpg",
        b"n" * 300,
    ]
    monkeypatch.chdir(tmp_path)
    found = list(listed(io.BytesIO(end.join(names))))
    places = [os.fsencode(root.place) for root in found]
    assert places == [b"s/a.jpg", b"s/c.jpg", b"up.jpg", b"abs/d.jpg", b"s/\xff.jpg", b"-dash.jpg", b"n" * 300]
    assert found[0].path == tmp_path / "s" / "a.jpg"
    assert found[3].path == Path("/abs/d.jpg")
    assert list(listed(io.BytesIO(b""))) == []


def test_what_a_run_keeps_for_itself_is_left_alone_in_a_list_too(tmp_path: Path, monkeypatch) -> None:
    kept, hidden = tmp_path / ".facefix" / "faces" / "001.after.png", tmp_path / ".thumbs" / "a.png"
    touch(kept, hidden, tmp_path / "sub" / ".facefix" / "b.png")
    monkeypatch.chdir(tmp_path)
    names = [b"./.facefix/faces/001.after.png", b".facefix", b"sub/.facefix/b.png", b".thumbs/a.png"]
    walk = Walk(listed(io.BytesIO(b"\n".join(names))), tmp_path / "out")
    assert places(walk) == [".thumbs/a.png"]
    assert walk.others == 3


def test_a_list_of_any_length_is_read_a_piece_at_a_time() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += 1
            return b"some/long/name.jpg\0" * 4000

    endless = Endless()
    roots = listed(endless)  # type: ignore[arg-type]
    for _ in range(4001):
        next(roots)
    assert endless.given == 2


def test_a_list_may_hold_names_with_newlines_where_nul_ends_them() -> None:
    [first, second] = listed(io.BytesIO(b"new\nline.jpg\0other.jpg\0"))
    assert (str(first.place), str(second.place)) == ("new\nline.jpg", "other.jpg")
