"""`loupe networks`: what is known of each network, and what is counted."""

import json

import pytest
import timm
from click.testing import CliRunner

import loupe
from models.errors import ConfigError
from models.networks import listing
from models.networks.catalogue import more_networks, networks
from models.networks.listing import Listed, list_networks, matching, measured_ms


def test_without_a_pattern_all_but_timms_are_listed_and_none_is_built(monkeypatch):
    def built(*_, **__):
        raise AssertionError("a network was built")

    monkeypatch.setattr(listing, "build", built)
    found = list_networks()
    assert [one.name for one in found] == [*networks(), *more_networks()]
    resnet = next(one for one in found if one.name == "resnet50")
    # torchvision's own figures.
    assert (resnet.parameters, resnet.multiply_adds) == (25557032, 4089000000)
    assert (resnet.image_size, resnet.licence) == (224, "bsd-3-clause")
    licences = {one.name: one.licence for one in found}
    assert licences["vit_h_14"] == "cc-by-nc-4.0"
    assert licences["lenet5"] is None


def test_a_few_of_timm_are_counted():
    (found,) = list_networks("timm:test_resnet")
    assert found == Listed(
        name="timm:test_resnet",
        parameters=sum(value.numel() for value in timm.create_model("test_resnet").parameters()),
        multiply_adds=found.multiply_adds,
        image_size=160,
        interpolation=timm.models.get_pretrained_cfg("test_resnet").interpolation,
        licence="apache-2.0",
    )
    assert found.multiply_adds is not None
    assert 1e7 < found.multiply_adds < 1e9


def test_counts_are_those_of_torchvision_for_the_same_network():
    counted = listing._counted(Listed(name="resnet18", image_size=224, interpolation="bilinear"))
    assert counted.parameters == 11689512
    assert counted.multiply_adds == pytest.approx(1.814e9, rel=0.01)


def test_a_part_of_a_name_or_wildcards_find_networks():
    assert matching("resnet5")[:2] == ["resnet50", "wide_resnet50_2"]
    assert "timm:resnet50" in matching("resnet5")
    assert matching("timm:test_vit?") == ["timm:test_vit2", "timm:test_vit3", "timm:test_vit4"]
    assert len(matching("timm:*")) > 1000
    with pytest.raises(ConfigError, match="no network matches 'nothing'; `loupe networks` lists"):
        list_networks("nothing")


def test_every_measured_network_is_a_network():
    assert len(measured_ms()) >= 5
    assert [name for name in measured_ms() if name not in matching(name)] == []


@pytest.mark.parametrize("arguments", [[], ["timm:vit_large*"]])
def test_the_table_fits_a_screen_of_80_columns(arguments):
    done = CliRunner().invoke(loupe.cli, ["networks", *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "licence" in done.output


def test_json_has_everything():
    done = CliRunner().invoke(loupe.cli, ["networks", "mobilenet_v2", "--json"])
    first = json.loads(done.output)[0]
    assert first["name"] == "mobilenet_v2"
    assert set(first) == set(Listed.__dataclass_fields__)
