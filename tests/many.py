"""A data set of 120 classes with long and odd names, and the command line that knows it.

    python tests/many.py app --cache DIR

so that the server started for a browser finds it by name.
"""

import numpy as np

from attribution import data
from attribution.__main__ import main

NAME = "many"
ODD = (
    "", " \u200b ", '<b onclick="x">bold</b>', "*star* _under_ `code` $x$ :red[red]", "猫 (ねこ)",
    "Straße", "any", "Any", "a class with a rather long name, as taxonomies have them, " * 3,
    "12", "two\nlines", "قطة",
)  # fmt: skip
CLASSES = (*ODD, *(f"species no. {n}" for n in range(len(ODD), 120)))


def many() -> dict[str, np.ndarray]:
    """A pattern of its own for each class, under noise: 5 training and 2 test images each."""
    draw = np.random.default_rng(0)
    pattern = draw.integers(0, 256, (len(CLASSES), 10, 10))
    made: dict[str, np.ndarray] = {"classes": np.array(CLASSES)}
    for split, each in (("train", 5), ("test", 2)):
        labels = draw.permutation(np.repeat(np.arange(len(CLASSES)), each))
        noisy = 0.6 * pattern[labels] + 0.4 * draw.integers(0, 256, (len(labels), 10, 10))
        made |= {f"{split}_images": noisy.astype(np.uint8), f"{split}_labels": labels}
    return made


data.DATASETS[NAME] = many

if __name__ == "__main__":
    main()
