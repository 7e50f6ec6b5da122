"""Bad input: one clear message, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from trainers.__main__ import main
from trainers.limits import cpus
from trainers.runs.files import new_run_name
from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
HERE = ["--workers", "0", "--cpus-per-worker", "1"]
DIGITS = ["train", "digits.cnn", *HERE, "--epochs", "1"]
PICTURES = [*DIGITS, "--dataset", "image_folder", "--image-size", "16", "--batch-size", "16"]
BIG = ["--model-args", "num_filters=64"]  # a checkpoint of 3 MB
CORES = cpus()


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "storage"))
    for name in ("TRAINYARD_CACHE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "storage"


@pytest.fixture
def cli(storage: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process."""
    assert os.environ["TRAINYARD_STORAGE"] == str(storage)

    def run(*argv: str | Path) -> Ended:
        try:
            code = main([str(word) for word in argv])
        except SystemExit as error:
            code = int(str(error.code))
        return Ended(code, *capsys.readouterr())

    return run


def assert_refused(ended: Ended, *words: str) -> None:
    """Exit code 2, one message with the `words`, and nothing on stdout."""
    assert (ended.code, ended.out) == (2, ""), ended
    text = " ".join(ended.err.split())
    assert text.count("error: ") <= 1
    for word in words:
        assert word in text


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run_json(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def draw(folder: Path, classes: str = "ab", each: int = 10) -> Path:
    """JPEG files of 40x40 pixels in class folders."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(each):
            picture = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{index:03}.jpg")
    return folder


# Names and values --------------------------------------------------------------------------------------------


def test_wrong_names_are_reported_at_once_with_the_nearest_ones() -> None:
    """Neither torch nor Ray nor NumPy is imported for that."""
    lines = {
        "unknown recipe": (["train", "digit.cnn"], "did you mean digits.cnn"),
        "unknown command": (["trian"], "did you mean train"),
        "unknown field": (["train", "digits.cnn", "--batchsize", "3"], "--batch-size"),
        "unknown model": (["train", "digits.cnn", "--model", "linear"], "did you mean linear_cnn"),
        "unknown data set": (["train", "digits.cnn", "--dataset", "digit"], "did you mean digits"),
        "model argument": (["train", "digits.cnn", "--model-args", "num_filter=1"], "did you mean num_filters"),
        "data argument": (["train", "digits.cnn", "--dataset-args", "seed=1"], "did you mean split_seed"),
        "unknown task": (["train", "digits.cnn", "--task", "clasify"], "did you mean classify"),
        "task argument": (["train", "digits.cnn", "--task-args", "smoothing=1"], "did you mean label_smoothing"),
        "augmentation": (["train", "digits.cnn", "--augment", "hflip=0.5"], "did you mean horizontal_flip"),
        "schedule": (["train", "digits.cnn", "--schedule-args", "every=3"], "argument of schedule 'cosine'"),
    }
    code = (
        "import contextlib, io, json, sys\n"
        "from trainers.__main__ import main\n"
        "ends = []\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as printed:\n"
        "        try:\n"
        "            end = main(argv)\n"
        "        except SystemExit as error:\n"
        "            end = error.code\n"
        "    ends.append((end, printed.getvalue()))\n"
        "heavy = [name for name in ('torch', 'ray', 'numpy', 'pyarrow') if name in sys.modules]\n"
        "print(json.dumps([ends, heavy]))\n"
    )
    argv = json.dumps([argv for argv, _ in lines.values()])
    done = subprocess.run([sys.executable, "-c", code, argv], cwd=ROOT, capture_output=True, text=True)
    ends, heavy = json.loads(done.stdout)
    for (code_of_end, printed), (what, (_, expected)) in zip(ends, lines.items(), strict=True):
        assert code_of_end == 2, what
        assert expected in printed, what
    assert heavy == []  # what takes seconds to import


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr abc", "'abc' is not a number"),
        ("--lr nan", "lr=nan is not allowed"),
        ("--lr inf", "lr=inf is not allowed"),
        ("--epochs 0", "epochs=0 is not allowed"),
        ("--epochs 1.5", "'1.5' is not a whole number"),
        ("--micro-batch-size x", "'x' is not a whole number, nor none"),
        ("--image-size 0", "image_size=0x0 is not allowed"),
        ("--image-size axb", "'axb' is not a size"),
        ("--stored-size 4", "stored_size=4x4 is smaller than image_size=8x8"),
        ("--workers -1", "'-1' is not a number of workers"),
        ("--workers 3:1", "workers=3:1 is not allowed"),
        ("--workers 0:2 --micro-batch-size 8", "workers=0:2 is not allowed"),
        ("--compile maybe", "'maybe' is neither true nor false"),
        ("--optimizer sgdd", "'sgdd'"),
        ("--model resnet --model-args depth=19", "depth=19 is not allowed; model_args depth takes one of 18, 34"),
        ("--model-args num_filters", "'num_filters' is not of the form name=value"),
        ("--model-args num_filters=2.5", "num_filters of 'linear_cnn' takes a whole number"),
        ("--seed 99999999999999999999", "seed takes a number from 0 to 2**63 - 1"),
        ("--task-args label_smoothing=much", "label_smoothing of 'classify' takes a number"),
        ("--schedule step --schedule-args every=0", "every takes a whole number above 0"),
        ("--augment hue=0.7", "d at most 0.5"),
        ("--augment resized_crop=0.3,1 crop=true", "resized_crop excludes crop"),
        ("--augment resized_crop=0.3,1 pad=2", "resized_crop excludes pad"),
        ("--batch-size 64 --micro-batch-size 48", "does not divide batch_size=64; use 32 or 64"),
        ("--batch-size 64 --workers 3", "cannot be split evenly over workers=3; use 63 or 66"),
        ("--workers 1:3", "give a --micro-batch-size"),
        (f"--workers {4 * CORES + 1} --micro-batch-size 8", f"give --workers {4 * CORES} or fewer"),
        ("--data-mode stream", "give --workers 1 or more"),
        ("--run ../up", "cannot be the name of a run"),
        ("--run cache", "cannot be the name of a run"),
        ("--init-from nothing", "init_from=nothing: there is no such run"),
        ("--frozen spine", "the model has no part called 'spine'; its parts are 0, 1, 2"),
        ("--data /tmp", "leave --data /tmp out"),
        ("--model-args channels=3", "channels=3 does not fit the data, which has channels=1"),
        ("--model-args num_filters=999999999", "the model linear_cnn cannot be built"),
        ("--image-size 2", "linear_cnn needs images of at least 4x4, got 2x2"),
        ("--model resnet --image-size 4", "resnet with stem=standard needs images of at least 32x32"),
        ("--dataset-args split_seed=-1", "split_seed=-1 is out of range"),
    ],
)
def test_wrong_values_are_refused(cli: Cli, storage: Path, flags: str, words: str) -> None:
    assert_refused(cli(*DIGITS, *flags.split()), words)
    assert not storage.exists() or files(storage) == []


def test_a_path_with_spaces_that_came_as_several_words_is_quoted(tmp_path: Path, cli: Cli) -> None:
    folder = draw(tmp_path / "my photos 2024")
    words = str(folder).split()
    for command in (["train", "resnet.r18"], ["prepare", "resnet.r18"], ["evaluate", "run"]):
        ended = cli(*command, "--data", *words, "--storage", tmp_path)
        assert_refused(ended, f"--data {folder}: a path with spaces needs quotes: --data '{folder}'")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_help_without_a_recipe_shows_the_flags(cli: Cli, command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0
    for text in (
        f"usage: python -m trainers {command} RECIPE",
        "digits.cnn",
        "--image-size",
        "--data ",
        "--workers",
    ):
        assert text in ended.out


def test_the_run_that_is_being_started_is_not_offered_to_start_from(cli: Cli, storage: Path) -> None:
    for run in ("nothin", "nothings", "nothing"):
        assert_refused(cli(*DIGITS, "--init-from", "nothing", "--run", run), f"in {storage} (allowed: none); give")
    (storage / "nothings").mkdir(parents=True)
    assert_refused(
        cli(*DIGITS, "--init-from", "nothing", "--run", "nothin"), "did you mean nothings? (allowed: nothings)"
    )


def test_what_trainers_offers_is_listed() -> None:
    import trainers

    assert set(trainers.__all__) <= set(dir(trainers))


def test_a_recipe_file_that_is_broken_is_named_with_the_line(cli: Cli, tmp_path: Path) -> None:
    broken = {
        "syntax.py": ("x = 1\ndef fast(:\n", "cannot be read as Python: invalid syntax (line 2)"),
        "missing.py": ("import no_such_module\n", "No module named 'no_such_module' (missing.py, line 1)"),
        "raises.py": ("1 / 0\n", "ZeroDivisionError: division by zero (raises.py, line 1)"),
        "nothing.py": ("slow = 3\n", "has no function fast() that returns a Recipe"),
        "number.py": ("def fast():\n    return 3\n", "returned int; it must return a Recipe"),
        "inside.py": ("def fast():\n    return [][1]\n", "IndexError: list index out of range (inside.py, line 2)"),
    }
    for name, (text, words) in broken.items():
        (tmp_path / name).write_text(text)
        for _ in range(2):  # a module that failed is not kept
            assert_refused(cli("train", f"./{name}:fast"), words)
    assert_refused(cli("train", "./gone.py:fast"), f"there is no file {tmp_path}/gone.py")
    assert_refused(cli("train", "./syntax.py"), "./syntax.py:FUNCTION")


def test_a_model_file_that_is_broken_is_named_with_the_line(cli: Cli, tmp_path: Path, storage: Path) -> None:
    head = "def build(*, image_size, channels, classes, width=2 * 8):\n"
    broken = {
        "syntax.py": ("def build(:\n", "cannot be read as Python: invalid syntax (line 1)"),
        "nothing.py": ("def built(): pass\n", "has no function build()"),
        "raises.py": ("import no_such_module\n" + head + "    pass\n", "(raises.py, line 1)"),
        "inside.py": (head + "    return nowhere\n", "name 'nowhere' is not defined (inside.py, line 2)"),
    }
    for name, (text, words) in broken.items():
        (tmp_path / name).write_text(text)
        assert_refused(cli(*DIGITS, "--model", tmp_path / name), words)
    assert files(storage) == []


# Data --------------------------------------------------------------------------------------------------------


def test_data_that_cannot_be_used_is_refused(cli: Cli, tmp_path: Path, storage: Path) -> None:
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "one", classes="a")
    (tmp_path / "file.txt").write_text("hello")
    assert_refused(cli(*PICTURES), "this data set needs --data PATH")
    assert_refused(cli(*PICTURES, "--data", tmp_path / "no/where"), f"of its path, {tmp_path} does")
    assert_refused(cli(*PICTURES, "--data", tmp_path / "empty"), "is empty; give --data a folder that holds")
    assert_refused(cli(*PICTURES, "--data", tmp_path / "file.txt"), "is a file, not a folder")
    assert_refused(cli(*PICTURES, "--data", tmp_path / "one"), "holds one class folder only, 'a'")
    assert files(storage) == []


def test_bad_pictures_are_all_named_or_skipped_and_recorded(cli: Cli, tmp_path: Path, storage: Path) -> None:
    data = draw(tmp_path / "data", each=500)
    cut = data / "a/007.jpg"
    cut.write_bytes(cut.read_bytes()[:400])
    (data / "b/100.jpg").write_text("no picture")
    for index in range(200, 225):
        (data / f"b/{index}.jpg").write_bytes(b"")
    bad = {"a/007.jpg", "b/100.jpg", *(f"b/{index}.jpg" for index in range(200, 225))}

    ended = cli(*PICTURES, "--data", data)
    assert_refused(ended, "27 pictures cannot be used", "give --on-bad-image skip", "the file is empty")
    assert {line.split(":")[0].strip() for line in ended.err.splitlines() if line.startswith("  ")} == bad
    assert files(storage) == []

    ended = cli(*PICTURES, "--data", data, "--on-bad-image", "skip", "--run", "skipped")
    assert ended.code == 0
    assert "27 pictures were skipped" in ended.err
    dataset = run_json(storage / "skipped")["dataset"]
    assert {entry["name"] for entry in dataset["skipped"]} == bad
    assert sum(dataset["rows"].values()) == 1000 - 27


def test_skipping_all_pictures_of_a_split_is_refused(cli: Cli, tmp_path: Path, storage: Path) -> None:
    draw(tmp_path / "data/train")
    for picture in draw(tmp_path / "data/val", each=1).rglob("*.jpg"):
        picture.write_text("no picture")
    ended = cli(*PICTURES, "--data", tmp_path / "data", "--on-bad-image", "skip")
    assert_refused(ended, "no picture of the val split", "2 pictures cannot be used")
    assert files(storage) == []


def test_a_damaged_cache_is_prepared_again(cli: Cli, storage: Path) -> None:
    assert cli("prepare", "digits.cnn", *HERE).code == 0

    def damage(name: str, change: Callable[[Path], Any]) -> None:
        change(next((storage / "cache").glob(f"*/{name}")))
        ended = cli(*DIGITS, "--run", f"after-{name[:3]}-{change.__name__}")
        assert ended.code == 0
        assert "are damaged" in ended.err
        assert "prepared again" in ended.err
        assert len(files(storage / "cache")) == 3

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def remove(path: Path) -> None:
        path.unlink()

    damage("meta.json", cut)
    damage("train-*.arrow", cut)
    damage("val-*.arrow", remove)
    assert "are damaged" not in cli(*DIGITS).err


SLOW = """
import time
from pathlib import Path
import numpy as np
from trainers.datasets import Item, Source

def source(data, *, folder, seconds):
    args = {"folder": folder, "seconds": seconds}
    def items(split, count):
        return [Item(path=None, name=f"{split}{i}", targets=[i % 2], args=args) for i in range(count)]
    return Source(classes=["a", "b"], channels=1, splits={"train": items("train", 60), "val": items("val", 4)})

def read(item):
    folder = Path(item.args["folder"])
    (folder / "reading").mkdir(exist_ok=True)
    (folder / "reading" / item.name).touch()
    end = time.monotonic() + item.args["seconds"]
    while time.monotonic() < end and not (folder / "go").exists():
        time.sleep(0.02)
    return [(np.full((8, 8, 1), len(item.name), np.uint8), item.targets[0])]
"""


def start_slow(folder: Path, run: str, seconds: float) -> subprocess.Popen[str]:
    """Start a run in a process of its own, and wait until it is decoding pictures."""
    (folder / "slow.py").write_text(SLOW)
    flags = ["--dataset", str(folder / "slow.py"), "--dataset-args", f"folder={folder}", f"seconds={seconds}"]
    command = [sys.executable, "-m", "trainers", *DIGITS, *flags, "--run", run]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not (folder / "reading").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def test_an_interrupt_while_preparing_leaves_nothing(storage: Path, tmp_path: Path) -> None:
    process = start_slow(tmp_path, "stopped", seconds=1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=900)
    assert (process.returncode, out) == (130, "")
    assert err.strip().endswith("interrupted")
    assert "Traceback" not in err
    assert len(list((tmp_path / "reading").iterdir())) < 64  # those that were begun, not all
    assert files(storage) == []
    assert not (storage / "stopped").exists()


def test_of_two_runs_of_one_name_at_once_the_second_is_refused(cli: Cli, storage: Path, tmp_path: Path) -> None:
    process = start_slow(tmp_path, "same", seconds=60)
    assert_refused(cli(*DIGITS, "--run", "same"), "is being trained already", f"process {process.pid} on")
    (tmp_path / "go").touch()
    process.communicate(timeout=900)
    assert process.returncode == 0
    assert run_json(storage / "same")["status"] == "finished"


# Storage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk, with options such as "size=2m"; again with other options, it is changed."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options: str) -> Path:
        remount = ["-o", "remount"] if path.is_mount() else []
        command = ["mount", *remount, "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        return path

    yield mount
    if path.is_mount():
        subprocess.run(["umount", "-l", str(path)], check=True)  # shards may be mapped still


def test_storage_that_cannot_be_written_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(cli(*DIGITS, "--storage", tmp_path / "file/below"), "cannot be written: Not a directory")
    assert_refused(cli(*DIGITS, "--storage", "foo://bar"), "'foo://bar' cannot be opened")
    assert_refused(cli(*DIGITS, "--storage", tmp_path, "--run", "file"), "the folder", "give another --run")
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "file/cache"))
    assert_refused(cli(*DIGITS), "the cache", "Not a directory; set TRAINYARD_CACHE")


def test_a_disk_that_is_read_only_or_full_is_refused(cli: Cli, disk: Callable[[str], Path]) -> None:
    assert_refused(cli(*DIGITS, "--storage", disk("size=1m,ro")), "cannot be written: Read-only file system")
    path = disk("size=1m,rw")
    (path / "full").write_bytes(bytes(2**20))
    assert_refused(cli(*DIGITS, "--storage", path), "cannot be written: the disk is full")
    assert files(path) == ["full"]


def test_a_disk_that_fills_up_while_preparing_is_reported(
    cli: Cli, disk: Callable[[str], Path], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk("size=1m")
    monkeypatch.setenv("TRAINYARD_CACHE", str(path))
    ended = cli(*DIGITS, "--image-size", "64", "--data-mode", "cache")
    assert (ended.code, ended.out) == (1, "")
    assert f"cannot be written to {path}" in ended.err
    assert "the disk is full; make room there, or set TRAINYARD_CACHE" in ended.err
    assert files(path) == files(storage) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_that_is_full_at_the_first_checkpoint_is_reported(cli: Cli, disk: Callable[[str], Path]) -> None:
    path = disk("size=2m")
    ended = cli(*DIGITS, *BIG, "--storage", path, "--run", "full")
    assert ended.code == 1
    assert ended.err.count("the disk is full") == 1
    assert run_json(path / "full")["status"] == "failed"
    assert "the disk is full" in run_json(path / "full")["message"]
    assert Checkpoints(Store(path / "full")).latest() is None
    assert not [name for name in files(path) if name.endswith((".part", ".pt", ".lock", ".room"))]


def test_a_disk_that_is_full_before_the_first_step_is_reported(
    cli: Cli, disk: Callable[[str], Path], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_CACHE", str(storage / "cache"))
    path = disk("size=16k")
    ended = cli(*DIGITS, "--storage", path, "--run", "full")
    assert (ended.code, ended.out) == (1, "")
    assert f"error: {path}/full/.room: the disk is full" in ended.err
    assert files(path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_that_fills_up_later_keeps_the_checkpoint_before(cli: Cli, disk: Callable[[str], Path]) -> None:
    path = disk("size=5m")
    command = [*DIGITS[:-1], "3", *BIG, "--storage", path, "--run", "later"]
    ended = cli(*command)
    assert ended.code == 1
    assert "the disk is full" in ended.err
    assert run_json(path / "later")["status"] == "failed"
    snapshot = Checkpoints(Store(path / "later")).latest()
    assert snapshot is not None
    assert json.loads(snapshot["progress"])["epoch"] == 1

    disk("size=30m")
    ended = cli(*command)
    assert ended.code == 0
    assert "going on from step 23, in epoch 2" in ended.err
    assert run_json(path / "later")["epochs_run"] == 3


# Runs that exist ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the run "run", whose checkpoints are those of steps 23 and 46."""
    folder = tmp_path_factory.mktemp("two_epochs")
    assert main([*DIGITS[:-1], "2", "--storage", str(folder), "--run", "run"]) == 0
    return folder


@pytest.fixture
def trained(two_epochs: Path, storage: Path) -> Path:
    """The run folder of a copy of it."""
    shutil.copytree(two_epochs, storage)
    return storage / "run"


TWO = [*DIGITS[:-1], "2", "--run", "run"]


def killed_at_the_end(folder: Path) -> Path:
    """As if the run had been killed after its last checkpoint; returns that."""
    run = run_json(folder) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(run))
    return folder / "checkpoints/00000046"


def test_a_finished_run_is_not_repeated(cli: Cli, trained: Path) -> None:
    before = (trained / "run.json").read_bytes()
    ended = cli(*TWO)
    assert (ended.code, ended.out.strip()) == (0, str(trained))
    assert "has finished already; nothing is left to do" in ended.err
    assert (trained / "run.json").read_bytes() == before


def test_a_run_that_exists_with_another_recipe_names_the_fields_that_differ(cli: Cli, trained: Path) -> None:
    before = files(trained)
    ended = cli(*TWO, "--lr", "0.5", "--seed", "3")
    assert_refused(ended, "lr was 0.05 and is now 0.5", "seed was 0 and is now 3", "Give another --run")
    assert files(trained) == before


def cut_state(folder: Path) -> None:
    file = next(folder.glob("*.pt"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_a_byte(folder: Path) -> None:
    file = next(folder.glob("*.pt"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def remove_state(folder: Path) -> None:
    next(folder.glob("*.pt")).unlink()


def cut_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes()[:30])


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_state, "is damaged"),
        (change_a_byte, "is damaged: it was changed"),
        (remove_state, "cannot be read"),
        (cut_manifest, "has a broken manifest.json"),
        (empty_manifest, "has a broken manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    cli: Cli, trained: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(killed_at_the_end(trained))
    ended = cli(*TWO)
    assert ended.code == 0
    assert f"00000046 {words}" in ended.err
    assert "the one before it is used" in ended.err
    assert "going on from step 23, in epoch 2" in ended.err
    assert run_json(trained)["status"] == "finished"
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_an_intact_checkpoint_the_run_starts_from_the_beginning(cli: Cli, trained: Path) -> None:
    killed_at_the_end(trained)
    for folder in (trained / "checkpoints").iterdir():
        cut_state(folder)
    ended = cli(*TWO)
    assert ended.code == 0
    assert ended.err.count("the run starts from the beginning") == 2
    assert "epoch 1/2" in ended.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"status": "fin', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[]", "is not that of a run"),
        (b"{}", "is not that of a run"),
    ],
)
def test_a_broken_run_json_is_reported(cli: Cli, trained: Path, tmp_path: Path, text: bytes, words: str) -> None:
    (trained / "run.json").write_bytes(text)
    for command in (TWO, ["evaluate", "run"], ["predict", "run", tmp_path, "--out", tmp_path / "out"]):
        assert_refused(cli(*command), f"{trained}/run.json", words)
    assert (trained / "run.json").read_bytes() == text
    if text != b"{}":  # a report shows what there is of a run that is going on
        assert_refused(cli("report", "run"), f"{trained}/run.json")


def test_a_recipe_in_run_json_that_is_no_longer_valid_is_reported(cli: Cli, trained: Path) -> None:
    run = run_json(trained)
    run["recipe"]["lr"] = None
    (trained / "run.json").write_text(json.dumps(run))
    assert_refused(cli(*TWO), "the run run exists with an invalid recipe: lr=None", "give another --run")


@pytest.mark.usefixtures("trained")
def test_a_run_that_does_not_exist_is_reported_with_the_nearest_names(cli: Cli, tmp_path: Path) -> None:
    draw(tmp_path / "pictures")
    for command in (
        ["evaluate", "rum"],
        ["predict", "rum", tmp_path / "pictures", "--out", tmp_path / "out"],
        ["report", "rum"],
        ["report", "run", "--baseline", "rum"],
        [*DIGITS, "--init-from", "rum"],
    ):
        ended = cli(*command)
        assert_refused(ended, "rum", "no")
        assert "run" in ended.err.split("rum")[-1], ended.err
    assert not (tmp_path / "out").exists()


def test_a_run_without_what_is_asked_of_it_is_reported(cli: Cli, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "out"]
    assert_refused(cli("evaluate", "run", "--split", "tset"), "the data has no split 'tset'; it has train, val")
    assert_refused(cli("predict", "run", tmp_path / "gone", *out), f"there is no file or folder {tmp_path}/gone")
    assert_refused(cli("predict", "run", tmp_path / "empty", *out), "no pictures in")
    assert_refused(cli("report", "run", "--out", tmp_path / "no/where"), "cannot be written: No such file")
    shutil.rmtree(trained / "checkpoints")
    assert_refused(cli("evaluate", "run"), "holds no checkpoint of a finished epoch")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_fails_and_names_epoch_step_and_rate(cli: Cli, storage: Path) -> None:
    ended = cli(*DIGITS, "--lr", "1e30", "--run", "nan")
    assert ended.code == 1
    assert "loss is nan in epoch 1, step 2, at learning rate" in ended.err
    assert ended.out.strip() == str(storage / "nan")
    assert run_json(storage / "nan")["status"] == "failed"
    assert not (storage / "nan/checkpoints").exists()


def test_two_runs_that_start_in_one_second_have_names_of_their_own(storage: Path) -> None:
    first = new_run_name(Store(storage), "digits.cnn")
    (storage / first).mkdir(parents=True)
    (storage / first / "run.json").write_text("{}")
    assert new_run_name(Store(storage), "digits.cnn") != first


# Masks -------------------------------------------------------------------------------------------------------

OWN = ["train", "unet.camvid", *HERE, "--dataset", "mask_folder", "--epochs", "1", "--image-size", "32x40"]
OWN += ["--batch-size", "4", "--model-args", "base_channels=4", "depth=2", "--run", "own"]
PALETTE = [(0, 0, 0), (200, 30, 30), (30, 200, 30)]
TABLE = "name,r,g,b\nground,0,0,0\nred,200,30,30\ngreen,30,200,30\n"


def own_folder(folder: Path, form: str = "ids") -> Path:
    """8 + 4 pictures of 40x50 with masks of the classes 0, 1, 2 and, but for RGB, ignored pixels."""
    rng = np.random.default_rng(3)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = rng.integers(0, 3, (40, 50)).astype(np.uint8)
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
                folder / split / f"images/{index}.png"
            )
            save_mask(folder / split / f"masks/{index}.png", mask, form)
    if form == "rgb":
        (folder / "classes.csv").write_text(TABLE)
    return folder


def save_mask(file: Path, mask: np.ndarray, form: str) -> None:
    if form == "rgb":
        Image.fromarray(np.array(PALETTE, np.uint8)[mask]).save(file)
        return
    mask[:3] = 255
    picture = Image.fromarray(mask)
    if form == "palette":
        picture = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
        picture.putpalette([value for colour in PALETTE for value in colour] + [9] * 3 * 253)
    picture.save(file)


@pytest.mark.parametrize("form", ["ids", "palette", "rgb"])
def test_a_folder_of_ones_own_with_masks_works_in_one_command(
    cli: Cli, storage: Path, tmp_path: Path, form: str
) -> None:
    ended = cli(*OWN, "--data", own_folder(tmp_path / "mine", form))
    assert ended.code == 0, ended.err
    run = run_json(storage / "own")
    assert run["dataset"]["rows"] == {"train": 8, "val": 4}
    assert run["dataset"]["classes"] == (
        ["ground", "red", "green"] if form == "rgb" else ["class0", "class1", "class2"]
    )
    if form != "ids":
        assert run["dataset"]["colours"] == [list(colour) for colour in PALETTE]
    assert {"predictions.png", "confusion.png", "curves.png"} <= set(files(storage / "own"))
    assert 0 <= run["final"]["miou"] <= 1


def test_test_masks_that_nobody_drew_do_not_hinder_training_and_are_not_scored(cli: Cli, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    shutil.copytree(folder / "val", folder / "test")
    for number, file in enumerate((folder / "test/masks").iterdir()):
        Image.fromarray(np.full((40, 50), 255, np.uint8)).save(file)
        Image.fromarray(np.full((40, 50, 3), 9 * number, np.uint8)).save(folder / "test/images" / file.name)
    (folder / "classes.csv").write_text("name,id\nground,0\nred,1\ngreen,2\n")
    ended = cli(*OWN, "--data", folder)
    assert ended.code == 0, ended.err
    assert "the masks of the test split hold nothing but ignored pixels" in ended.err
    for flags in ([], ["--native"], ["--data", folder]):
        assert_refused(cli("evaluate", "own", *flags), "test", "nothing but ignored pixels (255)")
    assert cli("evaluate", "own", "--split", "val").code == 0


def unknown_id(folder: Path) -> None:
    (folder / "classes.csv").write_text("name,id\nground,0\nred,1\ngreen,2\n")
    mask = np.zeros((40, 50), np.uint8)
    mask[7, 9] = 77
    Image.fromarray(mask).save(folder / "train/masks/3.png")


def unknown_colour(folder: Path) -> None:
    mask = np.zeros((40, 50, 3), np.uint8)
    mask[7, 9] = (1, 2, 3)
    Image.fromarray(mask).save(folder / "train/masks/3.png")


def other_size(folder: Path) -> None:
    Image.fromarray(np.zeros((20, 25), np.uint8)).save(folder / "train/masks/3.png")


def nothing_but_ignored(folder: Path) -> None:
    (folder / "classes.csv").write_text("name,id\nground,0\nred,1\ngreen,2\n")
    for file in (folder / "val/masks").iterdir():
        Image.fromarray(np.full((40, 50), 255, np.uint8)).save(file)


@pytest.mark.parametrize(
    ("form", "harm", "words"),
    [
        ("ids", unknown_id, ["train/masks/3.png", "77"]),
        ("rgb", unknown_colour, ["train/masks/3.png", "1,2,3"]),
        ("ids", other_size, ["train/masks/3.png", "50x40", "25x20"]),
        ("ids", lambda folder: (folder / "train/masks/3.png").unlink(), ["train/images/3.png"]),
        ("ids", lambda folder: (folder / "val/images/2.png").unlink(), ["val/masks/2.png"]),
        ("ids", nothing_but_ignored, ["val", "nothing but ignored pixels (255)"]),
        ("rgb", lambda folder: (folder / "classes.csv").unlink(), ["classes.csv", "200,30,30"]),
        ("ids", lambda folder: (folder / "val/masks/2.png").write_bytes(b"no png"), ["val/masks/2.png"]),
    ],
)
def test_masks_that_do_not_fit_are_named_with_file_and_value(
    cli: Cli, storage: Path, tmp_path: Path, form: str, harm: Callable[[Path], Any], words: list[str]
) -> None:
    folder = own_folder(tmp_path / "mine", form)
    harm(folder)
    assert_refused(cli(*OWN, "--data", folder), *words)
    assert not (storage / "own").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "classify"], "task=classify does not fit the data set mask_folder, which has masks; use segment"),
        (["--task", "segment_binary"], "2 classes"),
        (
            ["--task-args", "loss=focal+dise"],
            "loss='focal+dise' is not known; choose from cross_entropy",
        ),
        (["--task-args", "stride=0"], "stride=0 is not allowed"),
        (["--task-args", "smoothing=1"], "argument of task 'segment' called 'smoothing'"),
        (["--class-weights", "median", "--task-args", "loss=dice"], "dice"),
        (["--init-from", "rum"], "init_from=rum: there is no such run"),
    ],
)
def test_what_does_not_go_with_masks_is_reported(
    cli: Cli, storage: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    ended = cli(*OWN, "--data", own_folder(tmp_path / "mine"), *flags)
    assert_refused(ended, words)
    assert not (storage / "own").exists()


def test_a_model_that_does_not_go_with_the_masks_is_reported_before_they_are_read(cli: Cli, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    few = [word for word in OWN if word not in ("--model-args", "base_channels=4", "depth=2")]
    for flags, words in (
        (["--model", "linear_cnn"], "the model linear_cnn does not go with pictures of 32x40 and task=segment"),
        (["--model", "erfnet", "--model-args", "stage=encoder"], "stride=8"),
        (["--model", "erfnet", "--task-args", "stride=8"], "stride=1"),
    ):
        assert_refused(cli(*few, "--data", folder, *flags), words)


def test_masks_are_distinguished_from_classes_of_whole_pictures(cli: Cli) -> None:
    assert_refused(cli(*DIGITS, "--task", "segment"), "which has classes of whole pictures, no masks; use classify")
