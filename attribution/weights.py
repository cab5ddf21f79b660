"""Weights that people bring: read from a file, kept by content, put into a network.

A file of weights is copied into the store once and named by what is in it, so that a build never
depends on where it lay. Nothing but tensors is ever read from it: a pickle that holds code is
refused.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .data import Dataset
from .models import SOME, code_id, frozen_below, inputs, judged, network, pretrained
from .records import RunSpec, UserError, content_id, one_line
from .store import Artifact, Draft, Store, is_id

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")  # in a dict
PICKLE = b"\x80"  # what a pickle begins with
SAID = 3  # names of each kind that a sentence lists
TIMES = 32  # the size of its file that weights may come to: tied ones are written once
SMALL = 10**6  # bytes that any may come to


def kept(store: Store, word: str, option: str) -> str:
    """The id of the weights in a file, copied into the store, or of some that are there already.

    Raises `UserError` for a file that is no state dict of finite numbers.
    """
    path = Path(word)
    if not path.exists() and is_id(word) and store.has("weights", word):
        return word
    return stored(store, read(path, option), path.name)


def stored(store: Store, tensors: Mapping[str, Tensor], name: str) -> str:
    """The id of weights, which follows from their names and numbers alone."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    weights_id = content_id("weights", digest.hexdigest())

    def fill(draft: Draft) -> None:
        draft.weights(tensors)
        draft.note(numbers=sum(v.numel() for v in tensors.values()))

    store.make("weights", weights_id, fill, {"name": name})
    return weights_id


def downloaded(store: Store, name: str, data: Dataset) -> str:
    """The id of a library's own weights of network `name`, downloaded the first time only."""
    asked = content_id("pretrained", name, data.train.images.shape[1])
    made = store.find("pretrained", asked)
    if made is not None and store.has("weights", made.manifest["weights"]):
        return made.manifest["weights"]
    weights_id = stored(store, pretrained(name, data).state_dict(), name)
    made_by = {"name": name, "size": data.train.images.shape[1]}
    store.make("pretrained", asked, lambda draft: draft.note(weights=weights_id), made_by)
    return weights_id


def read(path: Path, option: str) -> dict[str, Tensor]:
    """The state dict in a file of safetensors, or in one that `torch.save` wrote.

    Also where it lies in a dict under a name such as "state_dict". Headers are not believed: what
    a file unpacks to, and what its tensors would take, is bounded by its size.
    """

    def refused(found: str) -> UserError:
        return UserError(
            found=f"{path} {found}",
            wanted="a state dict, as safetensors or by torch.save(network.state_dict(), FILE)",
            next_step=f"save the weights so and give that file to {option}",
        )

    if not path.is_file():
        raise refused("is no file" if not path.exists() else "is a folder")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        elif packed(path):
            raise refused("is compressed, which torch.save never does")
        else:
            # The older format is read from memory, where a length that lies takes none.
            zipped = zipfile.is_zipfile(path)
            source = path if zipped else BytesIO(path.read_bytes())
            found = torch.load(source, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch, zip, pickle and safetensors each have their own
        if path.suffix == ".safetensors":
            raise refused("is no readable safetensors file") from error
        with path.open("rb") as file:
            unsafe = "global" in str(error).lower() or file.read(1) == PICKLE
        raise refused(
            "holds pickled objects, which may run code" if unsafe else "cannot be read as weights"
        ) from error
    for _ in range(3):
        inner = [found[n] for n in NESTS if isinstance(found, Mapping) and _nest(found.get(n))]
        if not inner:
            break
        found = inner[0]
    if isinstance(found, nn.Module) or not isinstance(found, Mapping):
        raise refused(f"holds {type(found).__name__} and not tensors by name")
    tensors = {str(k): v.detach() for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise refused("holds no tensors by name")
    for name, value in tensors.items():
        if one_line(name) != name:
            raise refused(f"holds a tensor by the name {name}, which is none")
        if not _plain(value):
            raise refused(f"holds {name}, which is no plain tensor")
    whole = sum(  # a tensor of nothing takes what its other dimensions say, which may be anything
        math.prod(max(n, 1) for n in value.shape) * value.element_size()
        for value in tensors.values()
    )
    if whole > max(TIMES * path.stat().st_size, SMALL):
        raise refused(f"holds tensors of {whole:,} bytes in {path.stat().st_size:,}")
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise UserError(
                found=f"{path} has numbers in {name} that are not finite",
                wanted="weights of a network whose training converged",
                next_step=f"give another file to {option}",
            )
    return tensors


def packed(path: Path) -> bool:
    """Whether a file is a .zip that would unpack to more than it is: torch makes none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as opened:
        return any(one.compress_type != zipfile.ZIP_STORED for one in opened.infolist())


def _plain(value: Tensor) -> bool:
    """Whether it is real numbers, one beside the other, that the store can keep."""
    odd = value.is_quantized or value.is_meta or value.is_complex() or value.is_neg()
    return not odd and value.layout == torch.strided


def _nest(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def unwrapped(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Without the first words that wrappers put before every name, as in ``module.fc.weight``."""
    names, found = set(wanted), dict(tensors)
    while not names & set(found):
        first = {name.partition(".")[0] for name in found}
        if len(first) != 1 or not all("." in name for name in found):
            return dict(tensors)
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found


def load(
    made: nn.Module, tensors: Mapping[str, Tensor], what: str, classes: int | None = None
) -> tuple[str, ...]:
    """Put weights into a network, in place.

    With `classes` a last layer of another number of classes, or one that is missing, stays as it
    is; returns the names of what stayed. Raises `UserError` for what does not fit otherwise.
    """
    own = made.state_dict()
    given = unwrapped(tensors, own)
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in own]
    odd = [n for n in own if n in given and own[n].shape != given[n].shape]
    fresh: list[str] = []
    if classes is not None:
        head = set(_head(made, own, classes))
        same_features = all(own[n].shape[1:] == given[n].shape[1:] for n in odd if n in head)
        if head and same_features and {n for n in missing + odd if n in head} == head:
            fresh = sorted(head)
            missing, odd = ([n for n in names if n not in head] for names in (missing, odd))
    if missing or unexpected or odd:
        parts = [
            _listed("missing", missing),
            _listed("unexpected", unexpected),
            _listed(
                "of another shape",
                [f"{n} {tuple(given[n].shape)} for {tuple(own[n].shape)}" for n in odd],
            ),
        ]
        raise UserError(
            found=f"weights {what} that do not fit the network: {'; '.join(filter(None, parts))}",
            wanted="the names and shapes of its own state dict",
            next_step="check --model and --width, or give the weights of that network",
        )
    made.load_state_dict({n: v for n, v in given.items() if n not in fresh}, strict=False)
    return tuple(fresh)


def _head(made: nn.Module, own: Mapping[str, Tensor], classes: int) -> list[str]:
    """Names of the last layer's tensors, one row a class."""
    layers = [
        name
        for name, layer in made.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[0] == classes
    ]
    return [n for n in own if layers and n.rpartition(".")[0] == layers[-1]]


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SAID} more" if len(names) > SAID else ""
    return f"{what} {', '.join(names[:SAID])}{more}" if names else ""


def begun(store: Store, data: Dataset, run: RunSpec) -> nn.Module:
    """The network that a run begins with: fresh from its seed, or with the weights it starts from.

    Raises `UserError` where code that it was made of has been edited since.
    """
    unedited(run)
    made = network(run.model, data, run.width, run.seed, run.preprocess)
    if run.start:
        load(made, found(store, run.start), run.start, len(data.classes))
    return frozen_below(made, run.model, len(data.classes)) if run.freeze else made


def left_fresh(store: Store, data: Dataset, run: RunSpec) -> tuple[str, ...]:
    """Names of the last layer's weights where it does not start as the others do."""
    if not run.start:
        return ()
    made = network(run.model, data, run.width, run.seed, run.preprocess)
    return load(made, found(store, run.start), run.start, len(data.classes))


def given(store: Store, data: Dataset, run: RunSpec) -> nn.Module:
    """The network with the weights that were brought for it, in evaluation mode."""
    made = network(run.model, data, run.width, run.seed, run.preprocess)
    artifact = artifact_of(store, run.given)
    load(made, artifact.weights(), f"of {artifact.manifest['made_by']['name']}")
    some = inputs(run.model, data, data.train.images[:SOME], run.preprocess)
    judged(made, run.model, some, len(data.classes))
    return made.eval()


def found(store: Store, weights_id: str) -> dict[str, Tensor]:
    return artifact_of(store, weights_id).weights()


def artifact_of(store: Store, weights_id: str) -> Artifact:
    made = store.find("weights", weights_id) if is_id(weights_id) else None
    if made is None:
        raise UserError(
            found=f"no weights {weights_id!r}",
            wanted="weights that were copied into the cache",
            next_step="give their file with --checkpoint or --start",
        )
    return made


def unedited(run: RunSpec) -> None:
    """Raise `UserError` where a FILE.py is no longer the code that a run was made of."""
    for name, code, option in (
        (run.model, run.model_code, "--model"),
        (run.preprocess, run.preprocess_code, "--preprocess"),
        (run.train if run.trains else "", run.train_code, "--train"),
    ):
        if name and code and code_id(name, option) != code:
            raise UserError(
                found=f"{name}, which was edited since the build",
                wanted="the code that the build was made with",
                next_step="run `build` again, which makes another build of it",
            )
