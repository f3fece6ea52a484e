import numpy as np
import pytest

from labkit.errors import LabkitError, unknown, whole


def test_message_states_rule_value_and_remedy():
    error = LabkitError("sparsity lies in [0, 1)", 1.5, "Give the fraction of zeros wanted, e.g. 0.5.")
    assert str(error) == "sparsity lies in [0, 1); got 1.5. Give the fraction of zeros wanted, e.g. 0.5."
    assert (error.rule, error.received) == ("sparsity lies in [0, 1)", 1.5)


def test_it_is_a_value_error():
    with pytest.raises(ValueError, match="a rule; got 'x'. A remedy."):
        raise LabkitError("a rule", "x", "A remedy.")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_is_an_int(value):
    assert whole("a seed", value, 0) == 3 and type(whole("a seed", value, 0)) is int


@pytest.mark.parametrize("value", [3.0, np.float32(3), "3", None, True, np.True_, [3]])
def test_what_is_not_whole_is_refused_with_an_example(value):
    with pytest.raises(LabkitError) as caught:
        whole("the number of tokens", value, 2_000_000)
    assert str(caught.value) == f"the number of tokens is a whole number; got {value!r}. Give e.g. 2000000."


def test_unknown_names_the_nearest_first_and_then_all():
    error = unknown("ability", "recal", iter(["facts", "recall", "reverse"]))
    message = "a known ability is needed; got 'recal'. Nearest: recall. All: facts, recall, reverse."
    assert str(error) == message


def test_unknown_without_a_near_name():
    assert "Nearest" not in str(unknown("ability", "zzzz", ["facts"]))
    assert str(unknown("ability", "zzzz", ["facts"])).endswith("All: facts.")
