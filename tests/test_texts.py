"""A text becomes rows that all follow one another: calibration apart, every other row once an epoch, the same again."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from labkit.errors import LabkitError
from labkit.texts import APART, Text, TextCorpus, text_corpus

LENGTH, ROWS = 5, APART + 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a number."""
    words = Tokenizer(models.WordLevel({**{str(n): n for n in range(1000)}, "?": 1000}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.fixture
def file(tmp_path):
    """Numbers that count up."""
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(map(str, range(1, ROWS * LENGTH + 4))))
    return path


def test_labels_are_the_tokens_that_follow_and_no_training_sees_a_calibration_row(file, tokenizer):
    corpus = text_corpus(file, tokenizer, LENGTH)
    calibration = corpus.calibration()
    assert calibration.shape == (APART, LENGTH) and calibration.dtype == np.int64
    assert calibration.ravel().tolist() == list(range(20 * LENGTH + 1, ROWS * LENGTH + 1))
    assert corpus.calibration(3).tolist() == calibration[-3:].tolist()
    for tokens, labels in corpus.batches(4, 15):
        assert tokens.shape == labels.shape == (4, LENGTH) and (labels == tokens + 1).all()
        assert not np.isin(tokens, calibration).any()


def test_every_row_comes_once_an_epoch_in_another_order_each_time(file, tokenizer):
    firsts = [row[0] for tokens, _ in text_corpus(file, tokenizer, LENGTH).batches(10, 6) for row in tokens]
    epochs = [firsts[k : k + 20] for k in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(1, 20 * LENGTH + 1, LENGTH)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_it_goes_on_in_the_middle_and_differs_by_seed(file, tokenizer):
    whole = [tokens.tolist() for tokens, _ in text_corpus(file, tokenizer, LENGTH).batches(8, 7)]
    rest = [tokens.tolist() for tokens, _ in text_corpus(file, tokenizer, LENGTH).batches(8, 7, first=4)]
    other = [tokens.tolist() for tokens, _ in text_corpus(file, tokenizer, LENGTH, seed=1).batches(8, 7)]
    assert rest == whole[4:] and other != whole


def test_two_texts_are_told_apart_as_a_checkpoint_does(file, tokenizer):
    one, same = text_corpus(file, tokenizer, LENGTH), text_corpus(file, tokenizer, LENGTH)
    file.write_text(file.read_text().replace("7", "8"))
    assert repr(one) == repr(same) != repr(text_corpus(file, tokenizer, LENGTH))
    assert Text(str(file)).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_is_no_text_or_too_short_is_refused(tmp_path, tokenizer):
    with pytest.raises(LabkitError, match=r"is a file in UTF-8; got '.*gone.txt \(No such file.*\)'. Give its path"):
        text_corpus(tmp_path / "gone.txt", tokenizer)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(LabkitError, match=r"is a file in UTF-8; got '.*bytes.txt \(not UTF-8\)'"):
        text_corpus(tmp_path / "bytes.txt", tokenizer)
    (tmp_path / "short.txt").write_text("1 2 3 4 5 6 7")
    with pytest.raises(LabkitError, match="a text has more than 128 rows of 3 tokens; got '.*, 7 tokens, which are 2 rows'. Give a longer"):
        text_corpus(tmp_path / "short.txt", tokenizer, 3)
    with pytest.raises(LabkitError, match="a row of text has at least 2 tokens; got 1"):
        Text("x", 1)
    corpus = TextCorpus("d", 0, 2, np.zeros((200, 3), dtype=np.int64))
    with pytest.raises(LabkitError, match="a text keeps 128 rows apart for calibration; got 129"):
        corpus.calibration(129)
