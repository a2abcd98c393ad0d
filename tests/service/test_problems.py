"""Errors as `application/problem+json`, whatever they are."""

import json

import pytest

from models import errors
from models.errors import (
    DeadlineExceeded,
    LoupeError,
    NotReady,
    QueueFull,
    RequestError,
    Unavailable,
)
from service.problems import problem


def tree(root: type[LoupeError]) -> list[type[LoupeError]]:
    """*root* and all below it."""
    return [root, *(one for child in root.__subclasses__() for one in tree(child))]


@pytest.mark.parametrize("kind", [*tree(RequestError), *tree(Unavailable)])
def test_a_problem_says_what_its_error_says(kind):
    response = problem(kind("received 7, expected 8"), request_id="abc")
    assert response.status_code == kind.status
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body) == {
        "type": f"urn:loupe:problem:{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": "received 7, expected 8",
        "code": kind.code,
        "request_id": "abc",
    }


def test_the_tree_was_really_walked():
    assert (len(tree(RequestError)), len(tree(Unavailable))) == (27, 5)
    assert len({kind.code for kind in tree(RequestError)}) == len(tree(RequestError)) - 2, (
        "bad_request stands for its two parents and itself"
    )


@pytest.mark.parametrize(
    "kind", [LoupeError, errors.PackageError, errors.StoreError, errors.ConfigError]
)
def test_what_broke_inside_us_is_not_told_to_the_caller(kind):
    response = problem(kind("/srv/store/ants: permission denied"), request_id="abc")
    assert response.status_code == 500
    assert json.loads(response.body)["detail"] == "The service failed; its log says why."


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")]
)
@pytest.mark.parametrize("kind", [QueueFull, NotReady, DeadlineExceeded])
def test_retry_after_is_whole_seconds_and_never_too_early(kind, wait_s, header):
    assert (
        problem(kind("later", retry_after_s=wait_s), request_id="abc").headers["retry-after"]
        == header
    )


def test_without_a_time_there_is_no_retry_after():
    assert "retry-after" not in problem(NotReady("refused"), request_id="abc").headers
    assert "retry-after" not in problem(errors.EmptyBody("nothing"), request_id="abc").headers


def test_a_message_of_any_text_is_valid_json():
    response = problem(errors.BadRequest('"\\ \n\x00 ٣ 日本'), request_id="abc")
    assert json.loads(response.body)["detail"] == '"\\ \n\x00 ٣ 日本'
