"""Results for notebooks: hits as a pandas frame, and as a figure of images.

Axes: T test, k hits, M members.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import Dataset

from .ensemble import Index, loaded, member_blocks, taken
from .records import UserError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SIDES = {"proponent": False, "opponent": True}


def frame(index: Index, test_set: Dataset, k: int = 10) -> pd.DataFrame:
    """The k strongest proponents and opponents of each test example, one row a hit.

    Columns: `test`, `side`, `rank` from 1, `train` (positions), `score`, `stderr` (standard error
    over the members; missing with a single one) and `agreement` (share of members with the
    score's sign). Raises `UserError` as `Index.search` does.
    """
    index.check_k(k)
    examples = loaded(test_set, index.ensemble.networks[0])
    blocks = member_blocks(index.ensemble, index.wholes, examples)
    u_TF = index.exact.query([taken(b, index.estimator) for b in blocks])
    parts = []
    for side, opponents in SIDES.items():
        scores_Tk, ids_Tk = index.exact.search(u_TF, k, opponents)
        for t in range(len(ids_Tk)):
            each_Mk = index.exact.member_scores(u_TF[t], ids_Tk[t])
            stderr_k = np.full(k, np.nan)
            if len(each_Mk) > 1:
                stderr_k = each_Mk.std(0, ddof=1) / np.sqrt(len(each_Mk))
            agreement_k = (np.sign(each_Mk) == np.sign(scores_Tk[t])).mean(0)
            columns = {"train": ids_Tk[t], "score": scores_Tk[t], "stderr": stderr_k}
            part = pd.DataFrame({"rank": np.arange(1, k + 1), **columns, "agreement": agreement_k})
            parts.append(part.assign(test=t, side=side))
    found = pd.concat(parts).sort_values(["test", "side", "rank"], ascending=[True, False, True])
    order = ["test", "side", "rank", "train", "score", "stderr", "agreement"]
    return found[order].reset_index(drop=True)


def figure(
    index: Index, train_set: Dataset, test_set: Dataset, test: int = 0, k: int = 6
) -> "Figure":
    """A test example beside its k strongest proponents (above) and opponents (below).

    Inputs are drawn as images, each stretched to its own darkest and lightest value. Raises
    `UserError` where they have no height and width.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    pair = test_set[test]
    hits = frame(index, [pair], k)  # type: ignore[arg-type]  # a list is a data set to torch
    titles, images = [f"test {test}, class {int(pair[1])}"], [pixels(pair[0])]
    for hit in hits.itertuples():
        x, y = train_set[hit.train]
        images.append(pixels(x))
        titles.append(f"{hit.train}, class {int(y)}<br>{hit.score:+.3g}")
    specs: list[list[dict | None]] = [[{"rowspan": 2}, *[{}] * k], [None, *[{}] * k]]
    drawn = make_subplots(
        rows=2, cols=k + 1, specs=specs, subplot_titles=titles, column_widths=[1.6, *[1] * k],
        row_titles=["proponents", "opponents"], horizontal_spacing=0.01, vertical_spacing=0.2,
    )  # fmt: skip
    places = [(1, 1), *((r, c) for r in (1, 2) for c in range(2, k + 2))]
    for (row, column), image in zip(places, images, strict=True):
        drawn.add_trace(go.Image(z=image), row=row, col=column)
    drawn.update_xaxes(visible=False).update_yaxes(visible=False)
    return drawn.update_layout(height=380, width=160 * (k + 2), margin=dict(l=10, r=40, t=50, b=10))


def pixels(x: Tensor) -> np.ndarray:
    """An input (C, H, W) or (H, W) as an RGB image, uint8 (H, W, 3)."""
    values = np.asarray(x, dtype=np.float64)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or len(values) not in (1, 3):
        raise UserError(
            found=f"an input of shape {tuple(values.shape)}",
            wanted="an image, (H, W), (1, H, W) or (3, H, W)",
            next_step="use attribution.frame, which has the hits as a table",
        )
    low, high = values.min(), values.max()
    grey = (255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.repeat(grey, 3, 0).transpose(1, 2, 0) if len(grey) == 1 else grey.transpose(1, 2, 0)
