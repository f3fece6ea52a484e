import pytest

from labkit.errors import LabkitError, unknown


def test_message_states_rule_value_and_remedy():
    error = LabkitError("sparsity lies in [0, 1)", 1.5, "Give the fraction of zeros wanted, e.g. 0.5.")
    assert str(error) == "sparsity lies in [0, 1); got 1.5. Give the fraction of zeros wanted, e.g. 0.5."
    assert (error.rule, error.received) == ("sparsity lies in [0, 1)", 1.5)


def test_it_is_a_value_error():
    with pytest.raises(ValueError, match="a rule; got 'x'. A remedy."):
        raise LabkitError("a rule", "x", "A remedy.")


def test_unknown_names_the_nearest_first_and_then_all():
    error = unknown("ability", "recal", iter(["facts", "recall", "reverse"]))
    message = "a known ability is needed; got 'recal'. Nearest: recall. All: facts, recall, reverse."
    assert str(error) == message


def test_unknown_without_a_near_name():
    assert "Nearest" not in str(unknown("ability", "zzzz", ["facts"]))
    assert str(unknown("ability", "zzzz", ["facts"])).endswith("All: facts.")
