"""Which training labels are probably wrong: signals, and one probability from them.

Every signal is in 0..1 and high where the label is suspicious. None sees the clean labels, and nor
does what makes a probability of them.

Axes: N training examples, C classes.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from .signals import NEIGHBOURS, Evidence

SIGNALS = {
    "signal_training": "While training, the networks preferred another class.",
    "signal_masks": "With parts of the networks switched off, the given label is not believed.",
    "signal_influence": "Only this very example supports its label.",
    "signal_neighbours": "What looks alike to the networks is labelled otherwise.",
    "signal_opponents": "It works against test images of other classes.",
    "signal_unseen": "Networks that did not train on it do not believe its label.",
}
WEIGHTS = {"training": 1.0, "unseen": 0.35, "neighbours": 0.2, "opponents": 0.1}
# Of networks that nobody watched while they learnt the labels, wrong ones too.
UNWATCHED = {"training": 0.2, "unseen": 1.0, "neighbours": 1.0, "opponents": 0.35}
FLOOR = 1e-3  # added to every belief, so that none rules a class out
SHARPNESS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
AMBIGUOUS = 0.9  # quantile of the disagreement above which a label that may be right is ambiguous


def suspects(
    ids: tuple[str, ...], labels_N: np.ndarray, evidence: Evidence, classes: tuple[str, ...]
) -> pd.DataFrame:
    """All training examples, the most suspicious first, indexed by train_id.

    `score` is the probability that the label is wrong; `influence` what the example alone does for
    its own label, `disagreement` how far the networks are from saying the same of it, and `kind`
    tells by these: `wrong` more likely than not, else `ambiguous` where they disagree most, else
    `clear`. `signal_unseen` is there where the evidence has it, `signal_training` where somebody
    watched the networks while they were trained.
    """
    at = np.arange(len(labels_N))
    given_N = evidence.belief_NC[at, labels_N]
    others_NC = evidence.belief_NC.copy()
    others_NC[at, labels_N] = -1
    best_N = others_NC.argmax(1)
    suggested_N = others_NC[at, best_N]
    influence_N = evidence.self_influence_N * evidence.q_N
    opposed_N = evidence.opponents_NC.sum(1) - evidence.opponents_NC[at, labels_N]
    columns = {
        "example_id": ids,
        "given_label": labels_N,
        "suggested_label": best_N,
        "given_probability": given_N,
        "suggested_probability": suggested_N,
        **({"signal_training": (1 + suggested_N - given_N) / 2} if evidence.watched else {}),
        "signal_masks": evidence.q_N,
        "signal_influence": percentile(influence_N),
        "signal_neighbours": 1 - evidence.neighbours_NC[at, labels_N],
        "signal_opponents": percentile(opposed_N),
    }
    if evidence.unseen_NC is not None:
        columns["signal_unseen"] = 1 - evidence.unseen_NC[at, labels_N]
    frame = pd.DataFrame(columns, index=pd.RangeIndex(len(labels_N), name="train_id"))
    frame["influence"] = influence_N
    frame["disagreement"] = evidence.disagreement_N
    frame["score"] = fused(labels_N, evidence)
    frame["kind"] = kinds(frame["score"].to_numpy(), evidence.disagreement_N)
    since = "While training, the networks" if evidence.watched else "The ensemble's members"
    frame["why"] = [
        f"{since} believed {100 * b:.0f} % in “{classes[other]}” "
        f"and {100 * a:.0f} % in the given “{classes[label]}”."
        for label, other, a, b in zip(labels_N, best_N, given_N, suggested_N, strict=True)
    ]
    return frame.sort_values("score", ascending=False, kind="stable")


def kinds(score_N: np.ndarray, disagreement_N: np.ndarray) -> np.ndarray:
    """Whether each label is wrong, ambiguous or clear."""
    unsure_N = disagreement_N > np.quantile(disagreement_N, AMBIGUOUS)
    return np.where(score_N > 0.5, "wrong", np.where(unsure_N, "ambiguous", "clear"))


def fused(labels_N: np.ndarray, evidence: Evidence) -> np.ndarray:
    """The probability that each label is wrong, (N,), float64.

    The log-odds against the given label in the pooled belief are taken for two bell curves. Where
    there are networks that did not train on an example, their opinion (`doubted`) is averaged with
    that one: the two err in different ways. A logistic curve of the odds is fitted to the outcome,
    once more when it is known which classes are mistaken for which; not where nobody watched the
    networks, whose opinion is too vague to tell that.
    """
    opinion_N = bells(against(pooled(replace(evidence, unseen_NC=None)), labels_N))
    if evidence.unseen_NC is not None:
        opinion_N = (opinion_N + doubted(labels_N, evidence.unseen_NC)) / 2
    log_NC, rate_CC = pooled(evidence), np.ones((evidence.belief_NC.shape[1],) * 2)
    for _ in range(3 if evidence.watched else 1):
        p_N = logistic(against(log_NC + np.log(rate_CC[:, labels_N].T), labels_N), opinion_N)
        rate_CC = confusion(log_NC, labels_N, p_N)
    return p_N


def pooled(evidence: Evidence) -> np.ndarray:
    """Logarithm of the weighted geometric mean of all beliefs, not normalised, (N, C).

    Counts of votes become beliefs by one vote more for each class.
    """
    beliefs = {
        "training": evidence.belief_NC + FLOOR,
        "neighbours": evidence.neighbours_NC + 1 / NEIGHBOURS,
        "opponents": evidence.opponents_NC + 1,
    }
    if evidence.unseen_NC is not None:
        beliefs["unseen"] = evidence.unseen_NC + FLOOR
    weights = WEIGHTS if evidence.watched else UNWATCHED
    log_NC = np.zeros(evidence.belief_NC.shape)
    for name, belief_NC in beliefs.items():
        whole_NC = belief_NC.astype(np.float64)
        log_NC += weights[name] * np.log(whole_NC / whole_NC.sum(1, keepdims=True))
    return log_NC


def against(log_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Log-odds of all other classes against the given label, (N,)."""
    at = np.arange(len(labels_N))
    others_NC = log_NC.copy()
    others_NC[at, labels_N] = -np.inf
    most_N = others_NC.max(1)
    return most_N + np.log(np.exp(others_NC - most_N[:, None]).sum(1)) - log_NC[at, labels_N]


def confusion(log_NC: np.ndarray, labels_N: np.ndarray, wrong_N: np.ndarray) -> np.ndarray:
    """How often class c is labelled y, times the mean over all pairs of two classes, (C, C).

    Counts of a few mistakes scatter, so they are drawn towards their mean as far as chance alone
    would scatter them: counts are taken for Poisson's, their rates for gamma distributed. Of
    uniform noise nothing is left but ones.
    """
    count, classes = log_NC.shape
    at, off_CC = np.arange(count), ~np.eye(classes, dtype=bool)
    others_NC = np.exp(log_NC - log_NC.max(1, keepdims=True))
    others_NC[at, labels_N] = 0
    others_NC *= (wrong_N / np.maximum(others_NC.sum(1), 1e-300))[:, None]
    found_CC = others_NC.T @ np.eye(classes)[labels_N]
    mean, variance = found_CC[off_CC].mean(), found_CC[off_CC].var()
    if variance <= mean:  # no more than chance
        return np.ones_like(found_CC)
    shape = mean**2 / (variance - mean)
    return np.where(off_CC, (found_CC + shape) / (mean + shape), 1.0)


def doubted(labels_N: np.ndarray, unseen_NC: np.ndarray) -> np.ndarray:
    """The probability that each label is wrong by networks that did not train on it, (N,).

    True class c is labelled y with probability T[c, y]. Given what the networks believe of the
    class, raised to a power because they may be too sure or too timid, expectation-maximisation
    finds T and the posterior of the true class; the power is the one under which the given labels
    are most likely (the model of Dawid and Skene, with the networks' belief as the prior).
    """
    at, classes = np.arange(len(labels_N)), unseen_NC.shape[1]
    labelled_NC = np.eye(classes)[labels_N]
    likeliest, best_N = -np.inf, np.zeros(len(labels_N))
    for power in SHARPNESS:
        prior_NC = (unseen_NC.astype(np.float64) + FLOOR / 10) ** power
        prior_NC /= prior_NC.sum(1, keepdims=True)
        T = 0.9 * np.eye(classes) + 0.1 / classes
        for _ in range(50):
            joint_NC = prior_NC * T[:, labels_N].T
            whole_N = joint_NC.sum(1)
            counts_CC = (joint_NC / whole_N[:, None]).T @ labelled_NC + 1 / classes
            T = counts_CC / counts_CC.sum(1, keepdims=True)
        likelihood = np.log(whole_N).sum()
        if likelihood > likeliest:
            likeliest, best_N = likelihood, 1 - joint_NC[at, labels_N] / whole_N
    return best_N


def logistic(odds_N: np.ndarray, wrong_N: np.ndarray) -> np.ndarray:
    """The rising logistic curve of `odds_N` that fits probabilities `wrong_N` best, at each, (N,).

    By Newton's method; its sum is that of `wrong_N`.
    """
    centre, scale = odds_N.mean(), max(float(odds_N.std()), 1e-9)
    X = np.stack([np.ones_like(odds_N), (odds_N - centre) / scale], 1)
    beta = np.array([np.log(wrong_N.mean() / (1 - wrong_N.mean())), 0.0])
    ridge = np.diag([0, 1e-3])
    for _ in range(50):
        p_N = 1 / (1 + np.exp(-np.clip(X @ beta, -30, 30)))
        slope = X.T @ (wrong_N - p_N) - ridge @ beta
        bend = (X * (p_N * (1 - p_N))[:, None]).T @ X + ridge + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, slope)
        beta = beta + step * min(1.0, 2 / max(float(np.abs(step).max()), 1e-12))
    beta[1] = max(beta[1], 1e-6)  # more suspicious is never less probable
    return 1 / (1 + np.exp(-(X @ beta)))


def bells(odds_N: np.ndarray) -> np.ndarray:
    """The probability that each of `odds_N` belongs to the upper of two bell curves, (N,).

    Both of the same width, so that the probability rises with the odds; by
    expectation-maximisation.
    """
    low, high = np.quantile(odds_N, 0.3), np.quantile(odds_N, 0.98)
    share, width = 0.1, max(float(odds_N.std()) / 2, 1e-6)
    for _ in range(300):
        gap = max(high - low, 1e-9)
        tilt_N = gap / width**2 * (odds_N - (low + high) / 2) + np.log(share / (1 - share))
        p_N = 1 / (1 + np.exp(-np.clip(tilt_N, -700, 700)))
        share = float(np.clip(p_N.mean(), 1e-6, 1 - 1e-6))
        low = ((1 - p_N) * odds_N).sum() / max((1 - p_N).sum(), 1e-9)
        high = (p_N * odds_N).sum() / max(p_N.sum(), 1e-9)
        spread = ((1 - p_N) * (odds_N - low) ** 2 + p_N * (odds_N - high) ** 2).mean()
        width = max(float(np.sqrt(spread)), 1e-6)
    return p_N


def percentile(values_N: np.ndarray) -> np.ndarray:
    """Share of the values that each one is at least as large as."""
    return pd.Series(values_N).rank(pct=True).to_numpy()
