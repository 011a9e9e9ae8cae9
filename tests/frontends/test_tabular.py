"""Models of scikit-learn and XGBoost: the graph's scores are the model's own where bins lose nothing of the rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import ensemble, linear_model, neural_network, preprocessing, svm, tree
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import secure_infer as si
from secure_infer.errors import InvalidInput, UnsupportedNetwork, UsageError
from secure_infer.frontends import to_graph
from secure_infer.frontends.tabular.bins import quantile_edges
from secure_infer.frontends.tabular.models import family, parts, scores
from secure_infer.graph import Graph, interpret

RNG = np.random.default_rng(5)
ROWS = RNG.integers(0, 9, (240, 6)).astype(float) * [1, 10, 0.1, 1, 1, 1000] + [0, 500, 0, -4, 0, 1e6]
SIGNAL = (ROWS[:, 0] * ROWS[:, 3] + ROWS[:, 1] / 5 + RNG.normal(size=240) * 3).astype(float)
CLASSES = {2: (SIGNAL > 100).astype(int), 3: np.digitize(SIGNAL, [90, 110])}


def _fit(model: Any, classes: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(ROWS, CLASSES[classes] if classes else SIGNAL)


def _scores(model: Any, x: np.ndarray) -> np.ndarray:
    """The documented scores, as the model itself computes them."""
    scalers, end = parts(model)
    for scaler in scalers:
        x = scaler.transform(x)
    kind = family(end)
    assert kind is not None
    return scores(end, kind, x).values


def _found(graph: Graph, x: np.ndarray) -> np.ndarray:
    return graph.dequantize(interpret(graph, graph.quantize(x)))


def _boosting(name: str, **options: Any) -> Any:
    xgboost = pytest.importorskip("xgboost")
    return getattr(xgboost, name)(n_estimators=6, max_depth=3, **options)


TREES: list[tuple[Callable[[], Any], int]] = [
    (lambda: tree.DecisionTreeClassifier(random_state=0), 3),
    (lambda: tree.DecisionTreeClassifier(max_depth=3, random_state=0), 2),
    (lambda: tree.ExtraTreeClassifier(max_depth=4, random_state=0), 3),
    (lambda: tree.DecisionTreeRegressor(max_depth=4, random_state=0), 0),
    (lambda: ensemble.RandomForestClassifier(7, max_depth=4, random_state=0), 2),
    (lambda: ensemble.RandomForestClassifier(5, random_state=0), 3),
    (lambda: ensemble.ExtraTreesRegressor(5, max_depth=4, random_state=0), 0),
    (lambda: ensemble.GradientBoostingClassifier(n_estimators=8, random_state=0), 2),
    (lambda: ensemble.GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=0), 3),
    (lambda: ensemble.GradientBoostingRegressor(n_estimators=12, max_depth=1, random_state=0), 0),
    (lambda: ensemble.HistGradientBoostingClassifier(max_iter=4, random_state=0), 3),
    (lambda: ensemble.HistGradientBoostingRegressor(max_iter=6, random_state=0), 0),
    (lambda: _boosting("XGBClassifier"), 2),
    (lambda: _boosting("XGBClassifier"), 3),
    (lambda: _boosting("XGBRegressor"), 0),
]


@pytest.mark.parametrize("protocol", ["tfhe", "mpc"])
@pytest.mark.parametrize(("make", "classes"), TREES)
def test_trees_are_exact_where_bins_lose_nothing(make: Callable[[], Any], classes: int, protocol: str) -> None:
    model = _fit(make_pipeline(preprocessing.StandardScaler(), make()), classes)
    graph = to_graph(model, ROWS, protocol, {"weights": 16})
    expected, found = _scores(model, ROWS), _found(graph, ROWS)
    trees = 1 if not hasattr(model[-1], "estimators_") else len(model[-1].estimators_)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.ptp(expected) * max(1, trees / 8))
    if classes:
        assert (found.argmax(axis=1) == model.predict(ROWS)).mean() > 0.99
    assert graph.kinds & {"Sign", "Lookup"} <= {"Sign" if protocol == "mpc" else "Lookup"}


def test_stumps_need_no_look_up() -> None:
    model = _fit(ensemble.GradientBoostingRegressor(n_estimators=30, max_depth=1, random_state=0), 0)
    for protocol in ("tfhe", "mpc"):
        graph = to_graph(model, ROWS, protocol, {"weights": 14})
        assert graph.kinds == {"Linear"}
        np.testing.assert_allclose(_found(graph, ROWS)[:, 0], model.predict(ROWS), rtol=1e-3)


def test_look_ups_are_few_and_narrow() -> None:
    model = _fit(tree.DecisionTreeRegressor(max_depth=4, random_state=0), 0)
    graph = to_graph(model, ROWS, "tfhe")
    look_up = next(node for node in graph.nodes if node.kind == "Lookup")
    assert graph.types[look_up.name].size < model.get_n_leaves() - 1
    assert graph.input_type(look_up).bits <= 5


LINEAR: list[tuple[Callable[[], Any], int]] = [
    (linear_model.LinearRegression, 0),
    (linear_model.Ridge, 0),
    (lambda: linear_model.Lasso(0.01), 0),
    (lambda: linear_model.SGDRegressor(random_state=0), 0),
    (lambda: svm.LinearSVR(max_iter=100, random_state=0), 0),
    (linear_model.LogisticRegression, 2),
    (linear_model.LogisticRegression, 3),
    (lambda: svm.LinearSVC(dual=False), 3),
    (lambda: linear_model.SGDClassifier(random_state=0), 2),
    (linear_model.RidgeClassifier, 3),
]


@pytest.mark.parametrize("protocol", ["tfhe", "ckks", "mpc"])
@pytest.mark.parametrize(("make", "classes"), LINEAR)
def test_linear_models(make: Callable[[], Any], classes: int, protocol: str) -> None:
    model = _fit(make_pipeline(preprocessing.MinMaxScaler(), preprocessing.RobustScaler(), make()), classes)
    graph = to_graph(model, ROWS, protocol)
    assert graph.kinds == {"Linear"}
    expected, found = _scores(model, ROWS), _found(graph, ROWS)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.ptp(expected))
    if classes:
        assert (found.argmax(axis=1) == model.predict(ROWS)).mean() > 0.98


@pytest.mark.parametrize(
    ("make", "classes"),
    [
        (lambda: neural_network.MLPClassifier((8,), max_iter=200, random_state=0), 2),
        (lambda: neural_network.MLPClassifier((8, 6), "tanh", max_iter=200, random_state=0), 3),
        (lambda: neural_network.MLPRegressor((8,), "logistic", max_iter=200, random_state=0), 0),
    ],
)
def test_perceptrons(make: Callable[[], Any], classes: int) -> None:
    model = _fit(make_pipeline(preprocessing.StandardScaler(), make()), classes)
    for protocol, share in (("clear", 0.03), ("tfhe", 0.15)):
        graph = to_graph(model, ROWS, protocol, None if protocol == "clear" else 6)
        expected, found = model.predict_proba(ROWS) if classes else _scores(model, ROWS), _found(graph, ROWS)
        if classes:
            powers = np.exp(found - found.max(axis=1, keepdims=True))
            found = powers / powers.sum(axis=1, keepdims=True)
        assert np.abs(found - expected).mean() < share * np.ptp(expected)


def test_the_softmax_of_the_columns_is_predict_proba() -> None:
    for model, classes in ((linear_model.LogisticRegression(), 2), (linear_model.LogisticRegression(), 3)):
        fitted = _fit(make_pipeline(preprocessing.StandardScaler(), model), classes)
        powers = np.exp(_found(to_graph(fitted, ROWS, "tfhe"), ROWS))
        np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), fitted.predict_proba(ROWS), atol=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_accuracy(seed: int) -> None:
    data = load_breast_cancer()
    order = np.random.default_rng(seed).permutation(len(data.target))
    (x, y), (held, labels) = ((data.data[part], data.target[part]) for part in (order[:400], order[400:]))
    for model in (
        tree.DecisionTreeClassifier(max_depth=4, random_state=0),
        ensemble.RandomForestClassifier(10, max_depth=4, random_state=0),
    ):
        model.fit(x, y)
        found = _found(to_graph(model, x, "tfhe"), held)
        assert (found.argmax(axis=1) == labels).mean() >= model.score(held, labels) - 0.03


def test_a_search_stands_for_its_best_model_and_passthrough_for_nothing() -> None:
    search = GridSearchCV(tree.DecisionTreeClassifier(random_state=0), {"max_depth": [2, 3]}, cv=2)
    model = _fit(make_pipeline("passthrough", search), 2)
    assert (_found(to_graph(model, ROWS, "tfhe"), ROWS).argmax(axis=1) == model.predict(ROWS)).all()


@given(st.integers(1, 6), st.integers(2, 60), st.integers(0, 10))
@settings(deadline=None, max_examples=40)
def test_edges_part_the_rows(bits: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (100, 2)) * np.array([1e-9, 1e9])
    edges = quantile_edges(x, (1 << bits) - 1)
    for column, row in zip(x.T, edges, strict=True):
        distinct = np.unique(column)
        assert (np.diff(row) >= 0).all() and not np.isin(row, distinct[:1]).any()
        assert len(np.unique(row)) == min(len(row), len(distinct) - 1)


class _Strange(linear_model.LinearRegression):
    def predict(self, X: Any) -> Any:
        return np.exp(super().predict(X) / 1e3)


@pytest.mark.parametrize(
    ("model", "classes", "protocol", "message"),
    [
        (linear_model.PoissonRegressor(), 0, "tfhe", "link function"),
        (_Strange(), 0, "tfhe", "link function"),
        (svm.SVC(), 2, "tfhe", "no encrypted form of SVC"),
        (make_pipeline(PCA(2), linear_model.LinearRegression()), 0, "tfhe", "no fitted scaler"),
        (make_pipeline(preprocessing.MinMaxScaler(clip=True), linear_model.LinearRegression()), 0, "tfhe", "scaler"),
        (tree.DecisionTreeRegressor(), 0, "ckks", "can't evaluate trees"),
        (neural_network.MLPRegressor((3,), max_iter=5), 0, "ckks", "can't evaluate relu"),
    ],
)
def test_what_is_refused(model: Any, classes: int, protocol: str, message: str) -> None:
    fitted = _fit(model, classes)
    with pytest.raises(UnsupportedNetwork, match=message):
        si.compile(fitted, ROWS, protocol=protocol)
    if "link" not in message:
        assert any(message in problem.what for problem in si.check(fitted, protocol))


def test_models_that_are_not_fitted_and_several_labels() -> None:
    for model in (tree.DecisionTreeClassifier(), linear_model.Ridge(), _boosting("XGBClassifier")):
        assert [problem.what for problem in si.check(model, "tfhe")] == ["It is not fitted."]
    several = tree.DecisionTreeClassifier().fit(ROWS, np.stack([CLASSES[2], CLASSES[3]], axis=1))
    assert "several labels" in si.check(several, "mpc")[0].what
    assert si.check(_fit(tree.DecisionTreeClassifier(), 2), "tfhe") == []


@pytest.mark.parametrize("x", [ROWS[:, :3], ROWS[0], ROWS[:0], ROWS * np.nan, np.full((4, 6), "a"), ROWS[:, :, None]])
def test_calibration_rows_that_do_not_fit(x: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        si.compile(_fit(linear_model.Ridge(), 0), x, protocol="tfhe")


@pytest.mark.parametrize("bits", [0, 13, 2.5, {"activations": 3}, {"input": True}])
def test_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(UsageError, match="n_bits"):
        to_graph(_fit(tree.DecisionTreeClassifier(), 2), ROWS, "tfhe", bits)
    with pytest.raises(UsageError, match="protocol"):
        si.check(linear_model.Ridge(), "tfhee")


def test_rows_beyond_the_calibrated_range() -> None:
    linear = si.compile(_fit(linear_model.Ridge(), 0), ROWS, protocol="clear")
    with pytest.raises(InvalidInput, match="of features 1, 5"):
        linear.predict(ROWS + np.array([0, 1e6, 0, 0, 0, 1e9]), mode="clear")
    # Trees only ask on which side of an edge a value lies.
    trees = si.compile(_fit(tree.DecisionTreeClassifier(random_state=0), 2), ROWS, protocol="clear")
    assert trees.predict(ROWS * 1e6, mode="clear").shape == (240, 2)


def test_a_bundle_brings_its_encoding(tmp_path: Any) -> None:
    for model in (_fit(linear_model.Ridge(), 0), _fit(tree.DecisionTreeClassifier(random_state=0), 2)):
        compiled = si.compile(model, ROWS, protocol="clear")
        compiled.save(tmp_path / "model.bundle")
        with si.Client.connect(tmp_path / "model.bundle") as client:
            assert client.interface.shape == (6,)
            np.testing.assert_array_equal(client.predict(ROWS), compiled.predict(ROWS, mode="clear"))


def test_encrypted_tree_and_line() -> None:
    boosted = _fit(ensemble.GradientBoostingClassifier(n_estimators=3, max_depth=3, random_state=0), 2)
    for model in (boosted, _fit(linear_model.LogisticRegression(max_iter=2000), 3)):
        compiled = si.compile(model, ROWS, protocol="tfhe")
        np.testing.assert_array_equal(compiled.predict(ROWS[:2]), compiled.predict(ROWS[:2], mode="clear"))
        compiled.close()


def test_a_tree_under_mpc_and_a_line_under_ckks() -> None:
    tree_model, line = _fit(tree.DecisionTreeClassifier(max_depth=4, random_state=0), 3), _fit(linear_model.Ridge(), 0)
    with_parties = si.compile(tree_model, ROWS, protocol="mpc")
    np.testing.assert_array_equal(with_parties.predict(ROWS[:20]), with_parties.predict(ROWS[:20], mode="clear"))
    with_parties.close()
    real = si.compile(line, ROWS, protocol="ckks")
    np.testing.assert_allclose(real.predict(ROWS[:5])[:, 0], line.predict(ROWS[:5]), atol=0.01 * np.ptp(SIGNAL))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["DecisionTreeClassifier", "RandomForestClassifier", "LogisticRegression"])
def test_concrete_ml_predicts_the_same(kind: str) -> None:
    """Concrete ML's own models, trained on the same rows, agree with ours about as often as with scikit-learn."""
    theirs = pytest.importorskip("concrete.ml.sklearn")
    data = load_breast_cancer()
    x, y, held = data.data[:400], data.target[:400], data.data[400:]
    options = {"LogisticRegression": {"n_bits": 8}}.get(kind, {"n_bits": 6, "max_depth": 4, "random_state": 0})
    if kind == "RandomForestClassifier":
        options["n_estimators"] = 8
    scaler = preprocessing.StandardScaler().fit(x)
    concrete_model, ours = getattr(theirs, kind)(**options).fit_benchmark(scaler.transform(x), y)
    concrete_model.compile(scaler.transform(x))
    compiled = si.compile(make_pipeline(scaler, ours), x, protocol="tfhe")
    agreed = concrete_model.predict(scaler.transform(held)) == _found(
        compiled.graph, np.clip(held, x.min(0), x.max(0))
    ).argmax(axis=1)
    assert agreed.mean() >= 0.95
    if kind != "LogisticRegression":  # which needs no look-up in either
        assert compiled.program.parameters["complexity"] < concrete_model.fhe_circuit.complexity
