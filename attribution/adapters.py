"""LoRA adapters on a trained network, through peft and in its own layout on disk.

An adapter is a few low-rank matrices beside the layers of a network whose own weights stay as they
are (arXiv 2106.09685). Each is fitted on a share of the training set of its own; the gradients of
its parameters alone are a member of a LoRA ensemble (arXiv 2405.17293, section 3.3).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .features import Examples
from .records import LoraSpec, Report, RunSpec, UserError, silent
from .train import train

if TYPE_CHECKING:  # where it is needed it is imported, because that takes seconds
    from peft import PeftModel


def candidates(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that can take an adapter, by name: every Linear and every ungrouped Conv2d."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
    }


def checked(network: nn.Module, spec: LoraSpec) -> LoraSpec:
    """`spec` with its targets by their full names.

    A target is the full name of a layer, or its last parts; without targets, every layer that is
    as wide as the rank is one. Raises `UserError` where none matches, or where the rank is larger
    than a layer that was named, or than all.
    """
    layers = candidates(network)
    names = [
        name
        for name in layers
        if not spec.targets or any(f".{name}".endswith(f".{t}") for t in spec.targets)
    ]
    if not names:
        raise UserError(
            found=f"no layer named {', '.join(spec.targets)}" if layers else "no layer for LoRA",
            wanted=f"one of {', '.join(layers)}" if layers else "a Linear or a plain Conv2d",
            next_step="name some with --targets" if layers else "choose another --strategy",
        )
    most = {name: min(layers[name].weight.flatten(1).shape) for name in names}
    if not spec.targets:
        widest = max(names, key=lambda name: most[name])
        names = [name for name in names if most[name] >= spec.rank] or [widest]
    for name in names:
        if not 1 <= spec.rank <= most[name]:
            raise UserError(
                found=f"--rank {spec.rank} for layer {name}",
                wanted=f"a rank from 1 to {most[name]}, its smaller side",
                next_step="lower --rank, or leave the layer out with --targets",
            )
    return replace(spec, targets=tuple(names))


def adapted(network: nn.Module, spec: LoraSpec, seed: int) -> "PeftModel":
    """`network` with a fresh adapter, the only parameters of it that want a gradient.

    Changes `network` in place, as peft does. The adapter's second matrix is zero at first, so the
    first has no gradient until it is fitted.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=list(checked(network, spec).targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(network, config)


def fitted(
    network: nn.Module, spec: LoraSpec, examples: Examples, seed: int, report: Report = silent
) -> "PeftModel":
    """`network` with an adapter fitted on its share of the examples; a function of the seed."""
    model = adapted(network, spec, seed)
    draw = torch.Generator().manual_seed(seed)
    count = max(2, round(spec.share * len(examples)))
    some = examples[torch.randperm(len(examples), generator=draw)[:count]]
    recipe = RunSpec(
        data_id="",
        model="the adapter",
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        seed=seed,
    )
    try:
        train(model, some.x_N, some.target_N, recipe, report, beliefs=False)
    except UserError as error:
        raise UserError(
            found=error.found, wanted=error.wanted, next_step="lower --lora-rate"
        ) from error
    return model


def saved(model: "PeftModel", folder: Path) -> None:
    """Write the adapter as peft does: adapter_config.json and adapter_model.safetensors."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in


def loaded(network: nn.Module, folder: Path) -> "PeftModel":
    """`network` with the adapter that `saved` wrote to `folder`."""
    from peft import PeftModel

    return PeftModel.from_pretrained(network, str(folder), is_trainable=True)
