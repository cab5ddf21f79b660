"""The command line: its JSON, its exit codes, and one sentence for each mistake.

Whole processes where the process matters; else the real `main`, which starts in milliseconds.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import typer
from conftest import Tiny, room
from scipy.stats import spearmanr

from attribution.__main__ import app, main
from attribution.engine import Engine
from attribution.records import DataSpec, EstimatorSpec

ROOT = Path(__file__).parents[1]
# What the tiny build of conftest was made by.
TINY = (
    "--noise 0.1 --models 2 --masks 2 --epochs 3 --dims 8x4 --index-dims 32 --q members "
    "--q-power 0.5"
).split()
SMALL = "--models 1 --masks 1 --epochs 1 --width 0.1 --dims 4x2 --index-dims 8".split()


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def process(*words: object, cwd: Path = ROOT, command: tuple[str, ...] = ()) -> Ended:
    """A command as a process of its own."""
    command = command or (sys.executable, "-m", "attribution")
    done = subprocess.run(
        [*command, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=1200
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(monkeypatch, capsys):
    """A command by `main`, in this process."""

    def command(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["attribution", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(ended.value.code or 0, captured.out, captured.err)

    return command


@pytest.fixture
def opened(tiny: Tiny):
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


def document(ended: Ended) -> object:
    """The one JSON document on standard output."""
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def assert_mistake(ended: Ended, found: str, wanted: str, next_step: str) -> None:
    """Exit 2, and one sentence of three parts on standard error: found; wanted: next step."""
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.splitlines() if not line.endswith(" ...")]  # progress
    assert len(lines) == 1, ended.err
    parts = re.fullmatch(r"error: (.+?); wanted (.+): (.+?)\.", lines[0])
    assert parts, lines
    for part, word in zip(parts.groups(), (found, wanted, next_step), strict=True):
        assert word in part


# What the commands say.


def test_a_build_by_command_is_one_json_document_and_done_the_second_time(tmp_path, run):
    words = ("build", *SMALL, "--cache", tmp_path / "cache", "--json")
    first = process(*words, "--threads", 2)
    made = document(first)
    assert set(made) == {
        "build", "seconds", "bytes", "train", "test", "accuracy", "coverage", "threads", "search",
        "already_done",
    }  # fmt: skip
    assert made["threads"] == 2
    assert (made["train"], made["test"], made["coverage"]) == (4500, 500, 1.0)
    assert set(made["seconds"]) == {"train", "basis", "features", "fit", "query"}
    assert all(s > 0 for s in made["seconds"].values())
    assert set(made["bytes"]) == {"checkpoints", "features", "index", "queries"}
    (rows,) = tmp_path.glob("cache/index/*/rows.faiss")
    assert made["bytes"]["index"] == rows.stat().st_size
    assert made["search"]["kind"] == "half" and made["search"]["recall"] > 0.95
    (probs,) = tmp_path.glob("cache/build/*/test_probs.npy")
    (labels,) = tmp_path.glob("cache/pixels/*/test_labels.npy")
    correct = np.load(probs).argmax(1) == np.load(labels)
    assert made["accuracy"] == pytest.approx(correct.mean())
    assert made["already_done"] is False
    assert "features ..." in first.err  # what happens is told on the other stream
    assert document(process(*words)) == made | {"already_done": True}
    told = process(*words[:-1], "--damping", 0.5, "--threads", 1)
    assert "; 1 thread)." in " ".join(told.out.split())
    words = ("mislabels", made["build"], "--cache", tmp_path / "cache", "--json")
    assert set(document(run(*words))) == {"examples"}  # no label was flipped: nothing is known


def test_a_build_that_is_done_says_so(tiny, run):
    ended = run("build", *TINY, "--cache", tiny.cache)
    assert ended.code == 0
    assert ended.out == f"Build {tiny.build} was already done: nothing to do.\n"


def test_the_list_tells_of_each_build(tiny, run):
    (found,) = document(run("list", "--cache", tiny.cache, "--json"))
    assert found == Engine(tiny.cache).builds()[0]
    assert found["build"] == tiny.build
    assert tiny.build in run("list", "--cache", tiny.cache).out


@pytest.mark.parametrize("cache", ["missing", "empty"])
def test_a_missing_or_empty_cache_has_no_builds_and_stays_as_it_is(tmp_path, run, cache):
    (tmp_path / "empty").mkdir()
    assert document(run("list", "--cache", tmp_path / cache, "--json")) == []
    ended = run("list", "--cache", tmp_path / cache)
    assert ended.code == 0 and "build" in ended.out
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("opponents", [False, True])
@pytest.mark.parametrize("target", ["label", "predicted", "3"])
def test_a_query_is_the_engines_answer(tiny, opened, run, target, opponents):
    test_id = int(np.flatnonzero(opened.predicted_T != opened.test_labels_T)[0])
    words = ["query", tiny.build, test_id, "-k", 7, "--target", target, "--cache", tiny.cache]
    words += ["--opponents"] if opponents else []
    found = document(run(*words, "--json"))
    assert set(found) == {"test_id", "label", "predicted", "target", "hits"}
    answer = opened.query(test_id, 7, target)
    hits = answer.opponents if opponents else answer.proponents
    for name in ("test_id", "label", "predicted", "target"):
        assert found[name] == getattr(answer, name)
    keys = ("train_id", "score", "stderr", "agreement", "label")
    assert found["hits"] == [{k: getattr(h, k) for k in keys} for h in hits]
    table = run(*words)
    assert table.code == 0 and answer.noise in table.out.replace("\n", " ")
    shown = [int(m) for m in re.findall(r"^│ (\d+)", table.out, re.MULTILINE)]
    assert shown == [h.train_id for h in hits]


def test_a_query_is_about_the_label_and_has_ten_hits_unless_told_otherwise(tiny, opened, run):
    wrong = np.flatnonzero(opened.predicted_T != opened.test_labels_T)[2]
    found = document(run("query", tiny.build, wrong, "--cache", tiny.cache, "--json"))
    assert found["target"] == found["label"] == opened.test_labels_T[wrong]
    assert len(found["hits"]) == 10


def test_mislabels_are_the_engines_ranking_and_what_is_known_of_it(tiny, opened, run):
    words = ("mislabels", tiny.build, "--cache", tiny.cache)
    found = document(run(*words, "-k", 30, "--json"))
    assert set(found) == {"examples", "known"}
    frame = opened.mislabels().head(30)
    assert [e["train_id"] for e in found["examples"]] == frame.index.tolist()
    for e in found["examples"]:
        assert set(e) == {
            "train_id", "given_label", "suggested_label", "score", "kind", "signals",
        }  # fmt: skip
        assert e["given_label"] == opened.train_labels_N[e["train_id"]] != e["suggested_label"]
        assert set(e["signals"]) == {
            "training", "masks", "influence", "neighbours", "opponents",
        }  # fmt: skip
        assert e["kind"] == opened.mislabels().loc[e["train_id"], "kind"]
        assert all(0 <= s <= 1 for s in [e["score"], *e["signals"].values()])
    assert set(found["known"]) == {"auc", "ap", "precision_at_k"}
    assert found["known"] == opened.known()
    table = run(*words)
    assert len(re.findall(r"^│ +\d+", table.out, re.MULTILINE)) == 20


@pytest.mark.parametrize("signal", ["training", "masks", "influence", "neighbours", "opponents"])
def test_mislabels_can_be_ranked_by_one_signal_alone(tiny, opened, run, signal):
    words = ("mislabels", tiny.build, "--by", signal, "--cache", tiny.cache)
    found = document(run(*words, "-k", 4500, "--json"))
    values = [e["signals"][signal] for e in found["examples"]]
    assert values == sorted(values, reverse=True)
    assert {e["train_id"] for e in found["examples"]} == set(range(4500))
    assert found["known"] == opened.known(signal)
    assert f" {signal} " in run(*words).out.splitlines()[1]  # a column of its own


def test_an_unknown_signal_and_one_that_is_not_there_are_told(tiny, run):
    for signal, said in (("magic", "neighbours"), ("unseen", f"folds {tiny.build}")):
        ended = run("mislabels", tiny.build, "--by", signal, "--cache", tiny.cache)
        assert ended.code == 2 and said in ended.err


def test_scores_are_an_array_of_float32_that_loads_without_pickle(tiny, opened, run, tmp_path):
    path = tmp_path / "scores.npy"
    found = document(run("scores", tiny.build, "-o", path, "--cache", tiny.cache, "--json"))
    assert found == {"file": str(path), "test": 500, "train": 4500}
    scores = np.load(path, allow_pickle=False)
    assert scores.dtype == np.float32 and scores.shape == (500, 4500)
    np.testing.assert_array_equal(scores, opened.scores())


def test_an_export_has_a_row_for_every_training_example_and_the_decisions(tiny, run, tmp_path):
    engine = Engine(tiny.cache, tmp_path / "workspace")
    build = engine.open(tiny.build)
    frame, data_id = build.mislabels(), build.data_id
    first, second, third = frame["example_id"].head(3)
    engine.decisions.decide(data_id, first, "relabel", label=4, reviewer="Zoë")
    engine.decisions.decide(data_id, second, "drop")
    engine.decisions.decide(data_id, third, "keep")
    path = tmp_path / "labels.csv"
    words = ("export", tiny.build, "--format", "csv", "-o", path, "--cache", tiny.cache)
    found = document(run(*words, "--workspace", tmp_path / "workspace", "--json"))
    assert found == {"file": str(path), "decisions": 3}
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("example_id")
    assert table["train_id"].tolist() == [str(i) for i in range(4500)]
    assert table.loc[first, ["decision", "final_label", "reviewer"]].tolist() == [
        "relabel", "4", "Zoë",
    ]  # fmt: skip
    assert table.loc[second, ["decision", "final_label"]].tolist() == ["drop", ""]
    assert table.loc[third, "final_label"] == table.loc[third, "given_label"]
    assert (table["decision"] == "").sum() == 4497


def test_the_console_script_works_from_another_folder(tiny, tmp_path):
    script = str(Path(sys.executable).with_name("probable-cause"))
    ended = process("list", "--json", "--cache", tiny.cache, cwd=tmp_path, command=(script,))
    assert [b["build"] for b in document(ended)] == [tiny.build]
    assert list(tmp_path.iterdir()) == []


def commands() -> dict[str, typer.core.TyperCommand]:
    return typer.main.get_command(app).commands


def test_the_commands_are_those_of_the_contract(run):
    contract = {"app", "build", "list", "query", "mislabels", "scores", "export"}
    assert contract <= set(commands())
    shown = run("--help")
    assert shown.code == 0 and all(name in shown.out for name in contract)


@pytest.mark.parametrize("name", commands())
def test_help_documents_every_option(run, name):
    ended = run(name, "--help")
    assert ended.code == 0 and ended.err == ""
    command = commands()[name]
    assert command.help and command.help.split("\n")[0] in ended.out
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    assert len(shown) > 1
    for parameter in shown:
        if parameter.param_type_name == "option":
            assert all(re.search(rf"(?<![\w-]){o}(?![\w-])", ended.out) for o in parameter.opts)
        assert parameter.help and parameter.help.rstrip(".") in ended.out, parameter.name


# Ground truth and evaluation.


class Judged(NamedTuple):
    """A cache with the tiny build, others beside it, and the tiny build's ground truth."""

    cache: Path
    tiny: str
    truth: str
    relative: str  # on the same networks
    others: dict[str, str]  # by the field that differs


OTHERS = {
    "data_id": {"data": DataSpec(noise=0.1, noise_seed=1)},
    "model": {"model": "cnn"},
    "width": {"width": 0.2},
    "epochs": {"epochs": 1},
}


@pytest.fixture(scope="module")
def judged(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    cache = shutil.copytree(tiny.cache, tmp_path_factory.mktemp("judged") / "cache")
    engine = Engine(cache)
    spec = engine.open(tiny.build).spec
    relative = engine.build(replace(spec, estimator=EstimatorSpec(relative=True)))["build"]
    small = replace(spec, strategy="naive", models=1, masks=0, width=0.1, epochs=1)
    bare = {name: {"width": spec.width, "epochs": spec.epochs} | change
            for name, change in OTHERS.items()}  # fmt: skip
    bare["model"] |= {"width": 1.0, "epochs": 1}
    others = {name: engine.build(replace(small, **change))["build"]
              for name, change in bare.items()}  # fmt: skip
    made = engine.truth(tiny.build, 12, 2)
    return Judged(cache, tiny.build, made.id, relative, others)


def test_a_ground_truth_by_command_is_one_document_and_done_the_second_time(judged, run):
    words = ("truth", judged.tiny, "--subsets", 12, "--seeds", 2, "--cache", judged.cache)
    before = {p: p.stat().st_mtime_ns for p in judged.cache.glob("[rt]*/*/*")}
    ended = run(*words, "--json")
    assert document(ended) == {"truth": judged.truth, "subsets": 12, "seeds": 2}
    assert {p: p.stat().st_mtime_ns for p in judged.cache.glob("[rt]*/*/*")} == before
    assert f"Ground truth {judged.truth}: 12 subsets, 2 networks" in run(*words).out
    assert "wide" not in ended.err


def test_the_lds_is_spearmans_correlation_of_summed_scores_with_retrained_margins(judged, run):
    builds = [judged.tiny, judged.relative]
    rows = document(run("evaluate", *builds, "--cache", judged.cache, "--json"))
    margins_SRT = np.load(judged.cache / "truth" / judged.truth / "margins.npy")
    assert margins_SRT.shape == (12, 2, 500)
    subsets_SN = Engine(judged.cache).truth(judged.tiny, 12, 2).subsets_SN
    for name, row in zip(builds, rows, strict=True):
        build = Engine(judged.cache).open(name)
        predicted_TS = build.scores().astype(float) @ subsets_SN.T
        each = [spearmanr(p, m).statistic
                for p, m in zip(predicted_TS, margins_SRT.mean(1).T, strict=True)]  # fmt: skip
        assert row["lds"] == pytest.approx(np.mean(each), abs=2e-3)
        assert row["build"] == name
        assert row["lds_low"] < row["lds_high"] <= 1
        assert row["truth"] == judged.truth and (row["subsets"], row["seeds"]) == (12, 2)
        halves = [spearmanr(*margins_SRT[:, :, t].T).statistic for t in range(500)]
        half = np.mean(halves)
        assert row["ceiling"] == pytest.approx(np.sqrt(2 * half / (1 + half)))
        for cost in ("seconds", "bytes", "flops", "peak_memory", "members", "ensemble"):
            assert row[cost] == build.summary[cost]
    assert rows[0]["lds"] != rows[1]["lds"]
    again = run("evaluate", *builds, "--truth", judged.truth, "--cache", judged.cache, "--json")
    assert document(again) == rows
    table = run("evaluate", judged.tiny, "--cache", judged.cache).out
    assert judged.tiny in table and f"{rows[0]['lds']:.3f}" in table
    assert f"{rows[0]['ceiling']:.3f}" in table


@pytest.mark.parametrize("field", OTHERS)
def test_a_truth_of_other_data_labels_or_networks_is_refused_by_the_field(judged, run, field):
    build = judged.others[field]
    ended = run("evaluate", build, "--truth", judged.truth, "--cache", judged.cache, "--json")
    assert_mistake(ended, judged.truth, "data, labels and network", f"truth {build}")
    assert field in ended.err
    ended = run("evaluate", build, "--cache", judged.cache)  # nor is it taken unasked
    assert_mistake(
        ended, f"no ground truth for build {build}", "retrained", f"attribution truth {build}"
    )


@pytest.mark.parametrize("truth", ["0123456789ab", "..", "../build"])
def test_an_unknown_truth_is_told_with_the_known_ones(judged, run, truth):
    ended = run("evaluate", judged.tiny, "--truth", truth, "--cache", judged.cache)
    assert_mistake(ended, f"no ground truth {truth!r}", judged.truth, f"truth {judged.tiny}")


def test_a_build_without_a_truth_is_not_evaluated(tiny, run):
    ended = run("evaluate", tiny.build, "--cache", tiny.cache, "--json")
    command = f"python -m attribution truth {tiny.build}"
    assert_mistake(ended, f"no ground truth for build {tiny.build}", "retrained", command)


@pytest.mark.parametrize(
    ("words", "found", "wanted"),
    [("--subsets 1", "--subsets 1", "from 2"), ("--seeds 0", "--seeds 0", "from 1"),
     ("--subsets -4", "--subsets -4", "from 2")],
)  # fmt: skip
def test_a_truth_of_nothing_is_a_mistake(tiny, run, words, found, wanted):
    ended = run("truth", tiny.build, *words.split(), "--cache", tiny.cache)
    assert_mistake(ended, found, wanted, found.split()[0])
    assert not (tiny.cache / "truth").exists() and not (tiny.cache / "retrained").exists()


def test_few_subsets_are_warned_of_on_standard_error(judged, run):
    words = ("truth", judged.others["width"], "--subsets", 3, "--seeds", 1, "--json")
    ended = run(*words, "--evaluate", "--cache", judged.cache)
    assert document(ended)["subsets"] == 3
    assert "Only 3 subsets: the intervals are wide" in ended.err
    row = Engine(judged.cache).evaluated(judged.others["width"])
    assert row["subsets"] == 3 and row["ceiling"] is None  # one seed tells none


@pytest.mark.parametrize("command", ["truth {b}", "evaluate {b}"])
def test_a_truth_of_an_unknown_build_is_a_mistake(judged, run, command):
    ended = run(*command.format(b="0123456789ab").split(), "--cache", judged.cache)
    assert_mistake(ended, "no build '0123456789ab'", judged.tiny, "list")


# Mistakes.

MISTAKES = {
    "data": ("build --data cifar", "unknown data set 'cifar'", "mnist5k", "--data"),
    "model": ("build {data} --model mpl", "unknown network 'mpl'", "mlp, cnn, resnet9", "--model"),
    "timm": ("build {data} --model timm:resnet999", "'resnet999'", "resnet", "--model timm:NAME"),
    "torchvision": (
        "build {data} --model torchvision:resnet999", "'resnet999'", "resnet18", "--model",
    ),
    "strategy": ("build --strategy luck", "'luck'", "naive, dropout", "--strategy"),
    "estimator": ("build --estimator x", "'x'", "trak, graddot, gradcos", "--estimator"),
    "basis": ("build --basis x", "'x'", "own, random", "--basis"),
    "noise kind": (
        "build --noise .1 --noise-kind x", "kind of noise 'x'", "uniform, class", "--noise-kind",
    ),
    "masks": ("build --masks 0", "--masks 0", "from 1", "--masks"),
    "threads": ("build --threads -1", "--threads -1", "from 0 to 1024", "--threads"),
    "models": ("build --models 0", "--models 0", "from 1", "--models"),
    "dropout": ("build --dropout 1", "--dropout 1", "from 1e-06 to 0.999", "--dropout"),
    "noise": ("build --noise 1.5", "1.5", "at least 0 and below 1", "--noise"),
    "negative noise": ("build --noise -.1", "-0.1", "at least 0 and below 1", "--noise"),
    "nan noise": ("build --noise nan", "nan", "at least 0 and below 1", "--noise"),
    "damping": ("build --damping -1", "--damping -1", "from 0", "--damping"),
    "dims": ("build --dims 64", "--dims '64'", "64x8", "KAxKG"),
    "zero dims": ("build --dims 0x8", "--dims '0x8'", "two positive numbers", "KAxKG"),
    "odd dims": ("build --dims 6x8x3", "--dims '6x8x3'", "two positive numbers", "KAxKG"),
    "negative dims": ("build --dims -6x8", "--dims '-6x8'", "two positive numbers", "KAxKG"),
    "port": ("app --port 0", "port 0", "1 to 65535", "--port"),
    "large port": ("app --port 65536", "port 65536", "1 to 65535", "--port"),
    "unknown build": ("query 0123456789ab 0", "'0123456789ab'", "{build}", "list"),
    "a path as a build": ("scores ../../x -o {tmp}/s.npy", "'../../x'", "{build}", "list"),
    "naive with masks": (
        "build --strategy naive --masks 4", "naive with 4 masks", "independent", "--masks",
    ),
    "adapters of none": ("build --strategy lora --adapters 0", "--adapters 0", "from 1", "--adap"),
    "rank": (
        "build {data} --strategy lora --rank 129", "--rank 129 for layer 1", "from 1 to 128",
        "--rank",
    ),
    "targets": (
        "build {data} --strategy lora --targets q,v", "no layer named q, v", "1, 4, 7", "--targets",
    ),
    "snapshots": (
        "build --strategy snapshots --epochs 3", "--snapshots 5 of 3 epochs", "an epoch", "--snap",
    ),
    "draws": ("build --strategy draws", "the data's own basis", "random directions", "--basis"),
    "mixture": (
        "build --strategy lora --finetunes 2", "finetunes and adapters", "one of", "--adapters",
    ),
    "q": ("build --q x", "unknown q 'x'", "members, training", "--q"),
    "test id": ("query {build} 500", "test id 500", "from 0 to 499", "choose"),
    "negative test id": ("query {build} -- -1", "test id -1", "from 0 to 499", "choose"),
    "k": ("query {build} 0 -k 4501", "k = 4501", "1 to 4500", "smaller -k"),
    "k of none": ("query {build} 0 -k 0", "k = 0", "1 to 4500", "larger -k"),
    "k of mislabels": ("mislabels {build} -k 4501", "k = 4501", "1 to 4500", "smaller -k"),
    "target": ("query {build} 0 --target cat", "'cat'", "label, predicted", "choose"),
    "format": ("export {build} -o {tmp}/x --format xls", "'xls'", "csv", "--format"),
    "folder of the export": (
        "export {build} -o {tmp}/no/x.csv", "cannot be written (no such file", "a folder", "-o",
    ),
    "folder of the scores": (
        "scores {build} -o {tmp}/no/x.npy", "cannot be written (no such file", "a folder", "-o",
    ),
    "a folder as output": ("scores {build} -o {tmp}", "is a directory", "a file", "-o"),
    "output refused": ("scores {build} -o /proc/x.npy", "/proc/x.npy cannot", "a file", "-o"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(tiny, run, tmp_path, case):
    command, *said = MISTAKES[case]
    words = command.format(build=tiny.build, tmp=tmp_path, data="--noise 0.1").split()
    words[1:1] = ["--cache", str(tiny.cache)]
    before = sorted(p for p in tiny.cache.rglob("*") if "locks" not in p.parts)
    found, wanted, next_step = (w.format(build=tiny.build) for w in said)
    assert_mistake(run(*words), found, wanted, next_step)
    assert sorted(p for p in tiny.cache.rglob("*") if "locks" not in p.parts) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["query {b} 0", "mislabels {b}", "scores {b} -o x.npy"])
@pytest.mark.parametrize("cache", ["missing", "empty"])
def test_a_build_of_a_missing_or_empty_cache_is_unknown(tmp_path, run, cache, command):
    (tmp_path / "empty").mkdir()
    ended = run(*command.format(b="0123456789ab").split(), "--cache", tmp_path / cache)
    assert_mistake(ended, f"no build '0123456789ab' in {tmp_path}", "a finished build", "`build`")


@pytest.mark.parametrize("command", ["build", "list", "query x 0", "export x -o y"])
def test_a_cache_that_is_a_file_is_a_mistake(tmp_path, run, command):
    (tmp_path / "cache").write_text("a file")
    ended = run(*command.split(), "--cache", tmp_path / "cache")
    assert_mistake(ended, "cache is a file", "a folder", "--cache")
    assert (tmp_path / "cache").read_text() == "a file"


@pytest.mark.parametrize("cache", ["/proc/cache", "{file}/cache"])
def test_a_cache_that_cannot_be_written_is_a_mistake(tmp_path, run, cache):
    (tmp_path / "file").write_text("a file")
    cache = cache.format(file=tmp_path / "file")
    ended = run("build", *SMALL, "--cache", cache)
    assert_mistake(ended, f"the cache {cache} cannot be written", "may write to", "--cache")


def test_a_cache_without_room_is_a_mistake_and_what_is_finished_stays(tiny, run, tmp_path):
    cache = shutil.copytree(tiny.cache, tmp_path / "cache")
    before = sorted(p for p in cache.rglob("*") if "locks" not in p.parts)
    with room(20_000):
        ended = run("build", *TINY, "--seed", "9", "--cache", cache)
    assert_mistake(ended, f"the cache {cache} cannot be written", "with room", "--cache")
    assert sorted(p for p in cache.rglob("*") if "locks" not in p.parts) == before


@pytest.mark.parametrize("command", ["scores {b}", "export {b} --force"])
def test_an_output_that_finds_no_room_leaves_the_old_file_as_it_was(tiny, run, tmp_path, command):
    path = tmp_path / "out"
    path.write_text("of yesterday")
    with room(20_000):
        ended = run(*command.format(b=tiny.build).split(), "-o", path, "--cache", tiny.cache)
    assert_mistake(ended, "out cannot be written (file too large)", "a file", "-o")
    assert path.read_text() == "of yesterday"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("index/*/rows.faiss", "query {b} 0"),
        ("index/*/queries.npy", "query {b} 0"),
        ("build/*/manifest.json", "query {b} 0"),
        ("build/*/test_probs.npy", "mislabels {b}"),
        ("run/*/belief.npy", "mislabels {b}"),
        ("features/*/train_phi.npy", "scores {b} -o {tmp}/x.npy"),
        ("run/*/belief.npy", "export {b} -o {tmp}/x.csv"),
    ],
)
def test_a_damaged_artifact_is_named_and_its_way_back_works(tiny, run, tmp_path, file, command):
    cache = shutil.copytree(tiny.cache, tmp_path / "cache")
    path = sorted(cache.glob(file))[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    words = command.format(b=tiny.build, tmp=tmp_path).split()
    ended = run(*words, "--cache", cache)
    assert_mistake(ended, f"{path} is damaged", "manifest", "run the same `build` again")
    shutil.rmtree(path.parent)  # as the sentence says
    assert run("build", *TINY, "--cache", cache).code == 0
    assert run(*words, "--cache", cache).code == 0


NETWORKS = {
    "raises when imported": ("1 / 0", "raised ZeroDivisionError: division by zero"),
    "raises when called": ("def net(): raise KeyError('no such layer')", "'no such layer'"),
    "raises in two lines": ("def net(): raise OSError('first\\nsecond')", "OSError: first;"),
    "exits": ("import sys\nsys.exit(3)", "raised SystemExit: 3"),
    "is no Python": ("def net(:", "raised SyntaxError"),
    "has no function": ("def other(): pass", "no attribute 'net'"),
    "returns nothing": ("def net(): pass", "returned NoneType"),
    "wants arguments": ("def net(classes): pass", "missing 1 required positional argument"),
    "returns too few classes": (
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 4))",
        "returns shape (2, 4)",
    ),
    "fails on the images": (
        "from torch import nn\ndef net(): return nn.Linear(5, 10)",
        "cannot be multiplied",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_file_that_fails_is_a_mistake(tiny, run, tmp_path, kind):
    code, found = NETWORKS[kind]
    (tmp_path / "own.py").write_text(code)
    cache = shutil.copytree(tiny.cache, tmp_path / "cache")
    ended = run("build", *SMALL, "--model", f"{tmp_path}/own.py:net", "--cache", cache)
    assert "own.py" in ended.err
    assert found in ended.err
    assert_mistake(ended, "own.py", "", "--model")
    assert [b["build"] for b in Engine(cache).builds()] == [tiny.build]


def test_a_network_file_that_is_missing_is_a_mistake(tiny, run, tmp_path):
    ended = run("build", *TINY, "--model", f"{tmp_path}/own.py:net", "--cache", tiny.cache)
    assert_mistake(ended, f"no file {tmp_path}/own.py", "FILE.py:FUNCTION", "--model")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("biuld", "biuld"),
        ("build --nose 3", "--nose"),
        ("build --noise much", "--noise"),
        ("query", "build_id"),
        ("query x first", "test_id"),
        ("scores x", "-o"),
    ],
)
def test_words_that_no_command_takes_are_named_with_the_help_to_read(run, words, named):
    ended = run(*words.split())
    assert ended.code == 2 and ended.out == ""
    assert named in ended.err
    assert "--help" in ended.err and "Traceback" not in ended.err


def test_a_mistake_in_a_process_leaves_standard_output_empty(tiny):
    ended = process("query", tiny.build, 999, "--json", "--cache", tiny.cache)
    assert_mistake(ended, "test id 999", "from 0 to 499", "choose")


FAILS_BACKWARDS = """
import torch
from torch import nn

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("no way back")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x):
        return Once.apply(self.layer(x.flatten(1)))
"""


def test_the_unforeseen_ends_with_1_and_the_path_of_a_log(tiny, run, tmp_path, monkeypatch):
    """Such as a network that computes logits, as was checked, but no gradients."""
    (tmp_path / "own.py").write_text(FAILS_BACKWARDS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = shutil.copytree(tiny.cache, tmp_path / "cache")
    ended = run("build", *SMALL, "--model", f"{tmp_path}/own.py:Net", "--cache", cache)
    assert ended.code == 1 and ended.out == ""
    assert "Traceback" not in ended.err and "no way back" not in ended.err
    (log,) = tmp_path.glob("attribution-*.log")
    assert str(log) in ended.err.splitlines()[-1]
    text = log.read_text()
    assert "Traceback" in text and "RuntimeError: no way back" in text
    assert f"--model {tmp_path}/own.py:Net" in text
    assert [b["build"] for b in Engine(cache).builds()] == [tiny.build]


# Exports and imports.


def test_an_export_over_something_is_refused_and_force_replaces_it(tiny, run, tmp_path):
    words = ("export", tiny.build, "--cache", tiny.cache, "--format", "parquet")
    path = tmp_path / "labels.parquet"
    assert run(*words, "-o", path).code == 0
    path.write_text("of yesterday")
    ended = run(*words, "-o", path)
    assert_mistake(ended, f"{path} is there already", "where nothing is", "--force")
    with room(20_000):
        ended = run(*words, "-o", path, "--force")
    assert_mistake(ended, f"{path} cannot be written (file too large)", "a file", "-o")
    assert path.read_text() == "of yesterday" and list(tmp_path.iterdir()) == [path]
    assert run(*words, "-o", path, "--force").code == 0
    assert len(pd.read_parquet(path)) == 4500
    for other in (tmp_path, Path("/dev/null")):  # never, whatever is said
        assert_mistake(run(*words, "-o", other, "--force"), str(other), "a file", "another path")
    assert Path("/dev/null").is_char_device()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_folder_is_written_whole_and_only_an_export_is_ever_replaced(tiny, run, tmp_path):
    words = ("export", tiny.build, "--cache", tiny.cache, "--format", "folder")
    path = tmp_path / "digits"
    path.mkdir()
    assert run(*words, "-o", path).code == 0  # an empty folder is free
    images = sorted(p.relative_to(path) for p in path.rglob("*.png"))
    assert len(images) == 4500
    assert_mistake(run(*words, "-o", path), "is there already", "where nothing is", "--force")

    (path / "old").write_text("a file of the old export")
    with room(20_000):  # the images fit, the table of them does not
        ended = run(*words, "-o", path, "--force")
    assert_mistake(ended, f"{path} cannot be written (file too large)", "a folder", "-o")
    assert (path / "old").exists() and list(tmp_path.iterdir()) == [path]

    assert run(*words, "-o", path, "--force").code == 0
    assert not (path / "old").exists() and list(tmp_path.iterdir()) == [path]
    assert sorted(p.relative_to(path) for p in path.rglob("*.png")) == images


def test_a_folder_of_other_things_is_never_replaced(tiny, run, tmp_path):
    words = ("export", tiny.build, "--cache", tiny.cache, "--format", "cvat")
    (tmp_path / "thesis.tex").write_text("of a year")
    ended = run(*words, "-o", tmp_path, "--force")
    assert_mistake(ended, f"{tmp_path} holds other things", "an export to replace", "-o")
    ended = run(*words, "-o", tmp_path / "thesis.tex", "--force")
    assert_mistake(ended, "thesis.tex is no folder", "a folder", "-o")
    ended = run(*words, "-o", tmp_path / "no" / "cvat")
    assert_mistake(ended, "cannot be written (no such file", "a folder", "-o")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_named_as_an_archive_is_one(tiny, run, tmp_path):
    path = tmp_path / "digits.zip"
    words = ("export", tiny.build, "--cache", tiny.cache, "--format", "fiftyone", "-o", path)
    assert document(run(*words, "--json")) == {"file": str(path), "decisions": 0}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {"labels.json", "export.json"} < set(archive.namelist())


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "kept"), [("n", True), ("y", False)])
def test_on_a_terminal_an_export_over_something_is_asked_first(tiny, tmp_path, answer, kept):
    path = tmp_path / "labels.csv"
    path.write_text("of yesterday")
    ours, its = os.openpty()
    words = ("-m", "attribution", "export", tiny.build, "--cache", tiny.cache, "-o", path)
    asked = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdin=its, stderr=its, stdout=subprocess.DEVNULL
    )
    os.close(its)
    shown = b""
    while b"Replace it? [y/N]" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, f"{answer}\n".encode())
    assert asked.wait(100) == int(kept)
    os.close(ours)
    assert (path.read_text() == "of yesterday") == kept


def test_decisions_go_out_and_come_back_by_command(tiny, run, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    log, data_id = Engine(tiny.cache, old).decisions, Engine(tiny.cache).open(tiny.build).data_id
    ids = Engine(tiny.cache).open(tiny.build).train_ids
    log.decide(data_id, ids[3], "drop", reviewer="Anna")
    log.decide(data_id, ids[4], "relabel", label=7, reviewer="Anna")
    log.decide(data_id, "f" * 16 + "-0", "keep")  # of an example that was taken away
    path = tmp_path / "labels.csv"
    words = (tiny.build, "--cache", tiny.cache)
    found = document(run("export", *words, "-o", path, "--workspace", old, "--json"))
    assert found == {"file": str(path), "decisions": 3, "aside": ["f" * 16 + "-0"]}
    told = run("export", *words, "-o", path, "--workspace", old, "--force")
    assert f"the data no longer has: 1 ('{'f' * 16}-0')." in told.out
    with path.open("a") as file:
        file.write("gone,0,,,,drop,,,,,\r\n")
    found = document(run("import", *words, path, "--workspace", new, "--json"))
    assert found["decided"] == {"drop": 1, "relabel": 1} and found["unknown_examples"] == ["gone"]
    stand = Engine(tiny.cache, new).decisions.in_force(data_id)
    assert {(d.example_id, d.verdict, d.label, d.reviewer) for d in stand.values()} == {
        (ids[3], "drop", None, "Anna"), (ids[4], "relabel", 7, "Anna"),
    }  # fmt: skip
    told = run("import", *words, path, "--workspace", new)
    assert "made: 0; standing already: 2; examples undecided: 4498." in told.out
    assert "Left out, examples that this data does not have: 1 ('gone')." in told.out


def test_a_file_that_is_no_export_is_a_mistake_to_import(tiny, run, tmp_path):
    words = ("import", tiny.build, "--cache", tiny.cache, "--workspace", tmp_path)
    path = tmp_path / "file"
    path.write_text("[{")
    ended = run(*words, path, "--format", "label-studio")
    assert_mistake(ended, "is no export of decisions", "label-studio", "another file")
    ended = run(*words, path, "--format", "cvat")
    assert_mistake(ended, "unknown format 'cvat'", "csv, label-studio", "--format")
