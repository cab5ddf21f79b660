"""Which training examples are behind a prediction, and which labels are wrong.

    data set -> runs -> members -> feature blocks -> index -> hits -> decisions -> data set

A member is one view of a trained network (`members`), a feature block its projected per-example
gradients (`gradients`, `projection`, `features`), and an estimator turns blocks into vectors whose
inner product is the score (`estimators`, `index`). `engine` joins them for the pages and the
command line; in a notebook, the names below do the same with your own networks and no files.
"""

from .ensemble import (
    Ensemble,
    Index,
    build_index,
    dropout_ensemble,
    lora_ensemble,
    naive_ensemble,
    read_data,
)
from .frames import figure, frame
from .records import BuildSpec, EstimatorSpec, FeatureSpec, LoraSpec, UserError

__all__ = [
    "BuildSpec",
    "Ensemble",
    "EstimatorSpec",
    "FeatureSpec",
    "Index",
    "LoraSpec",
    "UserError",
    "build_index",
    "dropout_ensemble",
    "figure",
    "frame",
    "lora_ensemble",
    "naive_ensemble",
    "read_data",
]
