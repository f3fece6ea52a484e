import _thread
import threading

import numpy as np
import pytest

from labkit.errors import LabkitError, unknown, warn, whole


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


@pytest.mark.parametrize("inside", ["labkit.pruning", "torch.utils._contextlib"])
def test_a_warning_shows_the_nearest_line_outside_of_labkit_and_torch(inside):
    scope = {"__name__": inside, "warn": warn}
    exec("def deep(): warn('careful')\ndef work(): deep()", scope)
    with pytest.warns(UserWarning, match="careful") as caught:
        scope["work"]()
    assert caught[0].filename == __file__


def test_a_warning_with_nobody_outside_is_given_all_the_same():
    """As in a thread that begins inside."""
    scope, done = {"__name__": "labkit.pruning", "warn": warn}, threading.Event()
    exec("def work(done):\n    try: warn('careful')\n    finally: done.set()", scope)
    with pytest.warns(UserWarning, match="careful"):
        _thread.start_new_thread(scope["work"], (done,))
        assert done.wait(10)
