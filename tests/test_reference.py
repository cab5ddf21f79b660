"""The reference is what the code says now."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "reference.py"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="others print annotations otherwise")
def test_the_reference_is_up_to_date():
    made = runpy.run_path(str(SCRIPT))
    assert made["PAGE"].read_text() == made["page"](), "run `make reference`"


def test_every_public_name_is_told_of():
    import attribution
    from attribution.engine import Engine

    page = (SCRIPT.parent / "reference.md").read_text()
    for name in attribution.__all__:
        assert f"\n### {name}\n" in page
    for name in vars(Engine):
        assert name.startswith("_") or f"\n#### Engine.{name}\n" in page
