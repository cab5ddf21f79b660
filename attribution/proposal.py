"""Settings for a build on data that nobody has built on: a few rules, in one place, with a reason.

The rules aim at a build that two processor cores finish while a person has a coffee; a probe
(`estimate`) then says what it will take on this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .models import MODELS

SEEN = 225_000  # images that each network is to see in its training
FEWEST, MOST = 10, 150  # epochs
WORK = 2e13  # floating-point operations of all trainings; about ten minutes on two cores
WIDTHS = (1.0, 0.5, 0.25, 0.125)  # of resnet9
ENOUGH = 1000  # images below which a deep network has too little to learn from


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings of a build, and one sentence why."""

    model: str
    width: float = 1.0
    epochs: int
    models: int
    masks: int
    why: str

    @property
    def options(self) -> list[str]:
        """What `attribution build` takes beside the data."""
        width = [] if self.width == 1 else ["--width", f"{self.width:g}"]
        size = ["--models", str(self.models), "--masks", str(self.masks)]
        return ["--model", self.model, *width, "--epochs", str(self.epochs), *size]


def proposed(found: Mapping[str, Any]) -> Proposal:
    """Settings for data as `Engine.described` describes them."""
    count, size, channels = found["train"], found["size"], found["channels"]
    epochs = min(max(5 * round(SEEN / count / 5), FEWEST), MOST)
    models, masks = (5, 20) if count <= 10_000 else (5, 10) if count <= 30_000 else (3, 5)

    def fits(model: str, width: float) -> bool:
        one = flops(model, channels, size, len(found["classes"]), width)
        return 3 * one * count * epochs * models <= WORK  # backward costs twice forward

    widths = [w for w in WIDTHS if fits("resnet9", w)]
    if channels == 3 and count >= ENOUGH and widths:
        model, width = "resnet9", widths[0]
        reason = "resnet9 is deep enough for colour photographs"
        reason += f", at width {width:g} so that two cores manage" if width < 1 else ""
    else:
        model, width = "cnn", 1.0
        reason = "cnn sees shapes and is quick"
        if channels == 3:
            reason += (
                ", and so few images would not fill a deeper network"
                if count < ENOUGH
                else ", while a deeper network would take hours on so many"
            )
    colour = "colour" if channels == 3 else "grey"
    why = (
        f"For {count:,} {colour} images of {size} × {size}: {reason}; in {epochs} epochs each "
        f"network sees {count * epochs:,}; the ensemble is {models} networks of {masks} masks each."
    )
    return Proposal(model=model, width=width, epochs=epochs, models=models, masks=masks, why=why)


def flops(model: str, channels: int, size: int, classes: int, width: float) -> int:
    """Floating-point operations of one image on its way through a network."""
    network = MODELS[model](channels, size, classes, width).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, size, size))
    return counter.get_total_flops()
