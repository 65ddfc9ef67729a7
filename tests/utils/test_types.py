import pytest
from pydantic import ValidationError

from nsaug.attacks import PGD
from nsaug.utils.types import parse_number


def test_a_fraction_is_a_number():
    assert parse_number("4/255") == 4 / 255
    assert PGD(eps="8 / 255").eps == 8 / 255


@pytest.mark.parametrize("value", ["4/0", "four/255", "1/2/3"])
def test_what_looks_like_a_fraction_but_is_none(value):
    with pytest.raises(ValueError, match="neither a number nor a fraction"):
        parse_number(value)


@pytest.mark.parametrize("setting", [{"eps": -0.1}, {"eps": 1.5}, {"num_steps": -1}, {"num_steps": 2.5}, {"epss": 0.1}])
def test_settings_refuse_what_is_out_of_range_or_unknown(setting):
    with pytest.raises(ValidationError):
        PGD(**setting)


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        PGD().eps = 0.5
