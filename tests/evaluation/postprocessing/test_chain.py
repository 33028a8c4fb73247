import numpy as np
import pytest

from deepmetric.errors import InputError
from deepmetric.evaluation import retrieval_metrics
from deepmetric.evaluation.postprocessing import (
    KReciprocal,
    Whitening,
    database_augmentation,
    parse_chain,
    query_expansion,
)

rng = np.random.default_rng(0)
LABELS = np.repeat(np.arange(8), 6)
X = rng.standard_normal((8, 10))[LABELS] + 0.8 * rng.standard_normal((48, 10))
TRAINING = rng.standard_normal((100, 10)) * np.arange(1, 11)
ALL = np.arange(48)


def test_everything_in_its_order() -> None:
    chain = parse_chain(
        "k_reciprocal(k1=6,k2=2) + query_expansion(k=2, alpha=1) + database_augmentation(k=3) + whitening"
    )
    assert list(chain.steps) == ["whitening", "database_augmentation", "query_expansion", "k_reciprocal"]
    query, gallery, options = chain._replace(training=TRAINING).apply(X, None, ALL)
    white = Whitening(TRAINING)(X)
    want_gallery = database_augmentation(white, k=3)
    np.testing.assert_allclose(gallery, want_gallery, atol=1e-6)
    want = query_expansion(white, want_gallery, k=2, alpha=1, self_index=ALL)
    np.testing.assert_allclose(query, want, atol=1e-6)
    assert options == {"similarity": KReciprocal(6, 2)}
    scores = retrieval_metrics(query, LABELS, gallery, LABELS, self_index=ALL, **options)
    assert scores["queries"] == 48


def test_nothing_changes_nothing() -> None:
    query, gallery, options = parse_chain("views(crops=5)").apply(X, None, ALL)
    assert query is X
    assert gallery is None
    assert options == {}


def test_whitening_needs_training_items() -> None:
    with pytest.raises(InputError, match="training items"):
        parse_chain("whitening").apply(X, None, ALL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("whitenning", "Did you mean 'whitening'"),
        ("query_expansion(alhpa=1)", "'alpha'"),
        ("query_expansion(5)", "by name"),
        ("query_expansion(k=", "cannot be read"),
        ("whitening - views", "cannot be read"),
        ("query_expansion(query=3)", "takes alpha, k"),
        ("query_expansion(k=2, k=3)", "given twice"),
        ("query_expansion(k=2.5)", "`k` of query_expansion is 2.5; expected int"),
        ("query_expansion(alpha='1')", "`alpha` of query_expansion is '1'; expected float"),
        ("whitening(dim=True)", "`dim` of whitening is True; expected int | None"),
        ("k_reciprocal(weight=None)", "`weight` of k_reciprocal is None"),
        ("whitening(dim=2) + whitening(dim=3)", "names a step twice"),
    ],
)
def test_what_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_chain(text)
