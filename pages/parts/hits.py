"""A training image that was found, as the grid draws it."""

import pandas as pd

from attribution.engine import Build
from attribution.records import Hit

from .opened import DOUBT
from .thumbs import inline


def hit_item(build: Build, hit: Hit, suspect: pd.Series, times: float) -> dict:
    members = build.summary["members"]
    agree = round(hit.agreement * members)
    name = build.classes[hit.label]
    error = "" if hit.stderr is None else f" ± {2 * hit.stderr:.2g}"
    return {
        "id": hit.train_id,
        "src": inline(build, "train", hit.train_id),
        "alt": f"Training image {hit.train_id}, labelled {name}",
        "caption": name,
        "doubt": int(suspect.suggested_label) if suspect.score > DOUBT else None,
        "score": hit.score,
        "stderr": hit.stderr or 0,
        "score_text": f"{hit.score * times:+.1f}",
        "agreement_text": f"{agree}/{members}",
        "shaky": hit.shaky,
        "title": f"Training image {hit.train_id}, labelled {name}. Score {hit.score:+.3g}{error}; "
        f"{agree} of {members} members agree on the direction.",
    }
