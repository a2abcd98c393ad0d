"""The Job manifest asks for what the command takes, and fails for good on what would come again."""

from __future__ import annotations

from pathlib import Path

import yaml

from models.errors import ScoringError, StorageLost, TooManyFailures
from service.scoring.commands import score
from service.scoring.plan import parse_failure_limit, parse_shard

MANIFEST = Path(__file__).parents[3] / "docker" / "kubernetes" / "score-job.yaml"


def test_the_manifest_is_a_command_that_loupe_understands():
    job = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["loupe", "score"]
    arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", "7") for argument in container["args"]]
    options = score.make_context("score", arguments).params
    assert options["resume"]
    assert parse_shard(options["shard"]) == (7, job["spec"]["completions"])
    assert parse_failure_limit(options["max_failures"]).share == 0.01
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(options["state"].parent) in places
    assert {"/models/store", "/tmp"} <= places


def test_the_manifest_gives_up_on_what_a_restart_cannot_mend():
    job = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    (rule,) = [
        rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"
    ]
    assert rule["onExitCodes"]["values"] == [
        ScoringError.exit_status,
        2,
        TooManyFailures.exit_status,
    ]
    assert StorageLost.exit_status not in rule["onExitCodes"]["values"]
