"""The store: what runs read is kept, used by others, made again where it is damaged, and never used where it is old."""

import dataclasses
import errno
import multiprocessing
import os
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, tiny_config, write_pairs

from segexp import cli
from segexp.config import Config
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data import batches, cache, store
from segexp.data.batches import InputGeometry, Sample, make_reader, training_batches
from segexp.data.cache import Entry, entries, folder
from segexp.data.check import check_pairs
from segexp.data.image_set import ImageSet, Pair
from segexp.errors import DataChangedError, UsageError
from segexp.running import LoadedDataset, load_dataset, prepare
from segexp.running.build import initial_network, make_scorer
from segexp.running.execute import execute

REAL = [word for word in TINY if not word.startswith("dataset.number")]
FIT = InputGeometry("resize", 16, 32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SEGEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("segexp.data.store._warn", Warn())


class Warn:
    """Each test has warnings of its own."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, problem: str) -> None:
        self.problems.append(problem)


def write_images(root: Path, number: int = 6, seed: int = 0) -> Path:
    drawn = np.random.default_rng(seed)
    sizes = [(20, 24), (16, 16), (30, 18)]
    pairs = []
    for n in range(number):
        mask = np.zeros(sizes[n % 3], np.uint8)
        mask[2:9, 3:9] = 255
        pairs.append((f"{n}.png", drawn.integers(0, 255, (*mask.shape, 3)), mask))
    write_pairs(root, pairs)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def folder_words(root: Path) -> list[str]:
    return ["dataset=folder", f"dataset.root={root}", f"outputs={root.parent}", *REAL]


def config_of(root: Path, *words: str) -> Config:
    with hydra_session() as extra:
        return typed_of(compose_job([*folder_words(root), *words], extra))


def loaded(root: Path, *words: str) -> LoadedDataset:
    return load_dataset(config_of(root, *words))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded, in this process."""
    from segexp.data import pixels

    names: list[str] = []
    read_pair = pixels.read_pair

    def counting(item: Any, *args: Any) -> Pair:
        names.append(item.image_id)
        return read_pair(item, *args)

    monkeypatch.setattr(pixels, "read_pair", counting)
    return names


def kinds() -> list[str]:
    return sorted(entry.kind for entry in entries())


def equal(a: Sample, b: Sample) -> bool:
    """In values, types and strides."""
    parts = ([one.image_CHW, one.mask_HW, one.native_mask_HW] for one in (a, b))
    pairs = zip(*parts, strict=True)
    return a.stored_CHW.dtype == b.stored_CHW.dtype and all(
        torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride() for x, y in pairs
    )


def all_equal(one: batches.Read, other: batches.Read, number: int = 6) -> bool:
    return all(equal(one(i), other(i)) for i in range(number))


def unstored(image_set: ImageSet, fit: InputGeometry = FIT) -> batches.Read:
    return make_reader(dataclasses.replace(image_set, content=""), fit)


# Values


@pytest.mark.parametrize("fit", [FIT, InputGeometry("pad", 16, 32)])
@pytest.mark.parametrize(
    ("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 2), (np.int16, 1), (np.float32, 5)]
)
def test_values_types_and_strides_are_those_of_a_direct_read(fit: InputGeometry, dtype: type, channels: int) -> None:
    """Strides as well: torch computes otherwise, and rounds otherwise, where channels come last in memory."""
    drawn = np.random.default_rng(0)
    pairs = []
    for size in ((20, 24), (16, 16), (30, 18)):
        image: Any = (drawn.random((*size, channels + 1)) * 200).astype(dtype)
        image = image[..., :channels].copy() if dtype is np.float32 else image[..., :channels]
        pairs.append(Pair(image, drawn.integers(0, 2, size, dtype=np.uint8)))
    images = ImageSet(("a", "b", "c"), ("",) * 3, channels, 2, pairs.__getitem__, lambda i: [], content="these")
    for index in range(3):
        native = torch.from_numpy(pairs[index].mask_HW)
        image_CHW = torch.from_numpy(pairs[index].image_HWC).permute(2, 0, 1)
        image_CHW, mask_HW = batches._fitted(image_CHW, native, fit)
        direct = Sample(image_CHW, mask_HW, native)
        for _ in range(2):
            sample = make_reader(images, fit)(index)
            assert equal(sample, direct)
            sample.stored_CHW.zero_()  # is a copy
    assert kinds() == ["images"]


def test_batches_of_workers_are_those_of_one_process(root: Path) -> None:
    images = loaded(root).image_set
    normalise = batches.Normalisation((0.5,) * 3, (0.2,) * 3)
    made = []
    for read, workers in ((unstored(images), 0), (make_reader(images, FIT), 2)):
        order = [[0, 1, 2], [3, 4, 5]]
        stream = training_batches(images, read, FIT, normalise, None, 1, order, seed=0, workers=workers)
        made.append(list(stream))
    for (image, mask, _), (other_image, other_mask, _) in zip(*made, strict=True):
        assert torch.equal(image, other_image)
        assert image.stride() == other_image.stride()
        assert torch.equal(mask, other_mask)


# What is read again, and what is not


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a file was read")


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pixels.read_pair", "store.pair_digest", "image_set.pair_digest"):
        monkeypatch.setattr(f"segexp.data.{name}", refuse)


def test_a_finished_run_and_the_next_run_of_a_sweep_read_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("trainer.epochs=1", "metrics.resolution=network")
    assert execute(prepare(config_of(root, *words))).status == "done"
    refuse_reading(monkeypatch)
    assert execute(prepare(config_of(root, *words))).skipped
    spec = prepare(config_of(root, *words, "seed=1", "activation=arctan"))
    scorer = make_scorer(spec, initial_network(spec))
    assert sum(len(batch.indices) for indices in spec.split.values() for batch in scorer.batches(indices)) == 6


@pytest.mark.slow
def test_commands_on_a_finished_run_read_no_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *folder_words(root)]
    assert cli.main(words) == 0
    refuse_reading(monkeypatch)
    (run_dir,) = (tmp_path / "default").glob("data-*")
    for again in (words, ["evaluate", str(run_dir), "--split", "val"], ["status", str(tmp_path / "default")]):
        assert cli.main(again) == 0
    assert cli.main(["train", "--from", str(run_dir), f"outputs={root.parent}"]) == 0


def test_a_touched_file_is_hashed_and_not_decoded(
    root: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = loaded(root)
    decoded.clear()
    path = root / "images" / "3.png"
    shutil.copy(path, root / "copy")
    (root / "copy").rename(path)
    again = loaded(root)
    assert (decoded, again.dataset_sha, caplog.records) == ([], first.dataset_sha, [])
    assert kinds() == ["check", "files"]
    again.image_set.read(3)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match="changed after"):
        again.image_set.read(3)


def test_a_changed_byte_is_noticed_and_reported(
    root: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With the same size and time; only the change of ctime shows it."""
    first = loaded(root)
    read = make_reader(first.image_set, FIT)
    path = root / "masks" / "2.png"
    state = path.stat()
    mask = np.array(Image.open(path))
    Image.fromarray(mask.T.copy().T[::-1]).save(path)
    with path.open("ab") as file:
        file.truncate(state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    decoded.clear()
    assert all_equal(read, read)
    second = loaded(root)
    assert second.dataset_sha != first.dataset_sha
    assert "2" in decoded
    (warning,) = caplog.messages
    assert all(part in warning for part in (str(root), "1 of 6", ": 2)"))
    assert not equal(make_reader(second.image_set, FIT)(2), read(2))


def test_a_folder_that_is_moved_or_copied_is_not_decoded_again(root: Path, decoded: list[str]) -> None:
    first = loaded(root)
    make_reader(first.image_set, FIT)
    decoded.clear()
    shutil.copytree(root, root.parent / "copied")
    root.rename(root.parent / "moved")
    for name in ("moved", "copied"):
        again = loaded(root.parent / name)
        make_reader(again.image_set, FIT)
        assert again.dataset_sha == first.dataset_sha
    assert decoded == []


def test_only_the_images_of_dataset_limit_are_read(root: Path, decoded: list[str]) -> None:
    limited = loaded(root, "dataset.limit=4").image_set
    make_reader(limited, FIT)
    assert sorted(set(decoded)) == sorted(limited.image_ids)
    assert len(limited.image_ids) == 4
    assert [entry.images for entry in entries()] == [4, 4, 4]


def test_options_that_change_what_is_read_have_entries_of_their_own(root: Path, decoded: list[str]) -> None:
    plain = loaded(root)
    decoded.clear()
    other = loaded(root, "dataset.mask_coding=values", "dataset.mask_values=[255,0]")
    assert len(decoded) == 6
    assert other.facts.class_pixels_NC.tolist() == plain.facts.class_pixels_NC[:, ::-1].tolist()
    decoded.clear()
    described = loaded(root, "dataset.class_names=[tissue,lesion]", "dataset.spacing=[2,2]", "dataset.name=other")
    assert decoded == []
    assert repr(described.facts) == repr(plain.facts)


def test_bad_files_are_reported_every_time(root: Path, decoded: list[str]) -> None:
    (root / "images" / "4.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"4\.png"):
            loaded(root)
    assert kinds() == []
    write_images(root)
    assert loaded(root).facts.sizes_N2.shape == (6, 2)


def test_files_that_cannot_be_opened_are_reported_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store, "pair_digest", denied)
    with pytest.raises(PermissionError):
        loaded(root)
    (root / "images" / "4.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"4\.png"):
        loaded(root)


def test_a_change_during_the_check_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> Any:
        facts = check_pairs(*args)
        (root / "masks" / "2.png").write_bytes(b"other")
        return facts

    monkeypatch.setattr("segexp.running.check_pairs", slow)
    with pytest.raises(DataChangedError, match="2 changed"):
        loaded(root)
    assert kinds() == [], "nothing is stored under the bytes that were hashed before"
    with pytest.raises(UsageError, match=r"2\.png"):
        loaded(root)


def test_folders_with_equal_names_do_not_displace_each_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_images(root.parent / "other", seed=1)
    first = [loaded(folder).dataset_sha for folder in (root, other)]
    refuse_reading(monkeypatch)
    assert [loaded(folder).dataset_sha for folder in (root, other)] == first
    assert first[0] != first[1]


def test_generated_images_are_kept_by_their_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset(tiny_config(tmp_path))
    monkeypatch.setattr("segexp.data.lesions._stream", None)
    again = load_dataset(tiny_config(tmp_path))
    assert again.dataset_sha == first.dataset_sha
    assert repr(again.facts) == repr(first.facts)
    with pytest.raises(TypeError):
        load_dataset(tiny_config(tmp_path, "dataset.noise=0.2"))


# Several processes


def start(root: Path, log: Path, pause: float = 0.0, die_at: int = 0) -> Any:
    """A process that opens the data set, and logs what it decodes."""
    from segexp.data import pixels

    read_pair, decoded = pixels.read_pair, []

    def slow(item: Any, *args: Any) -> Pair:
        decoded.append(item.image_id)
        with log.open("a") as file:
            file.write(f"{item.image_id}\n")
        if len(decoded) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        return read_pair(item, *args)

    def work() -> None:
        with mock.patch.object(pixels, "read_pair", slow):
            make_reader(loaded(root).image_set, FIT)(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.slow
def test_two_processes_at_once_read_once(root: Path, tmp_path: Path) -> None:
    both = [start(root, tmp_path / "log", pause=0.05) for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    names = (tmp_path / "log").read_text().split()
    assert sorted(names) == sorted(2 * [str(n) for n in range(6)]), "once for the check, once for the images"


def test_after_a_killed_process_the_next_one_succeeds(
    root: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it writes the images; what it left is removed, also by a process that reads another data set."""
    killed = start(root, tmp_path / "log", die_at=10)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert len(list(folder().glob("*.partial"))) == 1
    images = loaded(root).image_set
    assert decoded == []
    assert all_equal(make_reader(images, FIT), unstored(images))
    assert kinds() == ["check", "files", "images"]
    assert not list(folder().glob("*.*"))
    (folder() / "x.partial").mkdir()
    (folder() / "y.gone").mkdir()
    monkeypatch.setenv("SEGEXP_CACHE_LIMIT", "1KB")  # which these images exceed
    loaded(write_images(tmp_path / "other", seed=1))
    assert not list(folder().glob("*.*"))


def test_a_lock_of_a_process_that_was_killed_at_the_very_end_is_removed(root: Path, decoded: list[str]) -> None:
    """When its entry was whole: nothing is made again, and no later entry would clear it."""
    make_reader(loaded(root).image_set, FIT)(0)
    entry, read = images_entry().path, len(decoded)
    entry.with_suffix(".lock").touch()
    entry.with_suffix(".partial").mkdir()
    make_reader(loaded(root).image_set, FIT)(0)
    assert len(decoded) == read
    assert not list(folder().glob("*.*"))
    holder = cache._try_lock(entry)  # one that is at work
    assert holder is not None
    make_reader(loaded(root).image_set, FIT)(0)
    assert entry.with_suffix(".lock").exists()
    cache._unlock(entry, holder)


def test_a_process_that_waits_can_be_interrupted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "heed_interrupts", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    folder().mkdir(parents=True)
    key = folder() / "key"
    holder = cache._try_lock(key)
    assert holder is not None
    with pytest.raises(KeyboardInterrupt), cache._alone(key, "data"):
        raise AssertionError("it is locked")
    cache._unlock(key, holder)
    with cache._alone(key, "data"):
        assert cache._try_lock(key) is None


# Damage, eviction, and cache folders that cannot be used


def images_entry() -> Entry:
    (found,) = (entry for entry in entries() if entry.kind == "images")
    return found


def damage(how: str) -> None:
    path = images_entry().path / ("content.npz" if how == "index" else "images.bin")
    content = bytearray(path.read_bytes())
    if how == "short":
        path.write_bytes(content[:-7])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["byte", "short", "index"])
def test_damage_before_a_run_is_repaired(
    how: str, root: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    images = loaded(root).image_set
    make_reader(images, FIT)
    damage(how)
    for repaired in (how != "byte", True):
        assert all_equal(make_reader(images, FIT), unstored(images))
        assert len(caplog.records) == 1, "reported once"
        assert (images_entry().path / "content.npz").exists() == repaired, "a byte is not seen before it is read"
    assert str(folder()) in caplog.text
    decoded.clear()
    read = make_reader(images, FIT)
    assert all_equal(read, read)
    assert decoded == []


def test_damage_during_a_run_is_read_from_the_files(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = loaded(root).image_set
    read = make_reader(images, FIT)
    path = images_entry().path / "images.bin"
    path.write_bytes(b"\0" * 100)
    assert all_equal(read, unstored(images))
    assert len(caplog.records) == 1
    assert all_equal(make_reader(images, FIT), unstored(images))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("kind", ["files", "check"])
def test_damaged_checks_are_made_again(kind: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = loaded(root)
    (entry,) = (entry for entry in entries() if entry.kind == kind)
    content = bytearray((entry.path / "content.npz").read_bytes())
    content[200] ^= 1
    (entry.path / "content.npz").write_bytes(content)
    again = loaded(root)
    assert (again.dataset_sha, repr(again.facts)) == (first.dataset_sha, repr(first.facts))
    assert len(caplog.records) == 1
    loaded(root)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("odd", ["link", "pipe"])
@pytest.mark.parametrize("name", ["entry.json", "content.npz", "images.bin"])
def test_an_entry_with_a_link_or_a_pipe_is_made_again(name: str, odd: str, root: Path, tmp_path: Path) -> None:
    images = loaded(root).image_set
    make_reader(images, FIT)
    victim = images_entry().path / name
    victim.rename(tmp_path / name)
    os.mkfifo(victim) if odd == "pipe" else victim.symlink_to(tmp_path / name)
    assert all_equal(make_reader(images, FIT), unstored(images))
    assert [path for path in victim.parent.iterdir() if path.is_symlink() or not path.is_file()] == []
    assert images_entry().images == 6


def test_only_damage_is_taken_for_damage(root: Path) -> None:
    loaded(root)
    key = next(entry.path.name for entry in entries())

    def read(place: Path) -> None:
        raise AttributeError("a mistake in the code")

    with pytest.raises(AttributeError):
        cache.find(key, read)


def test_what_was_used_least_recently_is_removed_also_while_it_is_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = loaded(root).image_set
    read = make_reader(images, FIT)
    for entry in entries():
        os.utime(entry.path / "entry.json", (time.time() - 100,) * 2)
    small = sum(entry.bytes for entry in entries() if entry.kind != "images")
    monkeypatch.setenv("SEGEXP_CACHE_LIMIT", str(images_entry().bytes + 3 * small))
    other = loaded(write_images(tmp_path / "other", seed=1)).image_set
    make_reader(other, FIT)
    assert images_entry().location == str(tmp_path / "other")
    assert sum(entry.bytes for entry in entries()) <= images_entry().bytes + 3 * small
    assert all_equal(read, unstored(images))


def unusable(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "full":

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    elif how == "read-only":  # also for root

        def read_only(self: Path, *args: Any, **kwargs: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(self))

        monkeypatch.setattr(Path, "mkdir", read_only)
    elif how == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elif how == "a link":
        folder().parent.mkdir()
        folder().symlink_to("/tmp")
    elif how == "no home":
        monkeypatch.delenv("SEGEXP_CACHE")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setenv("SEGEXP_CACHE_LIMIT", how)


@pytest.mark.parametrize(("how", "told"), [
    ("full", "No space left"), ("read-only", "Read-only"), ("another user's", "another user"), ("a link", "a link"),
    ("no home", "no home"), ("2KB", "SEGEXP_CACHE_LIMIT"), ("0", ""),
])  # fmt: skip
def test_a_run_works_without_a_cache_folder(
    how: str, told: str, root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    """The images are kept in memory, as far as there is room."""
    with monkeypatch.context() as patch:
        unusable(patch, how)
        images = loaded(root).image_set
        read = make_reader(images, FIT)
        decoded.clear()
        first = [read(i) for i in range(6)]
        assert all(equal(read(i), first[i]) for i in range(6))
        assert len(decoded) == 6
        warned: Any = store._warn
    problems = set(warned.problems)
    assert len(problems) == (1 if told else 0)
    assert told in "".join(problems)
    assert how != "full" or "cache/store" in "".join(problems)
    assert all_equal(unstored(images), first.__getitem__)
    assert not [entry for entry in entries() if entry.kind == "images"]


def test_memory_is_limited_where_there_is_no_store(
    root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    images = loaded(root).image_set
    monkeypatch.setattr(store, "MEMORY", 2 * (16 * 16 * 13 + 20 * 24))
    read = unstored(images)
    for _ in range(2):
        for index in range(6):
            read(index)
    assert len(set(decoded)) == 6
    assert len(decoded) > 6 + 6


def test_the_cache_is_for_this_user_alone(root: Path) -> None:
    before = os.umask(0)
    try:
        loaded(root)
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder().parent, folder())] == [0o700, 0o700]
        folder().chmod(0o777)
        make_reader(loaded(root).image_set, FIT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.path.stat().st_mode) for entry in entries()} == {0o700}


def test_an_entry_of_another_user_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]) -> None:
    make_reader(loaded(root).image_set, FIT)
    for entry in entries():
        os.chown(entry.path, 12345, -1)
    decoded.clear()
    make_reader(loaded(root).image_set, FIT)
    assert len(decoded) == 12


@pytest.mark.parametrize(("variables", "expected"), [
    ({"SEGEXP_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/store"), ({"XDG_CACHE_HOME": "/b"}, "/b/segexp/store"),
    ({"XDG_CACHE_HOME": "b"}, "/home/me/.cache/segexp/store"), ({"SEGEXP_CACHE": ""}, "/home/me/.cache/segexp/store"),
    ({"SEGEXP_CACHE": "~/c"}, "/home/me/c/store"),
])  # fmt: skip
def test_where_the_cache_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEGEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert folder() == Path(expected)
