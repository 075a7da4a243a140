"""Credentials leave no trace in messages; names of files stay what they are."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.runtime.redaction import redact, redact_address, redact_urls

SECRET = "hunter2/s3cr+t"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/b",
        f"s3://user:p@{SECRET}@host/b".replace("/s3", "s3"),
        f"https://user:{SECRET}?x#y@host/b",
        *(f"https://host/b?size=3&{name}={SECRET}&end=1" for name in ("key", "pwd", "jwt", "code", "sig", "access_token")),
        *(f"https://host/b?X-Amz-{name}={SECRET}" for name in ("Signature", "Credential", "Security-Token")),
        *(f"{name}={SECRET} host/b" for name in ("key", "pwd", "jwt", "code", "password", "AWS_SECRET_ACCESS_KEY", "accountKey")),
        f"storage_options={{'key': '{SECRET}', 'client_kwargs': {{'aws_session_token': \"{SECRET}\"}}}} host/b",
        f"password: {SECRET} host/b",
        rf"{{'secret': 'a\'{SECRET}', 'end': 'host/b'}}",
        f"host/b cut off: key='{SECRET}",
        f"Authorization: Bearer {SECRET} host/b",
        f"headers bearer {SECRET}, host/b",
        f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={SECRET}==;EndpointSuffix=host/b",
    ],
)  # fmt: skip
def test_every_way_to_write_a_secret(text: str) -> None:
    shown = redact(text)
    for leak in ("hunter2", "s3cr"):
        assert leak not in shown, shown
    assert "host/b" in shown


def test_tokens_are_known_by_their_shape_and_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_STORE_PASSWORD", "correct horse battery")
    token = "eyJhbGciOi.eyJzdWIiOiIx.SflKxwRJSM"
    shown = redact(f"AKIAIOSFODNN7EXAMPLE hf_{'a' * 30} {token} correct horse battery end")
    assert shown == "*** *** *** *** end"


@pytest.mark.parametrize(
    "text",
    [
        "videos/it's a test, token count.mp4",
        "https://host/a@b/c.mp4 me@home.org",
        "https://host:8080/a@b.mp4",
        "http://[::1]:80/a@b.mp4",
        "unknown key: 'sync.rate'; did you mean sync.fps?",
        "decide.sync_min_conf=4 and monkey=3, tokens_per_frame=2",
        "KeyError: 'video_id'",
        "exit code: 3",
    ],
)
def test_ordinary_messages_stay(text: str) -> None:
    assert redact(text) == text


def test_files_are_found_by_their_redacted_name() -> None:
    for name in ("s3://bucket/key=3/code=de/a@b.mp4", "videos/token=5/a.mp4", "/data/pwd=1 secret: x.mp4"):
        assert redact_address(name) == name
    assert (
        redact_address(f"https://me:{SECRET}@host/key=3/a.mp4?key={SECRET}&v=1")
        == "https://***@host/key=3/a.mp4?key=***&v=1"
    )


def test_results_keep_commands_and_lose_credentials() -> None:
    text = f"s3://me:{SECRET}@host/b: 3 samples; set it with --set KEY=PATH or https://host/b?token={SECRET}"
    assert redact_urls(text) == "s3://***@host/b: 3 samples; set it with --set KEY=PATH or https://host/b?token=***"


@given(st.text(max_size=400))
def test_text_of_any_kind_is_taken(text: str) -> None:
    assert isinstance(redact(text), str)


@pytest.mark.parametrize(
    "piece",
    ["a", "token", "key=", "key='", 'key="', "://", "a://", "a:b@", "&sig", "=", " : ", "eyJ.", "?token=x&", "bearer "],
)
def test_a_long_text_costs_as_much_as_it_is_long(piece: str) -> None:
    """Four times the text takes about four times as long; with a quadratic pattern it is sixteen times."""

    def seconds(length: int) -> float:
        text = (piece * length)[:length]
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            redact(text)
            best = min(best, time.process_time() - begin)
        return best

    short = seconds(50_000)
    assert seconds(200_000) < 9 * short + 0.02
