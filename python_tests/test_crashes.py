"""Writers that are killed, or whose disk fails, at every file operation: what is at the path
afterwards is the old or the new, whole."""

import errno
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crs_fast import _files
from crs_fast.crs.checkpoint import load_catalogue, save_bundle
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.evaluation.predictions import blank_predictions, write_predictions
from crs_fast.crs.manifest import check_files
from crs_fast.crs.training import resume, trainer
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import Catalogue, save_catalogue
from crs_fast.crs.training.train import train
from crs_fast.quantize import RQKMeans
from crs_fast.serve import CatalogueStore
from crs_fast.trie import SidTrie
from crs_fast.trie.storage import checksum

from .crs.tiny_system import ITEMS, dialogues, system
from .serve.test_catalogue import made

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill happens in a forked child")

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link"}
KILLED, FAILED = 9, 10
# Every operation takes a minute in all; CRS_FAST_EVERY_CRASH=1 does that.
STEP = 1 if os.environ.get("CRS_FAST_EVERY_CRASH") else 5


def at_operation(number, how, write):
    """Run `write` in a forked child in which file operation `number` (of those that change
    something) kills the process or fails. Returns the exit status, 0 if there are fewer."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = number

    def count():
        nonlocal left
        left -= 1
        if left == -1 and how == "kill":
            os._exit(KILLED)
        elif left == -1:
            raise OSError(errno.ENOSPC, "no space left")

    def hook(event, arguments):
        writing = event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in CHANGES:
            count()

    real = _files.exchange
    _files.exchange = lambda one, other: (count(), real(one, other))[1]
    os.fsync = lambda file: count()
    sys.addaudithook(hook)
    status = 1
    try:
        write()
        status = 0
    except OSError as error:
        status = FAILED if error.errno == errno.ENOSPC else 1
    finally:
        os._exit(status)


def contents(path):
    """What a file or all files in a folder hold. A trie's header is written in random order, so
    that its bytes differ from save to save, and with them its SHA-256 in a manifest."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): contents(file) for file in files}
    if path.suffix == ".safetensors":
        return checksum(load_file(path))
    if path.suffix == ".json":
        values = json.loads(path.read_text())
        return values | {"sha256": list(values.get("sha256", ()))}
    return path.read_bytes()


def survives(path, write, read=contents):
    """Kill and fail `write` at every operation, or at every `STEP`-th one. Returns the number of
    them."""
    old, saved = read(path), path.with_name("saved")
    shutil.copytree(path.parent, saved, ignore=lambda *_: ["saved"], symlinks=True)
    write()
    new = read(path)
    assert new != old
    operations = 0
    for how in ("kill", "fail"):
        for number in itertools.count(0 if how == "kill" else STEP // 2, STEP):
            operations += 1
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            source = saved / path.name
            shutil.copytree(source, path) if source.is_dir() else shutil.copy2(source, path)
            status = at_operation(number, how, write)
            found = read(path)
            assert found in (old, new), (how, number)
            if status == 0:
                assert found == new
                break
            assert status == (KILLED if how == "kill" else FAILED), (how, number)
        # A kill leaves what was being written, beside the path and hidden; a failure leaves nothing
        # but where deleting is what failed.
        for partial in path.parent.glob(".*.partial"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    shutil.rmtree(saved)
    print(f"{path.name}: {operations - 2} crashes")  # two runs reached the end
    return operations


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked child has none of its parent's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_text(tmp_path):
    """Result tables, reports and pointers are written by `write_text`."""
    path = tmp_path / "results.md"
    _files.write_text(path, "old\n")
    assert survives(path, lambda: _files.write_text(path, "new\n" * 9)) >= 2


def test_trie(tmp_path):
    path = tmp_path / "trie.safetensors"
    SidTrie.from_sids([[1, 2]]).save(path)
    new = SidTrie.from_sids([[3, 4], [5, 6]])
    assert survives(path, lambda: new.save(path)) >= 2


def test_predictions(tmp_path):
    path, split = tmp_path / "predictions.jsonl", dialogues(3)
    write_predictions(path, blank_predictions(split[:1]))
    assert survives(path, lambda: write_predictions(path, blank_predictions(split))) >= 2


def test_quantizer_and_the_sids_it_made(tmp_path):
    path = tmp_path / "catalogue"

    def catalogue(seed):
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed))
        quantizer = RQKMeans(levels=2, codes=4, seed=seed).fit(x)
        return Catalogue(x, quantizer.encode(x), quantizer, {"seed": seed}, {"encoder": None})

    old, new = catalogue(0), catalogue(1)
    save_catalogue(path, old)
    (path / "notes.txt").write_text("of the user")
    assert survives(path, lambda: save_catalogue(path, new)) > 4
    assert survives(path / "quantizer", lambda: old.quantizer.save_pretrained(path / "quantizer"))
    assert (path / "notes.txt").exists()


def test_bundle(tmp_path):
    path = tmp_path / "model"

    def save(seed):
        model, tokenizer, trie, vocab, control, _ = system(seed=seed)
        return lambda: save_bundle(path, (model, tokenizer), trie, vocab, control, ITEMS)

    save(0)()
    (path / "training/checkpoint-1").mkdir(parents=True)
    (path / "training/checkpoint-1/optimizer.pt").write_bytes(b"1")

    def whole(path):
        load_catalogue(path)
        check_files("test", path, json.loads((path / "crs_fast.json").read_text()))
        return contents(path)

    assert survives(path, save(1), whole) > 8
    assert (path / "training/checkpoint-1/optimizer.pt").read_bytes() == b"1"


def test_catalogue_versions(tmp_path):
    path, recommender = tmp_path / "live", made()
    CatalogueStore(recommender, path).change(add=[Item("n1", "Film 90", 2021)])

    def change():
        CatalogueStore(recommender, path).change(add=[Item("n2", "Film 91", 2022)])

    def current(folder):
        version = CatalogueStore(recommender, folder).current.version
        return version, contents(folder / "versions" / version)

    assert survives(path, change, current) > 4


def test_training_checkpoint(tmp_path, monkeypatch):
    config = TrainConfig(
        epochs=2, tokens_per_batch=400, lora_rank=None, logging_steps=1, save_steps=1
    )
    trainers = []
    train_from = trainer.PackedTrainer.train_from

    def keep(self, checkpoint):
        trainers.append(self)
        train_from(self, checkpoint)

    monkeypatch.setattr(trainer.PackedTrainer, "train_from", keep)
    model, tokenizer, trie, vocab, control, _ = system()
    parts = (model, tokenizer), dialogues(4), trie, vocab, control
    train(*parts, output_dir=tmp_path, config=config, progress=False)
    path, last = tmp_path / "training", trainers[0].state.global_step
    assert len(list(path.glob("checkpoint-*"))) == trainer.KEPT_CHECKPOINTS

    def write():
        trainers[0].state.global_step = last + 1
        trainers[0]._save_checkpoint(trainers[0].model, None)

    def newest(folder):
        checkpoint = resume.newest_checkpoint(folder, config)
        return checkpoint and (checkpoint, list(contents(Path(checkpoint))))

    assert survives(path, write, newest) > 4
