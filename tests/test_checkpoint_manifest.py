"""What says that a checkpoint is whole: it comes back as it was written, or not at all."""

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.integrations.manifest import CheckpointError, decode, encode, plain, run_name
from tests.test_generations import MANIFEST


def test_a_manifest_comes_back_as_it_was() -> None:
    metadata = plain(
        {"loss": float("inf"), "n": -0.0, "\u20ac\ud800": [1, 2.5, None, True, {"a": "\n"}], "big": 10**40}
    )
    manifest = replace(MANIFEST, metadata=metadata, step=-1)

    assert decode(encode(manifest)) == manifest


@given(st.binary(max_size=40), st.integers(0, 2000), st.integers(0, 40))
def test_no_altered_manifest_is_taken_for_another_one(noise: bytes, at: int, cut: int) -> None:
    text = encode(MANIFEST)
    altered = text[:at] + noise + text[at + cut :]

    with contextlib.suppress(ValueError):
        assert decode(altered) == MANIFEST


class Scalar:
    """What NumPy's and torch's scalars look like."""

    shape = ()

    def item(self) -> float:
        return 1.5


def test_metadata_becomes_what_json_gives_back() -> None:
    class Name(str):
        __slots__ = ()

    given_ = {"a": Scalar(), Name("b"): (1, True, None, Name("x")), "c": {"d": 1e300}}

    assert plain(given_) == {"a": 1.5, "b": [1, True, None, "x"], "c": {"d": 1e300}}
    assert json.loads(json.dumps(plain(given_))) == plain(given_)


def endless() -> dict[str, object]:
    nested: dict[str, object] = {}
    nested["a"] = nested
    return nested


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"a": [{"b": object()}]}, r"metadata\['a'\]\[0\]\['b'\] is of type object"),
        ({"a": {1: 2}}, r"metadata\['a'\] has the key 1"),
        ({1: 2}, "metadata has the key 1"),
        ({"a": {1, 2}}, "of type set"),
        ({"a": b"x"}, "of type bytes"),
        (endless(), "nested too deeply"),
    ],
)
def test_what_json_would_not_give_back_is_refused_when_it_is_saved(metadata: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        plain(metadata)


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "a\nb", "x" * 129, "\u20ac" * 60, "a%2fb", "\udcff", None, 7],
)
def test_a_run_id_that_would_be_a_path_is_refused(run_id: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be a run id"):
        run_name(run_id)


@pytest.mark.parametrize("metadata", [[1], "x", 7])
def test_metadata_that_is_no_dict_is_refused(metadata: Any) -> None:
    with pytest.raises(CheckpointError, match="metadata is of type"):
        plain(metadata)
