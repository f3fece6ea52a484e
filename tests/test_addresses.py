import numpy as np
import pytest

from labkit.addresses import code_hash, run_id
from labkit.errors import LabkitError


def test_the_content_address_depends_on_content_alone():
    """The digits are those of sha256sum, given the JSON by hand."""
    assert run_id({"a": 1, "b": [0.5, None]}) == run_id({"b": [0.5, None], "a": 1}) == "f1a92042e7c3ddd4"
    assert run_id({"a": 1, "b": [0.5, 0]}) != run_id({"a": 1, "b": [0.5, None]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.float32(1)])
def test_what_json_cannot_hold_has_no_address(value):
    with pytest.raises(LabkitError, match="a configuration is finite JSON"):
        run_id({"value": value})


def test_the_hash_of_code_is_of_what_it_does(tmp_path, monkeypatch):
    """Comments, docstrings and layout do not count; a constant does."""
    monkeypatch.setattr("labkit.addresses.__file__", str(tmp_path / "addresses.py"))

    def hashed(source: str) -> str:
        (tmp_path / "metrics.py").write_text(source)
        code_hash.cache_clear()
        return code_hash("metrics")

    first = hashed('"""What."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert first == hashed('"""Other."""\n\ndef f(x):  # why\n    return (x\n            + 1)\n')
    assert first != hashed("def f(x):\n    return x + 2\n")
    code_hash.cache_clear()
