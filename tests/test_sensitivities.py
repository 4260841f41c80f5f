import msgspec
import pytest

from pliant.errors import UsageError
from pliant.sensitivities import Sensitivities

MEASURED = Sensitivities(
    dense_loss=2.0,
    depth={2: 3.0, 4: 2.0},
    width={0.5: 2.5, 1.0: 2.0},
    planes={2: 2.8, 8: 2.0},
    vocabulary_planes={4: 2.1, 8: 2.0},
)


def test_nothing_cut_is_the_dense_loss() -> None:
    assert MEASURED.predict(4, 1.0, 8, 8) == 2.0


def test_increases_of_the_axes_add() -> None:
    assert MEASURED.predict(2, 0.5, 2, 4) == pytest.approx(2.0 + 1.0 + 0.5 + 0.8 + 0.1)


def test_what_was_not_measured_is_refused_with_what_was() -> None:
    with pytest.raises(UsageError, match=r"3 blocks kept; measured are \[2, 4\]"):
        MEASURED.predict(3, 1.0, 8, 8)


def test_survives_json() -> None:
    text = msgspec.json.encode(MEASURED)
    assert msgspec.json.decode(text, type=Sensitivities) == MEASURED
