"""Versions of the data on S3, a real S3 API on loopback: what travels, what comes back, what is noticed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from ruamel.yaml import YAML

from stages.params import SyntheticParams
from stages.synthetic import write_synthetic
from stages.tiles import read_tiles
from tests.clone import Clone

SIZE = SyntheticParams(tiles_per_class=3, good_tiles=3, exposures=2, height=40, width=40, seed=1)
SMALL = {
    "data_load": {
        "source": "synthetic",
        "synthetic": {
            "tiles_per_class": 3,
            "good_tiles": 3,
            "exposures": 2,
            "height": 40,
            "width": 40,
            "seed": 1,
        },
    },
    "data_split": {"test_fraction": 0.3, "val_fraction": 0.3},
}
BUCKET = "tiles-of-a-test"
CHANGED = "Crack/exp1_num_7003"  # gets another mask, and another class
DELETED = "Uneven/exp1_num_13003"
# The later stages have not run: the data alone.
DATA = ("--with-deps", "data_split")
PULL = ("dvc", "pull", *DATA)
ADDED = ("Fray/line3-7_exp1", "Fray/line3-7_exp2")


class Bucket:
    """A bucket of an S3 server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        self.client.create_bucket(Bucket=BUCKET)

    def objects(self) -> dict[str, tuple[int, Any]]:
        """Bytes and time of the last change of each object."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {one["Key"]: (one["Size"], one["LastModified"]) for page in pages for one in page["Contents"]}

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "a-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-test")
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        yield Bucket(f"http://{host}:{port}")
    server.stop()


def files(clone: Clone) -> dict[str, bytes]:
    """Content of all that the data stages made, by path."""
    return {
        path.relative_to(clone.folder).as_posix(): path.read_bytes()
        for folder in ("own", "tiles", "split")
        for path in (clone.folder / "data" / folder).rglob("*")
        if path.is_file()
    }


def key_of(digest: str) -> str:
    return f"tiles/files/md5/{digest[:2]}/{digest[2:]}"


def keys(contents: dict[str, bytes]) -> dict[str, int]:
    """Objects of these files in the bucket, and their bytes."""
    return {key_of(hashlib.md5(content).hexdigest()): len(content) for content in contents.values()}


def folders(clone: Clone) -> set[str]:
    """Objects of the listings of the folders that dvc.lock has."""
    stages = YAML(typ="safe").load(clone.folder / "dvc.lock")["stages"].values()
    digests = {out["md5"] for stage in stages for out in stage["outs"]}
    return {key_of(digest) for digest in digests if digest.endswith(".dir")}


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Clone:
    """A repository whose first version of the data is in the bucket; tag v1."""
    clone = Clone.of_project(tmp_path_factory.mktemp("versions") / "project", SMALL)
    clone.run("dvc", "remote", "modify", "s3", "url", f"s3://{BUCKET}/tiles")
    clone.run("dvc", "remote", "modify", "s3", "endpointurl", bucket.url)
    clone.run("dvc", "remote", "default", "s3")
    clone.run("dvc", "repro", "data_split")
    commit(clone, "v1")
    clone.run("dvc", "push")
    return clone


def commit(clone: Clone, tag: str) -> None:
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "-qm", tag)
    clone.run("git", "tag", tag)


@pytest.fixture(scope="module")
def first(project: Clone) -> dict[str, bytes]:
    """Files of the first version."""
    return files(project)


@pytest.fixture(scope="module")
def before(bucket: Bucket, first: dict[str, bytes]) -> dict[str, tuple[int, Any]]:
    """Objects of the bucket when it has the first version alone."""
    return bucket.objects()


@pytest.fixture(scope="module")
def grown(
    project: Clone, before: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Files of a second version, pushed: a tile more, an image relabelled, an image less; tag v2."""
    folder = tmp_path_factory.mktemp("grown")
    write_synthetic(SIZE.model_copy(update={"seed": 9, "tiles_per_class": 1}), folder / "drawn")
    (folder / "new" / "Fray").mkdir(parents=True)
    for index, image in enumerate(sorted((folder / "drawn" / "MT_Fray" / "Imgs").glob("*.jpg"))):
        image.rename(folder / "new" / f"{ADDED[index]}.jpg")
        image.with_suffix(".png").rename(folder / "new" / f"{ADDED[index]}.png")
    (folder / "relabelled" / "Break").mkdir(parents=True)
    image = project.folder / "data" / "tiles" / "images" / f"{CHANGED}.jpg"
    shutil.copy(image, folder / "relabelled" / "Break")
    mask = np.zeros(Image.open(image).size[::-1], np.uint8)
    mask[5:9, 5:30] = 255
    Image.fromarray(mask).save(folder / "relabelled" / "Break" / f"{image.stem}.png")
    project.run("python", "-m", "stages.data_add", str(folder / "new"))
    project.run("python", "-m", "stages.data_add", "--relabel", str(folder / "relabelled"))
    project.run("python", "-m", "stages.data_delete", DELETED)
    project.run("dvc", "repro", "data_split")
    commit(project, "v2")
    project.run("dvc", "push")
    return files(project)


def test_a_fresh_clone_pulls_the_same_bytes(project: Clone, first: dict[str, bytes], tmp_path: Path) -> None:
    clone = project.again(tmp_path / "fresh")
    assert files(clone) == {}
    clone.run("git", "checkout", "-q", "v1")
    clone.run(*PULL)
    assert files(clone) == first


def test_the_bucket_has_each_content_once_and_a_listing_of_each_folder(
    project: Clone, first: dict[str, bytes], before: dict[str, Any]
) -> None:
    clone_folders = before.keys() - keys(first).keys()
    assert len(clone_folders) == 3
    assert all(key.endswith(".dir") for key in clone_folders)
    assert {key: before[key][0] for key in keys(first)} == keys(first)


def test_what_was_added_relabelled_and_deleted_is_in_the_data(
    project: Clone, first: dict[str, bytes], grown: dict[str, bytes]
) -> None:
    tiles = {tile.key: tile for tile in read_tiles(project.folder / "data" / "tiles" / "tiles.csv")}
    changed = CHANGED.replace("Crack", "Break")
    assert {*ADDED, changed} <= tiles.keys()
    assert not {CHANGED, DELETED} & tiles.keys()
    assert tiles[changed].defect_pixels == 4 * 25
    assert len(tiles) == 3 * 6 * 2 + 2 - 1
    same = [path for path in first if "images" in path and path in grown]
    assert len(same) == 3 * 6 * 2 - 2
    assert all(first[path] == grown[path] for path in same)


def test_only_what_is_new_travels(
    project: Clone,
    bucket: Bucket,
    first: dict[str, bytes],
    before: dict[str, tuple[int, Any]],
    grown: dict[str, bytes],
) -> None:
    after = bucket.objects()
    assert {key: after[key] for key in before} == before  # neither gone nor written again
    new = {key: size for key, (size, _) in after.items() if key not in before}
    contents = {key: size for key, size in keys(grown).items() if key not in keys(first)}
    assert {key: size for key, size in new.items() if key in contents} == contents
    assert new.keys() - contents.keys() == folders(project)
    # 2 images, 2 exposures' mask as given and as stored, 1 mask anew, tiles.csv, three sides of the
    # split and its summary, and 3 listings: the rest of the pictures stay where they are.
    pictures = [path for path in grown if path.endswith((".jpg", ".png"))]
    assert len(new) < 20 < len(pictures)
    assert sum(new.values()) < sum(size for size, _ in before.values()) / 2


def test_the_old_version_comes_back_and_the_new_one_again(
    project: Clone, first: dict[str, bytes], grown: dict[str, bytes]
) -> None:
    for tag, content in (("v1", first), ("v2", grown)):
        project.run("git", "checkout", "-q", tag)
        project.run("dvc", "checkout", *DATA)
        assert files(project) == content
    changes = project.run("dvc", "diff", "v1")
    assert f"    data/own/{ADDED[0]}.jpg\n" in changes.partition("Added:")[2].partition("Deleted:")[0]
    assert f"    data/tiles/images/{DELETED}.jpg\n" in changes.partition("Deleted:")[2]
    assert ran(project.run("dvc", "repro", "data_split")) == ["check_packages"]


def test_a_clone_pulls_each_version_also_one_that_takes_an_addition_back(
    project: Clone, first: dict[str, bytes], grown: dict[str, bytes], tmp_path: Path
) -> None:
    clone = project.again(tmp_path / "fresh")
    clone.run(*PULL)
    assert files(clone) == grown
    clone.run("git", "revert", "--no-edit", "v2")
    clone.run(*PULL)
    assert files(clone) == first


def test_a_clone_without_data_runs_what_changed_and_gets_no_more_than_that_needs(
    project: Clone, grown: dict[str, bytes], tmp_path: Path
) -> None:
    clone = project.again(tmp_path / "fresh")
    repro = ("dvc", "repro", "--pull", "--allow-missing", "data_split")
    assert ran(clone.run(*repro)) == ["check_packages"]
    assert files(clone) == {}
    assert not list((clone.folder / ".dvc" / "cache").rglob("*.dir"))
    params = clone.folder / "params.yaml"
    params.write_text(params.read_text().replace("lookalike: 0.85", "lookalike: 0.9"))
    assert ran(clone.run(*repro)) == ["check_packages", "data_split"]
    assert not (clone.folder / "data" / "own").exists()
    assert {path for path in files(clone) if path.startswith("data/tiles")} == {
        path for path in grown if path.startswith("data/tiles")
    }


def test_missing_and_corrupted_objects_are_named_never_used_and_pushed_again(
    project: Clone, bucket: Bucket, grown: dict[str, bytes], tmp_path: Path
) -> None:
    missing, corrupted = (f"data/tiles/images/{name}.jpg" for name in ADDED)
    (lost,) = keys({missing: grown[missing]})
    bucket.delete(lost)
    # The name of an object is the digest of its content.
    listing = project.run("dvc", "ls", ".", str(Path(corrupted).parent), "--show-hash")
    (digest,) = [line.split()[0] for line in listing.splitlines() if line.endswith(Path(corrupted).name)]
    bucket.put(key_of(digest), grown[corrupted][:-1] + b"x")

    clone = project.again(tmp_path / "fresh")
    assert "failed to pull" in clone.run(*PULL, fails=True)
    status = clone.run("dvc", "data", "status", "--granular", "--not-in-remote")
    cache, remote = (
        status.partition(title)[2].partition("\n\n")[0] for title in ("Not in cache:", "Not in remote:")
    )
    assert missing in remote
    assert missing in cache
    assert corrupted in cache
    assert f"data/tiles/images/{CHANGED.replace('Crack', 'Break')}.jpg" not in cache + remote

    # As long as a folder's listing is there, DVC takes its files to be there too.
    for key in (key_of(digest), *folders(project)):
        bucket.delete(key)
    project.run("dvc", "push")
    clone.run(*PULL)
    assert files(clone) == grown


def test_without_a_cloud_a_folder_beside_the_project_takes_the_place_of_the_bucket(
    project: Clone, bucket: Bucket, grown: dict[str, bytes]
) -> None:
    project.run("dvc", "remote", "default", "local")
    project.run("git", "commit", "-qam", "Back to the local remote")
    project.run("dvc", "push")
    clone = project.again(project.folder.with_name("beside"))
    clone.run(*PULL)
    assert files(clone) == grown
    # Both have one layout, so that `aws s3 sync` moves all versions from one to the other.
    storage = project.folder.with_name("dvc-storage")
    paths = [path.relative_to(storage) for path in storage.rglob("*") if path.is_file()]
    stored = {f"tiles/{path.as_posix()}" for path in paths}
    assert stored == keys(grown).keys() | folders(project)
    assert stored <= bucket.objects().keys()
