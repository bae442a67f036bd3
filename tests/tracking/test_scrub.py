import pytest

from orchestrator.scrub import scrub, scrub_tree


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pass@host:5000/x", "http://***@host:5000/x"),
        ("https://host/p?X-Amz-Signature=abc&y=1", "https://host/p?X-Amz-Signature=***&y=1"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        ("s3://bucket/key=3/part", "s3://bucket/key=3/part"),
        ("mean@0.5 of a @ b", "mean@0.5 of a @ b"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_only_credentials_are_taken_out(text, expected):
    assert scrub(text) == expected


def test_secret_keys_are_hidden_and_look_alikes_kept():
    found = scrub_tree(
        {"api_key": "x", "hub": {"token": "y"}, "n_tokens": 3, "tokenizer": "bpe", "list": ["http://a:b@c"]}
    )
    assert found == {
        "api_key": "***",
        "hub": {"token": "***"},
        "n_tokens": 3,
        "tokenizer": "bpe",
        "list": ["http://***@c"],
    }
