"""Where T5's vocabulary is found, and when."""

import copy
import pickle
import urllib.error

import gin
import pytest
import sentencepiece
import seqio

from t0x import vocabulary


@pytest.fixture(scope="module")
def model_bytes():
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a model of few pieces", "for tests and nothing else"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def model(tmp_path, model_bytes):
    path = tmp_path / "given" / "small.model"
    path.parent.mkdir()
    path.write_bytes(model_bytes)
    return path


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No vocabulary anywhere, and no network."""
    for name in ("T0X_VOCABULARY", "T0X_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("T0X_CACHE_DIR", str(tmp_path / "cache"))

    def refuse(url, timeout):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    yield
    gin.clear_config()


def test_nothing_is_looked_for_before_the_first_use():
    made = vocabulary.t5_vocabulary()
    assert made == copy.deepcopy(made) == pickle.loads(pickle.dumps(made))
    with pytest.raises(FileNotFoundError) as caught:
        made.encode("text")
    message = str(caught.value)
    assert vocabulary.GCS_PATH in message and "$T0X_VOCABULARY" in message
    assert "\n" not in message


def test_places_in_order(tmp_path, monkeypatch, model, model_bytes):
    places = [tmp_path / "cache" / "vocab", tmp_path / "vocab", tmp_path / "rows" / "vocab"]
    monkeypatch.setenv("T0X_DATA_DIR", str(tmp_path / "rows"))
    for place in places:
        place.mkdir(parents=True)
        (place / "v.model").write_bytes(model_bytes)
        assert vocabulary.find_model() == str(place / "v.model")
    monkeypatch.setenv("T0X_VOCABULARY", str(model))
    assert vocabulary.find_model() == str(model)
    assert vocabulary.find_model(str(places[0] / "v.model")) == str(places[0] / "v.model")


def test_a_named_file_that_is_not_there_is_an_error(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"path names /no/such\.model"):
        vocabulary.t5_vocabulary("/no/such.model").encode("text")
    monkeypatch.setenv("T0X_VOCABULARY", "/nor/this.model")
    with pytest.raises(FileNotFoundError, match=r"\$T0X_VOCABULARY names /nor/this\.model"):
        vocabulary.find_model()


def test_gin_binding_read_after_the_vocabulary_was_made(model):
    made = vocabulary.t5_vocabulary()
    with gin.unlock_config():
        gin.parse_config(f"MODEL = '{model}'\nt0x.vocabulary.t5_vocabulary.path = %MODEL")
    assert made.sentencepiece_model_file == str(model)


def test_equal_to_seqios_over_the_same_file(model, tmp_path, model_bytes):
    ours, theirs = (make(str(model)) for make in (vocabulary.t5_vocabulary, _seqio))
    assert ours == theirs and theirs == ours
    copied = tmp_path / "copied.model"
    copied.write_bytes(model_bytes)
    assert ours == _seqio(str(copied))
    assert ours != seqio.SentencePieceVocabulary(str(model), extra_ids=5)
    assert ours != seqio.ByteVocabulary()
    text = "a model for tests"
    assert ours.encode(text) == theirs.encode(text) == list(ours.encode_tf(text).numpy())
    assert ours.decode(ours.encode(text)) == text


def _seqio(path):
    return seqio.SentencePieceVocabulary(path)


def test_downloaded_once_into_the_cache(tmp_path, monkeypatch, model):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return model.open("rb")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    found = [vocabulary.find_model(), vocabulary.find_model()]
    assert found == [str(tmp_path / "cache" / "vocab" / vocabulary.MODEL_NAME)] * 2
    assert asked == ["https://storage.googleapis.com/t5-data/vocabs/cc_all.32000.100extra/"
                     "sentencepiece.model"]  # fmt: skip
