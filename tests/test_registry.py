import pytest

from preemptd.errors import ConfigError, PluginError
from preemptd.provider import Found, Options, Provider, Surroundings
from preemptd.registry import (
    Chosen,
    Installed,
    build,
    check_tables,
    installed,
    load,
    options_for,
)
from tests.plugin_packages import PluginPackages, plugins

__all__ = ["plugins"]

BUILT_IN = {"ec2", "gce", "file", "sigterm"}
GOOD = "from preemptd.provider import Provider\nclass P(Provider):\n    name = {name!r}\n"
NOWHERE = Surroundings({})

# What is installed


def test_the_built_in_providers_are_registered_like_any_others() -> None:
    assert set(installed().entry_points) >= BUILT_IN
    assert set(load(installed()).providers) >= BUILT_IN


def test_a_package_of_somebody_else_is_found(plugins: PluginPackages) -> None:
    plugins.add("their_cloud", GOOD.format(name="theirs"), "theirs = their_cloud:P")

    assert load(installed(), ["theirs"]).providers["theirs"].__module__ == "their_cloud"


def test_of_two_with_one_name_the_first_on_the_path_wins_and_the_other_is_named(plugins: PluginPackages) -> None:
    plugins.add("usurper", GOOD.format(name="ec2"), "ec2 = usurper:P")
    entries = installed()

    assert load(entries, ["ec2"]).providers["ec2"].__module__ == "usurper"
    assert "usurper:P is registered under the same name" in entries.left_out["preemptd_providers.ec2:Ec2"]


def test_an_unreadable_entry_points_file_of_any_package_hides_no_other(plugins: PluginPackages) -> None:
    plugins.add_metadata("vandal", "[preemptd.providers]\nthis line says nothing\n")
    entries = installed()

    assert set(entries.entry_points) >= BUILT_IN
    assert "its entry_points.txt cannot be read" in entries.left_out["vandal"]


BROKEN = {
    "import nowhere_to_be_found": "ModuleNotFoundError",
    "class P(:": "SyntaxError",
    "raise SystemExit(3)": "SystemExit: 3",
    "1 / 0": "ZeroDivisionError",
    "Q = 1": "AttributeError",
    "P = 1": "is no subclass of preemptd.provider.Provider",
    "class P: name = 'broken'": "is no subclass of preemptd.provider.Provider",
    GOOD.format(name="other"): "calls itself 'other': its entry point must have the same name",
    "from preemptd.provider import Provider\nclass P(Provider): pass": "calls itself None",
    GOOD.format(name="broken") + "    options_type = dict": "options_type is no subclass",
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.items())
def test_a_plug_in_that_does_not_load_is_named_and_left_out(plugins: PluginPackages, code: str, reason: str) -> None:
    plugins.add("broken_cloud", code, "broken = broken_cloud:P")
    loaded = load(installed())

    assert set(loaded.providers) >= BUILT_IN
    assert "broken" not in loaded.providers
    assert "provider 'broken' (broken_cloud:P)" in loaded.left_out["broken"]
    assert reason in loaded.left_out["broken"]
    assert "\n" not in loaded.left_out["broken"]


@pytest.mark.parametrize("code", BROKEN)
def test_a_plug_in_that_was_named_and_does_not_load_is_an_error_of_one_line(plugins: PluginPackages, code: str) -> None:
    plugins.add("broken_cloud", code, "broken = broken_cloud:P")

    with pytest.raises(PluginError) as error:
        load(installed(), ["file", "broken"])
    assert "\n" not in str(error.value)


def test_only_what_was_named_is_imported(plugins: PluginPackages) -> None:
    plugins.add("broken_cloud", "1 / 0", "broken = broken_cloud:P")

    assert load(installed(), ["file"]).left_out == {}


def test_an_unknown_name_gets_the_list_of_those_that_exist() -> None:
    with pytest.raises(PluginError, match=r"no provider is called 'ec3'; installed are: .*ec2.*file.*gce"):
        load(installed(), ["ec3"])


def test_a_bare_checkout_says_what_to_do() -> None:
    with pytest.raises(PluginError, match="bare checkout, install it"):
        load(Installed({}), ["ec2"])


# Options


class Knobs(Options):
    speed: float = 1.0
    sizes: tuple[int, ...] = ()


class Knobbed(Provider):
    name = "knobbed"
    options_type = Knobs


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"speed": "fast"}, r"^\[providers.knobbed\] speed = 'fast': Input should be a valid number"),
        ({"sped": 3}, r"^\[providers.knobbed\] has no key 'sped'; its keys are: speed, sizes$"),
        ({"sizes": [1, "x"]}, r"^\[providers.knobbed\] sizes.1 = 'x': "),
        ({"speed": "a", "sizes": 3}, r"\(and 1 more\)$"),
        (3, r"^\[providers.knobbed\] must be a table, not 3$"),
        ([], r"must be a table"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_of_one_line(table: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        options_for(Knobbed, table)
    assert "\n" not in str(error.value)


def test_a_table_that_fits_becomes_options() -> None:
    assert options_for(Knobbed, {"speed": 2}) == Knobs(speed=2)


def test_a_table_for_a_provider_that_is_not_installed_is_an_error_and_an_unused_one_is_not() -> None:
    check_tables({"gce": {}, "sigterm": {}}, installed())

    with pytest.raises(ConfigError, match=r"\[providers.ec3\]: no provider is called 'ec3'; installed are"):
        check_tables({"ec3": {}}, installed())


# Construction


class Crashing(Provider):
    name = "crashing"

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        raise ZeroDivisionError("division by zero")


class Strict(Provider):
    name = "strict"

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        raise ConfigError("STRICT_TIMEOUT is no number")


def test_a_constructor_that_raises_costs_that_provider_alone() -> None:
    built = build([Chosen(Crashing, "its DMI", Found.MACHINE), Chosen(Knobbed, "its DMI", Found.MACHINE)], {}, NOWHERE)

    assert [provider.name for provider in built.providers] == ["knobbed"]
    assert built.left_out == {"crashing": "cannot be set up: ZeroDivisionError: division by zero"}


def test_a_constructor_that_raises_is_an_error_if_the_user_named_it() -> None:
    with pytest.raises(PluginError, match="provider 'crashing' cannot be set up: ZeroDivisionError"):
        build([Chosen(Crashing, "named by the user", None)], {}, NOWHERE)


def test_an_environment_that_cannot_be_used_is_the_users_to_mend_unless_it_is_a_mere_guess() -> None:
    with pytest.raises(ConfigError, match="STRICT_TIMEOUT"):
        build([Chosen(Strict, "its variable", Found.ENVIRONMENT)], {}, NOWHERE)

    assert set(build([Chosen(Strict, "", Found.PROBE)], {}, NOWHERE).left_out) == {"strict"}


def test_each_gets_its_own_table() -> None:
    with pytest.raises(ConfigError, match=r"\[providers.knobbed\]"):
        build([Chosen(Knobbed, "", Found.MACHINE)], {"knobbed": {"x": 1}}, NOWHERE)

    assert build([Chosen(Knobbed, "", Found.MACHINE)], {"blue": {"x": 1}}, NOWHERE).left_out == {}
