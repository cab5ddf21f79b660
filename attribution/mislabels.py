"""Which training labels are probably wrong: signals, and one ranking from them.

Every signal is in 0..1 and high where the label is suspicious. None sees the clean labels.

Axes: N training examples, C classes.
"""

import numpy as np
import pandas as pd

SIGNALS = {
    "signal_training": "While training, the networks preferred another class.",
    "signal_masks": "With parts of the networks switched off, the given label is not believed.",
    "signal_influence": "Only this very example supports its label.",
}


def suspects(
    ids: tuple[str, ...],
    labels_N: np.ndarray,
    belief_NC: np.ndarray,
    q_N: np.ndarray,
    self_influence_N: np.ndarray,
    classes: tuple[str, ...],
) -> pd.DataFrame:
    """All training examples, the most suspicious first, indexed by train_id.

    `belief_NC` is the mean over training of each class's probability, `q_N` the ensemble's mean
    1 - p of the given label under its members, `self_influence_N` the score of each example on
    itself without q.
    """
    at = np.arange(len(labels_N))
    given_N = belief_NC[at, labels_N]
    others_NC = belief_NC.copy()
    others_NC[at, labels_N] = -1
    best_N = others_NC.argmax(1)
    suggested_N = others_NC[at, best_N]
    frame = pd.DataFrame(
        {
            "example_id": ids,
            "given_label": labels_N,
            "suggested_label": best_N,
            "given_probability": given_N,
            "suggested_probability": suggested_N,
            "signal_training": (1 + suggested_N - given_N) / 2,
            "signal_masks": q_N,
            "signal_influence": percentile(self_influence_N * q_N),
        },
        index=pd.RangeIndex(len(labels_N), name="train_id"),
    )
    frame["score"] = fused(frame)
    frame["why"] = [
        f"While training, the networks believed {100 * b:.0f} % in “{classes[other]}” "
        f"and {100 * a:.0f} % in the given “{classes[label]}”."
        for label, other, a, b in zip(labels_N, best_N, given_N, suggested_N, strict=True)
    ]
    return frame.sort_values("score", ascending=False, kind="stable")


def fused(frame: pd.DataFrame) -> pd.Series:
    """One score in 0..1 from the signals."""
    return 0.8 * frame["signal_training"] + 0.2 * frame["signal_masks"]


def percentile(values_N: np.ndarray) -> np.ndarray:
    """Share of the values that each one is at least as large as."""
    return pd.Series(values_N).rank(pct=True).to_numpy()
