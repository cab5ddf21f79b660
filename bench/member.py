"""Features of one member on ResNet-9 against one plain forward and backward of the same batch.

Masks are those of an ensemble of 20 of one network, made together as a build makes them; the figure
is of one of them.

ResNet-9 at full width (4.8 million parameters), 32 x 32 colour images, the default projection. The
plain pass is the same network in the same evaluation mode, with the weight gradients of the
batch's summed loss. The basis is found once a network and shared by its masks: a row of its own.
In bfloat16 (`--precision bfloat16`): the time against float32 and against a plain pass in bfloat16,
and how well the features agree.
"""

import torch
import torch.nn.functional as F
from torch import nn

from attribution.features import Examples, block, featurized, in_precision, projected
from attribution.models import resnet9
from attribution.records import FeatureSpec

from .images import colour_images
from .rows import Options, Row, interleaved, ratios, row

BATCH = 16
MASKS = 20
BASIS_IMAGES = 256


def measure(options: Options) -> list[Row]:
    torch.manual_seed(0)
    network = resnet9(3, 32, 10, 1.0).eval()
    images, what = colour_images(BASIS_IMAGES, options.cifar10)
    batch = images[slice(0, BATCH)]
    spec = FeatureSpec()
    made = projected(network, images, spec)
    views = [made.view(mask, 0.1) for mask in range(MASKS)]
    lower = in_precision(made, "bfloat16")
    halved = Examples(batch.x_N.bfloat16(), batch.key_N, batch.target_N)
    lower_views = [lower.view(mask, 0.1) for mask in range(MASKS)]
    seconds = interleaved(
        options.times(7),
        {
            "plain": lambda: plain(network, batch),
            "naive": lambda: block(made.view(), batch, made.projections, BATCH),
            "dropout": lambda: list(featurized(views, batch, made.projections, BATCH)),
            "plain lower": lambda: plain(lower.network, halved),
            "lower": lambda: list(featurized(lower_views, batch, lower.projections, BATCH)),
        },
    )
    for kind in ("dropout", "lower"):
        seconds[kind] = [s / MASKS for s in seconds[kind]]
    ((_, ours),) = featurized(views, batch, made.projections, BATCH)
    ((_, theirs),) = featurized(lower_views, batch, lower.projections, BATCH)
    alike = [
        float(torch.cosine_similarity(one.phi_NK, other.phi_NK).mean())
        for one, other in zip(ours, theirs, strict=True)
    ]
    basis = interleaved(
        2,
        {
            "plain": lambda: plain(network, batch),
            "basis": lambda: projected(network, images, spec),
        },
    )
    features = sum(
        t[0].shape[1] * (t[1].shape[1] if len(t) > 1 else 1) for t in made.projections.values()
    )
    note = f"{what}, batch {BATCH}, {features} dims, {MASKS} masks"
    return [
        row(
            f"ResNet-9, one {kind} member / plain forward + backward ({note})",
            ratios(seconds[kind], seconds["plain"]),
            "x",
            at_most=0.8,
        )
        for kind in ("naive", "dropout")
    ] + [
        row(
            "one dropout member in float32 / in bfloat16",
            ratios(seconds["dropout"], seconds["lower"]),
            "x",
        ),
        row(
            "the same in bfloat16 / plain forward + backward in bfloat16",
            ratios(seconds["lower"], seconds["plain lower"]),
            "x",
        ),
        row("cosine of its features in bfloat16 with those in float32, 20 masks", alike, ""),
        row("plain forward + backward", [s / BATCH * 1e3 for s in seconds["plain"]], "ms an image"),
        row(
            f"own basis of the network and check of its sites, {BASIS_IMAGES} images / plain "
            "forward + backward of one batch, once a network",
            ratios(basis["basis"], basis["plain"]),
            "x",
        ),
        row("parameters covered", made.coverage, "", at_least=0.95),
    ]


def plain(network: nn.Module, batch: Examples) -> None:
    """One forward and backward with weight gradients."""
    network.zero_grad(set_to_none=True)
    F.cross_entropy(network(batch.x_N), batch.target_N, reduction="sum").backward()
