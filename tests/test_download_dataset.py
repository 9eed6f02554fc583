"""The step "download", against real servers: what is used, what is refused, and when the sample stands in."""

import gzip
import hashlib
import inspect
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.states import Failed

from infra.background import NAME
from infra.errors import (
    ArgumentError,
    DatasetCorrupted,
    DatasetNotFound,
    DatasetUnavailable,
    PipelineError,
    SettingsError,
)
from infra.mirror import Limits
from infra.settings import PROJECT_ROOT, Settings, load_settings
from tasks.dataset_catalog import describe_dataset, read_catalog
from tasks.datasets.obtain import IfUnreachable, closing_reminder, obtain_dataset
from tasks.download_dataset import download_dataset
from tasks.handoffs import DatasetFiles
from tasks.programs.mnist.digits.dataset_files import (
    FILE_NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    read_idx,
    write_idx,
)
from tests.http_server import Behaviour, HttpServer, refusing, serving

LIMITS = Limits(attempts=3, pause_seconds=0.01)
"""As patient as a person's: where silence is not what is tested, a busy machine must not be taken for it."""
TRAINING, TEST = 600, 100
STANDARD_CATALOG = PROJECT_ROOT / "tasks" / "datasets.toml"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The four files of a small data set."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for images, labels, count in ((TRAIN_IMAGES, TRAIN_LABELS, TRAINING), (TEST_IMAGES, TEST_LABELS, TEST)):
        write_idx(folder / images, rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(folder / labels, rng.integers(0, 10, count, np.uint8))
    return {name: (folder / name).read_bytes() for name in FILE_NAMES}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[HttpServer]:
    with serving(files) as running:
        yield running


@pytest.fixture
def second(files: dict[str, bytes]) -> Iterator[HttpServer]:
    with serving(files) as running:
        yield running


@pytest.fixture
def settings_for(tmp_path: Path, files: dict[str, bytes]) -> Callable[..., Settings]:
    """Settings with these mirrors, and a catalog that knows `tiny`, as the files given or the good ones."""

    def settings(*mirrors: str, pinned: dict[str, bytes] | None = None) -> Settings:
        return load_settings(environment(tmp_path, pinned or files, *mirrors))

    return settings


def environment(folder: Path, files: dict[str, bytes], *mirrors: str) -> dict[str, str]:
    catalog = folder / "catalog.toml"
    lines = ["[tiny]", f"training_images = {TRAINING}", f"test_images = {TEST}", "[tiny.files]"]
    for name, data in files.items():
        lines.append(f'"{name}" = {{ size = {len(data)}, sha256 = "{hashlib.sha256(data).hexdigest()}" }}')
    # Its sample is the real one, under a name of its own.
    sample = STANDARD_CATALOG.read_text(encoding="utf-8").partition("[mnist-5k]")[2]
    lines += ["[tiny-sample]", sample.replace('"mnist"', '"tiny"').replace("[mnist-5k", "[tiny-sample")]
    catalog.write_text("\n".join(lines), encoding="utf-8")
    return {"PIPELINE_HOME": str(folder / "home"), "DATASET_CATALOG": str(catalog), "MNIST_MIRRORS": " ".join(mirrors)}


def obtain(
    settings: Settings, if_unreachable: IfUnreachable = "fail", name: str = "tiny", limits: Limits = LIMITS
) -> DatasetFiles:
    return obtain_dataset(describe_dataset(name, settings.dataset_catalog), settings, if_unreachable, limits)


def kept(settings: Settings) -> dict[str, bytes]:
    """Everything in the folder of `tiny`."""
    return {path.name: path.read_bytes() for path in kept_paths(settings)}


def kept_paths(settings: Settings) -> list[Path]:
    """The files of `kept`, which may be getting other names."""
    folder = settings.datasets_folder / "tiny"
    return list(folder.iterdir()) if folder.exists() else []


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def idx(*shape: int, values: bytes | None = None, magic: int = 0x08) -> bytes:
    header = struct.pack(f">HBB{len(shape)}I", 0, magic, len(shape), *shape)
    return gzip.compress(header + (bytes(int(np.prod(shape))) if values is None else values), compresslevel=1)


SHAPE = (TRAINING, 28, 28)
PIXELS = TRAINING * 28 * 28
WRONG_IMAGES = {
    "an HTML page": (b"<html>Sign in</html>", "is not a gzip file"),
    "a truncated file": (idx(*SHAPE)[:-20], "is truncated"),
    "a gzip bomb": (idx(*SHAPE, values=bytes(50_000_000)), "bytes follow after"),
    "another magic number": (idx(*SHAPE, magic=0x0D), "magic number is 0x00000d03"),
    "another count": (idx(TRAINING + 1, 28, 28), "header says shape"),
    "other dimensions": (idx(TRAINING, 28, 27), "header says shape"),
    "too few values": (idx(*SHAPE, values=bytes(PIXELS - 1)), "ends after"),
    "trailing bytes": (idx(*SHAPE, values=bytes(PIXELS + 1)), "bytes follow after"),
}


def test_the_files_come_from_the_first_mirror_side_by_side(
    server: HttpServer, second: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(server.address, second.address)
    dataset = obtain(settings)
    assert dataset == DatasetFiles(
        describe_dataset("tiny", settings.dataset_catalog), settings.datasets_folder / "tiny"
    )
    assert kept(settings) == files
    assert sorted(server.requests) == sorted((name, None) for name in FILE_NAMES)
    assert second.requests == []


def test_the_four_files_are_asked_for_at_once(
    server: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    for name in FILE_NAMES:
        server.behaviour[name] = Behaviour(silent=True)
    settings = settings_for(server.address)
    with ThreadPoolExecutor(1) as pool:
        obtained = pool.submit(obtain, settings, limits=Limits(answer_seconds=60))
        # None of them is answered before all have been asked for.
        wait_until(lambda: len(server.requests) == 4)
        server.resume.set()
        obtained.result()
    assert kept(settings) == files


@pytest.mark.parametrize(("behaviour", "written"), [({"silent": True}, 0), ({"stall_after": 10}, 4)])
def test_who_is_told_to_stop_waits_for_no_mirror(
    behaviour: dict[str, Any],
    written: int,
    server: HttpServer,
    second: HttpServer,
    settings_for: Callable[..., Settings],
) -> None:
    for name in FILE_NAMES:
        server.behaviour[name] = Behaviour(**behaviour)
    settings = settings_for(server.address, second.address)

    def told_in_the_middle() -> float:
        wait_until(lambda: len(server.requests) == 4 and len(kept_paths(settings)) == written)
        os.kill(os.getpid(), signal.SIGINT)
        return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(told_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            obtain(settings, limits=Limits(answer_seconds=20))
        assert time.monotonic() - told.result() < 3
    # What is answered late begins nothing, for by then another process may be at work on these files.
    unfinished = set(kept(settings))
    server.resume.set()
    wait_until(lambda: all(thread.name != NAME for thread in threading.enumerate()))
    assert set(kept(settings)) == unfinished
    assert second.requests == []


def test_intact_files_are_not_fetched_again(
    server: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(server.address)
    first = obtain(settings)
    (first.folder / TEST_LABELS).unlink()
    (first.folder / TRAIN_IMAGES).write_bytes(files[TRAIN_IMAGES][:-1] + b"x")
    server.requests.clear()
    assert obtain(settings) == first
    assert sorted(server.requests) == [(TEST_LABELS, None), (TRAIN_IMAGES, None)]
    assert kept(settings) == files
    server.requests.clear()
    assert obtain(settings) == first
    assert server.requests == []


def test_a_damaged_file_is_removed_even_if_none_can_be_fetched(
    server: HttpServer, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(server.address)
    (obtain(settings).folder / TEST_LABELS).write_bytes(b"damaged")
    server.stop()
    with pytest.raises(DatasetUnavailable, match=TEST_LABELS):
        obtain(settings)
    assert TEST_LABELS not in kept(settings)


@pytest.mark.parametrize("wrong", [wrong for wrong, _ in WRONG_IMAGES.values()] + [bytes(1)], ids=[*WRONG_IMAGES, "x"])
def test_a_wrong_file_is_refused_by_name_and_the_next_mirror_is_used(
    server: HttpServer,
    second: HttpServer,
    files: dict[str, bytes],
    settings_for: Callable[..., Settings],
    caplog: pytest.LogCaptureFixture,
    wrong: bytes,
) -> None:
    server.files[TRAIN_IMAGES] = wrong
    settings = settings_for(server.address, second.address)
    obtain(settings)
    assert kept(settings) == files
    assert second.requests == [(TRAIN_IMAGES, None)]
    assert f"{server.address}{TRAIN_IMAGES} answered with a file of {len(wrong)} bytes" in caplog.text


@pytest.mark.parametrize(("wrong", "reason"), WRONG_IMAGES.values(), ids=list(WRONG_IMAGES))
def test_images_that_are_wrong_under_a_right_digest_are_refused_and_not_kept(
    server: HttpServer,
    second: HttpServer,
    files: dict[str, bytes],
    settings_for: Callable[..., Settings],
    wrong: bytes,
    reason: str,
) -> None:
    server.files[TRAIN_IMAGES] = wrong
    settings = settings_for(server.address, second.address, pinned=files | {TRAIN_IMAGES: wrong})
    with pytest.raises(DatasetCorrupted, match=f"its file {TRAIN_IMAGES} .*{reason}") as caught:
        obtain(settings, "sample")
    assert str(settings.dataset_catalog) in str(caught.value)
    assert second.requests == [], "it would have the same file"
    assert not {TRAIN_IMAGES, f"{TRAIN_IMAGES}.part"} & kept(settings).keys()


def test_a_label_beyond_nine_is_refused_under_a_right_digest(
    server: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    wrong = idx(TEST, values=bytes([10]) * TEST)
    server.files[TEST_LABELS] = wrong
    settings = settings_for(server.address, pinned=files | {TEST_LABELS: wrong})
    with pytest.raises(DatasetCorrupted, match=f"its file {TEST_LABELS} holds the label 10, beyond 0 to 9") as caught:
        obtain(settings)
    assert "mirror has" not in str(caught.value), "the mirror is not to blame"
    assert TEST_LABELS not in kept(settings)


def test_a_wrong_digest_everywhere_is_refused_and_never_replaced_by_the_sample(
    server: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    for name, data in files.items():
        server.files[name] = data[:-1] + bytes([data[-1] ^ 1])
    with refusing() as nobody:
        settings = settings_for(nobody, server.address, nobody)
        with pytest.raises(DatasetCorrupted, match="every file: refused") as caught:
            obtain(settings, "sample")
    for name, data in files.items():
        assert f"{name}: has SHA-256 {hashlib.sha256(server.files[name]).hexdigest()}" in str(caught.value)
        assert f"expected {hashlib.sha256(data).hexdigest()}" in str(caught.value)
    assert kept(settings) == {}


@pytest.mark.parametrize("status", [403, 404])
def test_a_mirror_that_refuses_was_reached_and_the_sample_does_not_stand_in(
    server: HttpServer, settings_for: Callable[..., Settings], status: int
) -> None:
    for name in FILE_NAMES:
        server.behaviour[name] = Behaviour(status=status)
    with pytest.raises(DatasetNotFound, match=f"every file: answered {status}"):
        obtain(settings_for(server.address), "sample")


def test_a_folder_that_is_not_there_is_not_found_and_not_corrupted(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with pytest.raises(DatasetNotFound, match="every file: there is no such file"):
        obtain(settings_for(f"file://{tmp_path}/nowhere"), "sample")


def test_a_mirror_that_redirects_to_a_local_file_is_passed_over(
    server: HttpServer, second: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    for name in FILE_NAMES:
        server.behaviour[name] = Behaviour(status=302, location=f"file:///etc/{name}")
    settings = settings_for(server.address, second.address)
    obtain(settings)
    assert kept(settings) == files


def test_of_a_mirror_that_breaks_off_and_one_that_lacks_the_files_the_first_is_worth_another_attempt(
    server: HttpServer, second: HttpServer, settings_for: Callable[..., Settings]
) -> None:
    for name in FILE_NAMES:
        server.behaviour[name] = Behaviour(status=503)
        second.behaviour[name] = Behaviour(status=404)
    with pytest.raises(DatasetUnavailable, match="broke off"):
        obtain(settings_for(server.address, second.address))


def test_a_mirror_that_breaks_off_was_reached_and_the_sample_does_not_stand_in(
    server: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    server.behaviour[TRAIN_IMAGES] = Behaviour(break_after=100_000)
    settings = settings_for(server.address)
    with pytest.raises(DatasetUnavailable, match=f"broke off.\n.*\n +{TRAIN_IMAGES}: .*300,000 of"):
        obtain(settings, "sample")
    server.behaviour.clear()
    obtain(settings)
    assert server.requests_for(TRAIN_IMAGES)[-1] == "bytes=300000-"
    assert kept(settings) == files


def test_one_file_that_arrives_shows_that_a_mirror_was_reached(
    server: HttpServer, settings_for: Callable[..., Settings]
) -> None:
    for name in FILE_NAMES[1:]:
        server.behaviour[name] = Behaviour(silent=True)
    with pytest.raises(DatasetUnavailable, match="no answer within"):
        obtain(settings_for(server.address), "sample", limits=replace(LIMITS, answer_seconds=2))


def test_the_next_mirror_continues_what_the_first_left(
    server: HttpServer, second: HttpServer, files: dict[str, bytes], settings_for: Callable[..., Settings]
) -> None:
    server.behaviour[TRAIN_IMAGES] = Behaviour(stall_after=100_000)
    settings = settings_for(server.address, second.address)
    obtain(settings, limits=replace(LIMITS, stall_seconds=0.5))
    assert second.requests == [(TRAIN_IMAGES, "bytes=300000-")]
    assert kept(settings) == files


def test_without_any_mirror_the_sample_stands_in_and_says_so(
    server: HttpServer, settings_for: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    for name in FILE_NAMES:
        server.behaviour[name] = Behaviour(silent=True)
    with refusing() as nobody:
        settings = settings_for(nobody, "http://someone:secret@mirror.invalid/folder?signature=secret", server.address)
        used = obtain(settings, "sample", limits=replace(LIMITS, answer_seconds=0.5))
    assert used.description.name == "tiny-sample"
    assert used.folder == settings.datasets_folder / "tiny-sample"
    assert used.description.sha256 == describe_dataset("mnist-5k", STANDARD_CATALOG).sha256
    assert sorted(path.name for path in used.folder.iterdir()) == sorted(FILE_NAMES)
    (notice,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for said in ("SAMPLE tiny-sample, NOT tiny", nobody, "refused", "no such name", "no answer", "MNIST_MIRRORS"):
        assert said in notice
    assert "secret" not in notice
    reminder = closing_reminder("tiny", used)
    assert reminder is not None
    assert "SAMPLE tiny-sample, NOT tiny" in reminder
    assert closing_reminder("tiny-sample", used) is None


def test_without_any_mirror_fail_fails_at_once_and_names_the_way_out(settings_for: Callable[..., Settings]) -> None:
    started = time.monotonic()
    with refusing() as nobody:
        settings = settings_for(nobody, "http://mirror.invalid/folder")
        with pytest.raises(DatasetUnavailable, match="no mirror could be reached") as caught:
            obtain(settings)
    assert time.monotonic() - started < 5
    assert 'if_unreachable="sample"' in str(caught.value)
    assert kept(settings) == {}
    assert not (settings.datasets_folder / "tiny-sample").exists()


def test_the_sample_is_the_one_whose_digests_are_pinned(tmp_path: Path) -> None:
    settings = load_settings({"PIPELINE_HOME": str(tmp_path)})
    used = obtain(settings, name="mnist-5k")
    description = describe_dataset("mnist-5k", settings.dataset_catalog)
    assert used == DatasetFiles(description, settings.datasets_folder / "mnist-5k")
    for entry in description.files:
        assert hashlib.sha256((used.folder / entry.name).read_bytes()).hexdigest() == entry.sha256
    written = (used.folder / TRAIN_IMAGES).stat().st_mtime_ns
    assert obtain(settings, name="mnist-5k") == used
    assert (used.folder / TRAIN_IMAGES).stat().st_mtime_ns == written


def test_each_part_of_the_sample_holds_each_class_equally_and_in_turn(tmp_path: Path) -> None:
    settings = load_settings({"PIPELINE_HOME": str(tmp_path)})
    folder = obtain(settings, name="mnist-5k").folder
    description = describe_dataset("mnist-5k", settings.dataset_catalog)

    def read(name: str) -> np.ndarray:
        with (folder / name).open("rb") as file:
            return read_idx(file, name, description.shape(name))

    training, test = read(TRAIN_LABELS), read(TEST_LABELS)
    np.testing.assert_array_equal(training, np.tile(np.arange(10), 450))
    np.testing.assert_array_equal(test, np.tile(np.arange(10), 50))
    assert description.validation_images == 500
    images = np.concatenate([read(TRAIN_IMAGES), read(TEST_IMAGES)])
    assert len(np.unique(images.reshape(5000, -1), axis=0)) == 5000


def test_a_sample_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    right = describe_dataset("mnist-5k", STANDARD_CATALOG).files[0].sha256
    catalog.write_text(STANDARD_CATALOG.read_text(encoding="utf-8").replace(right, "0" * 64), encoding="utf-8")
    settings = load_settings({"PIPELINE_HOME": str(tmp_path), "DATASET_CATALOG": str(catalog)})
    with pytest.raises(DatasetCorrupted, match=f"expected SHA-256 {'0' * 64},\nfound {right}"):
        obtain(settings, name="mnist-5k")
    assert not (settings.datasets_folder / "mnist-5k" / TRAIN_IMAGES).exists()


def test_a_folder_is_a_mirror(tmp_path: Path, files: dict[str, bytes], settings_for: Callable[..., Settings]) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    settings = settings_for(folder.as_uri())
    obtain(settings)
    assert kept(settings) == files


PROGRAM = """
import logging
from infra.settings import load_settings
from tasks.dataset_catalog import describe_dataset
from tasks.datasets.obtain import obtain_dataset
logging.basicConfig(level=logging.INFO, force=True)
settings = load_settings()
print(obtain_dataset(describe_dataset("tiny", settings.dataset_catalog), settings).description.sha256)
"""


def start_process(tmp_path: Path, files: dict[str, bytes], mirror: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment(tmp_path, files, mirror),
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_one_downloads_and_the_other_waits_for_it(
    server: HttpServer, files: dict[str, bytes], tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    server.behaviour[TRAIN_IMAGES] = Behaviour(stall_after=100_000)
    settings = settings_for(server.address)
    with start_process(tmp_path, files, server.address) as one:
        part = settings.datasets_folder / "tiny" / f"{TRAIN_IMAGES}.part"
        wait_until(part.exists)
        with start_process(tmp_path, files, server.address) as other:
            assert other.stderr is not None
            assert any("Waiting" in line for line in iter(other.stderr.readline, ""))
            server.resume.set()
            results = [process.communicate(timeout=60)[0] for process in (one, other)]
    assert results == [f"{describe_dataset('tiny', settings.dataset_catalog).sha256}\n"] * 2
    assert len(server.requests) == 4
    assert kept(settings) == files


def test_a_download_that_was_killed_is_continued_by_the_next(
    server: HttpServer, files: dict[str, bytes], tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    server.behaviour[TRAIN_IMAGES] = Behaviour(stall_after=100_000, times=1)
    settings = settings_for(server.address)
    part = settings.datasets_folder / "tiny" / f"{TRAIN_IMAGES}.part"
    with start_process(tmp_path, files, server.address) as process:
        others = [part.with_name(name) for name in FILE_NAMES if name != TRAIN_IMAGES]
        wait_until(lambda: all(map(Path.exists, others)) and part.exists() and part.stat().st_size == 100_000)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert TRAIN_IMAGES not in kept(settings)
    server.requests.clear()
    obtain(settings)
    assert server.requests == [(TRAIN_IMAGES, "bytes=100000-")]
    assert kept(settings) == files


def test_an_unknown_name_is_refused_with_the_choices(settings_for: Callable[..., Settings]) -> None:
    with pytest.raises(ArgumentError, match=r"no data set 'mnist5k'(.|\n)*It knows: tiny, tiny-sample"):
        obtain(settings_for("http://127.0.0.1:1/"), name="mnist5k")


def test_a_data_set_without_mirrors_is_refused(settings_for: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError, match=r"names no mirror for tiny(.|\n)*MNIST_MIRRORS"):
        obtain(settings_for(), "sample")


def test_a_home_that_cannot_be_written_is_a_wrong_setting(
    server: HttpServer, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(server.address)
    settings.home.mkdir()
    settings.datasets_folder.write_text("a file where the folder should be")
    with pytest.raises(SettingsError, match=r"cannot be kept in(.|\n)*PIPELINE_HOME"):
        obtain(settings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("[tiny]", "[Tiny/..]"), "cannot be read"),
        (("[tiny]", '["../tiny"]'), r"at \[../tiny\]: a name is lower-case"),
        ((f"test_images = {TEST}\n", ""), "lacks test_images"),
        ((f"test_images = {TEST}", "test_images = 0"), "test_images is 0"),
        (
            (f"test_images = {TEST}", f"test_images = {TEST}\nvalidation_images = {TRAINING}"),
            "validation_images is 600",
        ),
        ((f"test_images = {TEST}", f"test_images = {TEST}\nmirror = 'x'"), "has mirror, which is unknown"),
        ((f"test_images = {TEST}", f"test_images = {TEST}\nmirrors = 'x'"), "mirrors is 'x'"),
        ((TEST_LABELS, "labels.gz"), f"files lacks {TEST_LABELS}"),
        (('sha256 = "', 'sha256 = "0'), "expected 64 digits"),
    ],
)
def test_a_malformed_catalog_is_refused_by_what_is_wrong_in_it(
    settings_for: Callable[..., Settings], change: tuple[str, str], reason: str
) -> None:
    settings = settings_for("http://127.0.0.1:1/")
    good = settings.dataset_catalog.read_text(encoding="utf-8")
    wrong = good.replace(*change, 1)
    if change[0] == "[tiny]":
        wrong = wrong.replace("[tiny.", f"[{change[1][1:-1]}.")
    assert wrong != good
    settings.dataset_catalog.write_text(wrong, encoding="utf-8")
    with pytest.raises(SettingsError, match=reason):
        read_catalog(settings.dataset_catalog)


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (DatasetUnavailable("x"), True),
        (DatasetCorrupted("x"), False),
        (DatasetNotFound("x"), False),
        (SettingsError("x"), False),
    ],
)
def test_the_task_repeats_only_what_repeating_can_mend(error: PipelineError, repeated: bool) -> None:
    condition = download_dataset.retry_condition_fn
    # Prefect never retries where the condition is any other callable.
    assert inspect.isfunction(condition)
    assert condition(None, None, Failed(data=error)) is repeated


def test_importing_the_step_loads_nothing_heavy() -> None:
    check = "import sys, tasks.download_dataset; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["tensorflow", "keras", "sklearn", "pandas", "mlflow", "mlxtend", "ray"]
    found = subprocess.run(
        [sys.executable, "-c", check, *heavy], cwd=PROJECT_ROOT, check=True, capture_output=True, text=True
    )
    assert found.stdout == "[]\n"
