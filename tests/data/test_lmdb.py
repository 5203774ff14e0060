"""Databases in BasicSR's layout."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from basicsr_quant.data.lmdb import META_FILE, LmdbStore, write_lmdb
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.data.stores import open_store
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import decode_image, read_image

MakePairs = Callable[..., tuple[Path, Path]]


def as_databases(folders: tuple[Path, Path], template: str) -> tuple[Path, Path]:
    gt, lq = folders
    write_lmdb(gt.with_suffix(".lmdb"), ((path.stem, read_image(path)) for path in gt.iterdir()))
    names = [(template.format(path.stem), lq / f"{path.stem}x2.png") for path in gt.iterdir()]
    write_lmdb(lq.with_suffix(".lmdb"), ((name, read_image(path)) for name, path in names))
    return gt.with_suffix(".lmdb"), lq.with_suffix(".lmdb")


@pytest.mark.parametrize("template", ["{}", "{}x2"])
def test_same_samples_as_from_folders(make_pairs: MakePairs, template: str) -> None:
    folders = make_pairs(4, size=(40, 48))
    databases = as_databases(folders, template)
    from_disk, from_database = (
        PairedImageDataset(dataroot_gt=gt, dataroot_lq=lq, scale=2, filename_tmpl="{}x2", backend=backend, gt_size=16)
        for (gt, lq), backend in ((folders, "disk"), (databases, "lmdb")))
    for index in (0, 3, SampleIndex(1, 2, 3)):
        one, other = from_disk[index], from_database[index]
        assert one["name"] == other["name"]
        assert torch.equal(one["lq"], other["lq"]) and torch.equal(one["gt"], other["gt"])


def test_layout(tmp_path: Path) -> None:
    import lmdb

    image = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
    write_lmdb(tmp_path / "X.lmdb", [("b", image), ("a", image[:3])])
    assert sorted(path.name for path in (tmp_path / "X.lmdb").iterdir()) == ["data.mdb", "lock.mdb", META_FILE]
    assert (tmp_path / "X.lmdb" / META_FILE).read_text() == "a.png (3,6,3) 1\nb.png (5,6,3) 1\n"
    with lmdb.open(str(tmp_path / "X.lmdb"), readonly=True, lock=False) as opened, opened.begin() as transaction:
        assert np.array_equal(decode_image(transaction.get(b"b"), "b"), image)


def test_a_database_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    root = tmp_path / "X.lmdb"
    write_lmdb(root, [("old", image)])

    def broken() -> object:
        yield "new", image
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_lmdb(root, broken())  # type: ignore[arg-type]
    assert LmdbStore(root, "key").names == ["old"]
    write_lmdb(root, [(f"new{number:03d}", image) for number in range(130)])
    store = LmdbStore(root, "key")
    assert len(store.names) == 130 and store.size("new129") == (3, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["X.lmdb"]
    assert decode_image(pickle.loads(pickle.dumps(store)).read("new129"), "x").shape == (3, 3, 3)


def test_damaged_databases(tmp_path: Path) -> None:
    root = tmp_path / "X.lmdb"
    with pytest.raises(UserError, match=r"key: '.*meta_info\.txt' does not exist"):
        LmdbStore(root, "key")
    write_lmdb(root, [("a", np.zeros((3, 3, 3), np.uint8))])
    meta = root / META_FILE
    meta.write_text("a.png (3,3,3) 1\nb.png (3,3,3) 1\n")
    with pytest.raises(UserError, match="has no image 'b'"):
        LmdbStore(root, "key").read("b")
    meta.write_text("a.png 3 3\n")
    with pytest.raises(UserError, match="line 1 of"):
        LmdbStore(root, "key")
    meta.write_text("")
    with pytest.raises(UserError, match="names no image"):
        LmdbStore(root, "key")
    meta.write_text("a.png (3,3,3) 1\n")
    (root / "data.mdb").write_bytes(b"damaged" * 999)
    with pytest.raises(UserError, match="cannot open the image database"):
        LmdbStore(root, "key").read("a")


def test_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="io_backend 'tape' is unknown"):
        open_store(tmp_path, "tape", "key")
