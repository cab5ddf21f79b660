"""How many removals flip a prediction: real retraining, and the arithmetic by brute force."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from pictures import encoded, noise, written

from attribution.brittleness import BrittlenessSpec, check, flips, summary
from attribution.engine import Engine
from attribution.making import examples
from attribution.records import BuildSpec, EstimatorSpec, FeatureSpec, UserError


def test_a_prediction_flips_once_every_example_of_its_class_is_gone(tiny: Tiny):
    build = Engine(tiny.cache).open(tiny.build)
    halves = (
        examples(build.spec, build.data, half) for half in (build.data.train, build.data.test)
    )
    sure = np.argsort(-build.tests()["confidence"] * build.tests()["correct"], kind="stable")
    tests = sure[:3].tolist()
    labels = build.train_labels_N
    orders = [np.argsort(labels != build.test_labels_T[t], kind="stable") for t in tests]
    most = max(int((labels == build.test_labels_T[t]).sum()) for t in tests)
    found = flips(build.store, build.data, *halves, tests, orders, build.recipe, [0, most])
    np.testing.assert_array_equal(found, [[False, True]] * 3)


def test_the_engine_keeps_what_it_found_and_asks_about_right_predictions(tiny: Tiny):
    engine, spec = Engine(tiny.cache), BrittlenessSpec(tests=3, most=40, step=40)
    build = engine.open(tiny.build)
    found = engine.brittleness(tiny.build, spec)
    assert found["removed"] == [0, 40] and len(found["tests"]) == 3
    assert (build.predicted_T[found["tests"]] == build.test_labels_T[found["tests"]]).all()
    told: list[int] = []
    again = engine.brittleness(tiny.build, spec, lambda *_: told.append(1))
    assert again == found and not told


def test_without_a_right_prediction_there_is_nothing_to_flip(tmp_path: Path):
    """Dark and light pictures, whose test half is labelled the other way round."""
    files = {}
    for n in range(12):
        half = "test" if n < 4 else "train"
        for name, base in (("dark", 10), ("light", 200)):
            label = {"dark": "light", "light": "dark"}[name] if half == "test" else name
            files[f"{half}/{label}/{name}{n}.png"] = encoded(noise(n) // 8 + base)
    engine = Engine(tmp_path / "cache", tmp_path)
    data = engine.read(str(written(tmp_path / "some", files)))
    spec = BuildSpec(
        data=data, strategy="naive", masks=0, models=1, epochs=20, width=0.1, index_dims=8,
        features=FeatureSpec(ka=4, kg=2), estimator=EstimatorSpec(),
    )  # fmt: skip
    made = engine.build(spec)
    assert made["accuracy"] == 0
    for _ in range(2):
        with pytest.raises(UserError, match="no test image that is called right"):
            engine.brittleness(made["build"], BrittlenessSpec(tests=2, most=4, step=2))


def test_the_summary_is_what_counting_finds():
    draw = np.random.default_rng(0)
    removals = [0, 20, 40, 60]
    for _ in range(50):
        flipped = draw.random((7, 4)) < 0.2
        first = [
            next((k for k, f in zip(removals, row, strict=True) if f), None) for row in flipped
        ]
        share = [sum(f is not None and f <= k for f in first) / 7 for k in removals]
        ranked = sorted(first, key=lambda f: np.inf if f is None else f)
        assert summary(flipped, removals) == {
            "removed": removals,
            "flipped": pytest.approx(share),
            "median": ranked[3],
        }


@pytest.mark.parametrize(
    "field, value, option",
    [("tests", 0, "--tests"), ("most", 2251, "--most"), ("step", 0, "--step")],
)
def test_numbers_out_of_range_are_a_users_mistake(field, value, option):
    with pytest.raises(UserError) as told:
        check(BrittlenessSpec(**{field: value}), 4500)
    assert option in told.value.found and option in told.value.next_step
    assert "a number from 1 to" in told.value.wanted
