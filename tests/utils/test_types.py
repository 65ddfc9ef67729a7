import pytest
from pydantic import TypeAdapter, ValidationError

from nsaug.attacks import PGD
from nsaug.utils.types import PositiveInt, UniqueTuple, flatten, parse_number


def test_fraction_is_parsed():
    assert parse_number("4/255") == 4 / 255
    assert PGD(eps="8 / 255").eps == 8 / 255


@pytest.mark.parametrize("value", ["4/0", "four/255", "1/2/3"])
def test_invalid_fraction_raises(value):
    with pytest.raises(ValueError, match="neither a number nor a fraction"):
        parse_number(value)


@pytest.mark.parametrize("setting", [{"eps": -0.1}, {"eps": 1.5}, {"num_steps": -1}, {"num_steps": 2.5}, {"epss": 0.1}])
def test_out_of_range_or_unknown_settings_raise(setting):
    with pytest.raises(ValidationError):
        PGD(**setting)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        PGD().eps = 0.5


def test_booleans_are_not_numbers():
    for setting in ({"eps": True}, {"num_steps": True}, {"num_steps": False}):
        with pytest.raises(ValidationError, match="should be a number, not"):
            PGD(**setting)


def test_unique_tuple():
    adapter = TypeAdapter(UniqueTuple[PositiveInt])
    assert adapter.validate_python([2, 1]) == (2, 1)
    for value in ([], [1, 1], [True], [0]):
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_flatten_nested_settings():
    assert flatten({"optim": {"lr": 0.1, "betas": [0.9, 0.999]}, "seed": 0}) == {
        "optim.lr": 0.1,
        "optim.betas": "[0.9, 0.999]",
        "seed": 0,
    }
