"""The key layout is fixed: other languages compute the same keys from the same names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink import InvalidArgument
from podlink.domain import keys

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="{}"), min_size=1)
NAMESPACES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="{}:"), min_size=1)


@pytest.mark.parametrize(
    ("key", "literal"),
    [
        (keys.state_key("games", "lobby"), "sf:{games:state:lobby}"),
        (keys.load_key("games", "lobby"), "sf:{games:state:lobby}load"),
        (keys.version_key("games", "lobby"), "sf:{games:state:lobby}rv"),
        (keys.expiry_key("games", "lobby"), "sf:{games:state:lobby}exp"),
        (keys.workload_key("games", "lobby"), "sf:{games:workload:lobby}"),
        (keys.workload_version_key("games", "lobby"), "sf:{games:workload:lobby}rv"),
        (keys.link_hash_key("games", "player-42"), "sf:{games:lk:player-42}"),
        (keys.link_key("games", "player-42", "lobby"), "sf:{games:lk:player-42}lobby"),
        (keys.marker_key("canary"), "sf:{podlink}canary"),
    ],
)
def test_layout(key: str, literal: str) -> None:
    assert key == literal


@pytest.mark.parametrize("make", [keys.state_key, keys.load_key, keys.version_key, keys.expiry_key, keys.workload_key])
@given(namespace=NAMESPACES, service=NAMES)
def test_service_is_read_back_from_each_of_its_keys(make, namespace: str, service: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    assert keys.service_of_key(make(namespace, service)) == (namespace, service)
    assert keys.uid_of_key(make(namespace, service)) is None


@given(namespace=NAMESPACES, uid=NAMES, service=NAMES)
def test_uid_is_read_back_from_its_hash_and_from_nothing_else(namespace: str, uid: str, service: str) -> None:
    assert keys.uid_of_key(keys.link_hash_key(namespace, uid)) == (namespace, uid)
    assert keys.uid_of_key(keys.link_key(namespace, uid, service)) is None
    assert keys.service_of_key(keys.link_hash_key(namespace, uid)) is None
    assert keys.service_of_key(keys.link_key(namespace, uid, service)) is None


@given(
    one=st.tuples(NAMESPACES, NAMES, NAMES),
    other=st.tuples(NAMESPACES, NAMES, NAMES),
)
def test_different_links_have_different_keys(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (keys.link_key(*one) == keys.link_key(*other)) is (one == other)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "sf:{games:state:lobby",
        "sf:{games:state:lobby}other",
        "sf:{games:state:lobby}rv2",
        "sf:{games:workload:lobby}load",
        "sf:{games:state:}",
        "sf:{:state:lobby}",
        "sf:{games:states:lobby}",
        "xsf:{games:state:lobby}",
        "sf:{games:state:a{b}",
        "sf:{podlink}canary",
        "sf:{games:state:a\nb}",
    ],
)
def test_key_that_is_no_services(key: str) -> None:
    assert keys.service_of_key(key) is None


@pytest.mark.parametrize("char", ["\x00", "\n", "\x1f", "\x7f", "\x80", "\x9f", chr(0xD800), chr(0xDFFF), *"{}"])
def test_characters_no_name_may_hold(char: str) -> None:
    for check, argument in [
        (keys.checked_namespace, "namespace"),
        (keys.checked_service, "service"),
        (keys.checked_uid, "uid"),
    ]:
        for value in (char, f"a{char}", f"{char}a", f"a{char}b"):
            with pytest.raises(InvalidArgument, match=f"^{argument} must be") as error:
                check(value)
            assert error.value.argument == argument
            str(error.value).encode()


@pytest.mark.parametrize("value", ["a", " ", "ä", "日本", "a:b", "a b", "a\u00a0b", "🂡", "../..", "*", "a" * 10_000])
def test_names_that_are_fine(value: str) -> None:
    keys.checked_service(value)
    keys.checked_uid(value)


def test_colon_belongs_to_uids_and_services_only() -> None:
    keys.checked_uid("room:7")
    with pytest.raises(InvalidArgument, match="without a colon, braces, control characters"):
        keys.checked_namespace("a:b")


def test_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(InvalidArgument) as error:
        keys.checked_uid("{" * 100_000)
    assert len(str(error.value)) < 250
    assert str(error.value).endswith("...")


def test_an_invalid_argument_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="pod_id"):
        keys.checked_pod_id(-1)


@pytest.mark.parametrize(("version", "sent"), [(None, ""), ("0", "0"), ("0012", "0012"), (7, "7"), (2**70, str(2**70))])
def test_versions_as_they_are_sent(version: str | int | None, sent: str) -> None:
    assert keys.checked_version(version) == sent
