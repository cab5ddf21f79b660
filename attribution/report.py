"""One page that can be sent to someone: a prediction with its hits, or what a review decided.

A file of its own: images inside it, no script, nothing fetched. Every name is text.
"""

import html
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .exchange import png
from .records import Decision, Hit, fits, pushing
from .testlabels import Labels

if TYPE_CHECKING:
    from .build import Build

MOST = 300  # decisions with their pictures; the export has them all
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.about, figcaption { color: #6b7280; font-size: .85rem; }
.hits { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; width: 6.5rem; overflow-wrap: anywhere; }
img { width: 6.5rem; height: 6.5rem; object-fit: contain; image-rendering: pixelated; }
figure.main, figure.main img { width: 13rem; } figure.main img { height: 13rem; }
figcaption b { color: CanvasText; }
table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0; vertical-align: top; }
"""


def prediction(
    build: "Build",
    test_id: int,
    k: int = 12,
    target: str | int = "predicted",
    labels: Labels | None = None,
) -> str:
    """A test prediction with its strongest proponents and opponents, as an HTML page.

    With `labels`, right or wrong by those in force. Raises `UserError` as `Build.query` does.
    """
    answer = build.query(test_id, min(k, len(build.train_labels_N)), target)
    names = build.classes
    predicted = names[answer.predicted]
    label, verdict = "without a label", ""
    if answer.label is not None:
        label = f"labelled <b>{text(names[answer.label])}</b>"
        known = answer.label if labels is None else int(labels.labels_T[test_id])
        if known != answer.label:
            label += f", corrected to <b>{text(names[known])}</b>"
        if labels is None or labels.kept_T[test_id]:
            verdict = ", correctly" if known == answer.predicted else ", wrongly"
        else:
            label += ", excluded"
    probs_C = build.probs_TC[test_id]
    believed = "".join(
        f"<tr><td>{text(names[c])}</td><td>{probs_C[c]:.1%}</td></tr>"
        for c in (-probs_C).argsort()[:5]
    )
    body = [
        figure(build, "test", test_id, label, "main"),
        f"<p>Called <b>{text(predicted)}</b>{verdict}.</p><table>{believed}</table>",
        f"<h2>Pushed towards {text(names[answer.target])}: proponents</h2>",
        hits(build, pushing(answer.proponents, 1)),
        f"<h2>Pushed away from {text(names[answer.target])}: opponents</h2>",
        hits(build, pushing(answer.opponents, -1)),
        f"<p class=about>A training image's score is how much it is estimated to have raised "
        f"(+) or lowered (−) the networks' confidence in this class. {text(answer.noise)}</p>",
    ]
    return page(build, f"Why test image {test_id} is called {predicted}", body)


def review(build: "Build", decisions: Mapping[str, Decision]) -> str:
    """What was decided on a build's training images, as an HTML page."""
    at = {example: n for n, example in enumerate(build.train_ids)}
    sound = (d for e, d in decisions.items() if e in at and fits(d, len(build.classes)))
    known = sorted(sound, key=lambda d: d.seq)
    counts = Counter(d.verdict for d in known)
    told = ", ".join(f"{count} {text(verdict)}" for verdict, count in counts.most_common())
    body = [f"<p>{len(known)} of {len(at):,} training images decided: {told or 'none yet'}.</p>"]
    if len(decisions) > len(known):
        body.append(f"<p>{len(decisions) - len(known)} decisions are on images that are gone.</p>")
    for verdict in counts:
        some = [d for d in known if d.verdict == verdict]
        body.append(f"<h2>{text(verdict).capitalize()} · {len(some)}</h2><div class=hits>")
        body += [decided(build, at[d.example_id], d) for d in some[:MOST]]
        body.append("</div>")
        if len(some) > MOST:
            body.append(f"<p class=about>and {len(some) - MOST} more; the export has all.</p>")
    return page(build, "What was decided", body)


def decided(build: "Build", train_id: int, decision: Decision) -> str:
    given = text(build.classes[build.train_labels_N[train_id]])
    new = "" if decision.label is None else f" → <b>{text(build.classes[decision.label])}</b>"
    by = f"<br>{text(decision.reviewer)}" if decision.reviewer else ""
    return figure(build, "train", train_id, f"{given}{new}{by}<br>{text(decision.time[:16])}")


def hits(build: "Build", found: Iterable[Hit]) -> str:
    return "".join(["<div class=hits>", *(hit(build, one) for one in found), "</div>"])


def hit(build: "Build", one: Hit) -> str:
    error = "" if one.stderr is None else f" ± {2 * one.stderr:.2g}"
    shaky = ", shaky" if one.shaky else ""
    words = f"<b>{text(build.classes[one.label])}</b><br>{one.score:+.2g}{error}{shaky}"
    return figure(build, "train", one.train_id, words)


def figure(build: "Build", split: str, position: int, words: str, kind: str = "") -> str:
    """An image inside the page; `words` is HTML."""
    data = b64encode(png(build.image(split, position))).decode()
    name = f"{split}ing image {position}" if split == "train" else f"test image {position}"
    return (
        f'<figure class="{kind}"><img alt="{name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{name}<br>{words}</figcaption></figure>"
    )


def page(build: "Build", title: str, body: Iterable[str]) -> str:
    summary = build.summary
    known = f"test accuracy {summary['accuracy']:.1%} · " if build.labelled else ""
    facts = (
        f"{summary['data']} · {summary['model']} · {summary['ensemble']}, {summary['estimator']} · "
        f"{known}build {build.id} of {summary['created'][:10]}"
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{STYLE}</style>"
        f"<h1>{text(title)}</h1><p class=about>{text(facts)}</p>{''.join(body)}</html>"
    )


def text(words: object) -> str:
    return html.escape(str(words))
