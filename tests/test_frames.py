"""Results in notebooks: frames and figures against the exact scores, and the notebook itself."""

from pathlib import Path

import dense
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch import nn
from torch.utils.data import TensorDataset
from traitlets.config import Config

import attribution
from attribution import UserError
from attribution.frames import pixels

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
N, T, K = 40, 4, 5


@pytest.fixture(scope="module")
def some():
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3))
    halves = [
        TensorDataset(
            torch.randn(n, 1, 3, 3, generator=draw), torch.randint(3, (n,), generator=draw)
        )
        for n in (N, T)
    ]
    ensemble = attribution.dropout_ensemble(network, masks=4, p=0.3)
    return attribution.build_index(ensemble, halves[0]), *halves


def test_the_frame_has_the_hits_of_the_exact_scores(some):
    index, _, test_set = some
    found = attribution.frame(index, test_set, K)
    scores_TN = index.scores(test_set)
    for t in range(T):
        for side in ("proponent", "opponent"):
            rows = found[(found["test"] == t) & (found["side"] == side)]
            ids_K, opponents = rows["train"].to_numpy(), side == "opponent"
            assert rows["rank"].tolist() == list(range(1, K + 1))
            assert dense.astray(ids_K[None], scores_TN[t : t + 1], opponents) < 1e-5
            assert dense.off(rows["score"], scores_TN[t][ids_K]) < 1e-5


def test_error_and_agreement_are_over_the_members(some):
    index, train_set, test_set = some
    network, masks = index.ensemble.networks[0], index.ensemble.masks
    hit = attribution.frame(index, test_set, K).iloc[0]
    each = []
    for m, mask in enumerate(masks):  # the same directions and q, one member's kernel at a time
        view, projections = index.wholes[0].view(mask, 0.3), index.wholes[0].projections
        train, test = (
            attribution.features.block(
                view, attribution.ensemble.loaded(half, network), projections
            ).phi_NK
            for half in (train_set, test_set)
        )
        scores_TN = dense.member_scores(train, test, index.estimator)
        each.append(scores_TN[0, hit["train"]] * float(index.exact.weight_N[hit["train"]]))
        assert m < len(masks)
    assert hit["score"] == pytest.approx(np.mean(each), rel=1e-4)
    assert hit["stderr"] == pytest.approx(np.std(each, ddof=1) / 2, rel=1e-3)
    assert hit["agreement"] == np.mean(np.sign(each) == np.sign(hit["score"]))


def test_one_member_has_no_error(some):
    index, train_set, test_set = some
    single = attribution.build_index(attribution.naive_ensemble(index.ensemble.networks), train_set)
    assert attribution.frame(single, test_set, 2)["stderr"].isna().all()


def test_the_figure_draws_the_hits(some):
    index, train_set, test_set = some
    drawn = attribution.figure(index, train_set, test_set, test=1, k=3)
    hits = attribution.frame(index, test_set, 3).query("test == 1")
    wanted = [test_set[1][0], *(train_set[i][0] for i in hits["train"])]
    assert len(drawn.data) == len(wanted)
    for trace, x in zip(drawn.data, wanted, strict=True):
        assert np.array_equal(trace.z, pixels(x))
    texts = [a.text for a in drawn.layout.annotations]
    assert all(any(text.startswith(f"{i}, class") for text in texts) for i in hits["train"])


def test_pixels_span_black_to_white():
    x = torch.linspace(-3, 5, 12).view(3, 2, 2)
    assert pixels(x).shape == (2, 2, 3)
    assert pixels(x).min() == 0 and pixels(x).max() == 255
    assert pixels(torch.eye(2))[:, :, 0].tolist() == [[255, 0], [0, 255]]
    with pytest.raises(UserError, match="an input of shape \\(12,\\)"):
        pixels(x.flatten())


@pytest.mark.parametrize("k", [0, N + 1])
def test_a_senseless_k_is_told(some, k):
    with pytest.raises(UserError, match=f"k = {k}"):
        attribution.frame(some[0], some[2], k)


def test_the_notebook_runs(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    # Over files: a port that was free may be taken by the time it is used.
    config = Config({"KernelManager": {"transport": "ipc", "ip": str(tmp_path / "kernel")}})
    done = NotebookClient(
        book, timeout=1200, startup_timeout=600, kernel_name="python3", config=config
    ).execute()
    outputs = [o for cell in done.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    shown = [o.get("data", {}) for o in outputs]
    assert any("(200, 1500)" in d.get("text/plain", "") for d in shown)
    assert any("application/vnd.plotly.v1+json" in d for d in shown)
    assert any("proponent" in d.get("text/html", "") for d in shown)


def test_the_notebook_is_kept_without_outputs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(c.get("outputs") or c.get("execution_count") for c in book.cells)
