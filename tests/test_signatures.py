"""Public functions spell out their arguments, few by position; a misspelt keyword is refused in the function's own name."""

import ast
import inspect
from pathlib import Path

import pytest

import pyro_vae
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import KeywordError, UsageError

PACKAGE = Path(pyro_vae.__file__).parent
FUNCTIONS = {n: f for n in pyro_vae.__all__ if inspect.isfunction(f := getattr(pyro_vae, n))}
TO_PROGRAMS = {"log_weights"}  # hands keywords that are not its own to the model and the guide


def named(function):
    """The parameters that a caller may name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def has_options(function):
    return any(p.default is not p.empty or p.kind is p.KEYWORD_ONLY for p in named(function))


KEYWORDS = [(n, p.name) for n, f in FUNCTIONS.items() if n not in TO_PROGRAMS for p in named(f)]


@pytest.mark.parametrize(("name", "keyword"), KEYWORDS, ids="-".join)
def test_a_typo_in_a_keyword_is_refused_by_the_function_that_was_called(name, keyword):
    function, typo = FUNCTIONS[name], keyword + keyword[-1]
    with pytest.raises(TypeError) as caught:
        function(**{typo: None})
    said = str(caught.value)
    assert said.startswith(f"{name}()") and repr(typo) in said
    if has_options(function):  # functions of one value (a bound, a family) leave it to Python
        assert isinstance(caught.value, UsageError) and said.endswith(f"did you mean {keyword!r}?")


def test_what_is_like_no_argument_gets_the_list_of_them():
    @suggest_keywords
    def score(x, *context, num_samples=1):
        return x, context, num_samples

    with pytest.raises(KeywordError, match=r"^score\(\) has no argument 'temperature'; it has x, num_samples$"):
        score(1, temperature=2)
    assert score(1, 2, num_samples=3) == (1, (2,), 3)
    assert str(inspect.signature(score)) == "(x, *context, num_samples=1)" and score.__name__ == "score"


OF_SAMPLING = {p.name for p in named(pyro_vae.log_likelihood) if p.kind is p.KEYWORD_ONLY} - {"method", "missing"}


@pytest.mark.parametrize("keyword", sorted(OF_SAMPLING))
def test_an_exact_method_refuses_what_is_of_sampling(keyword):
    with pytest.raises(KeywordError, match=f"method='exact' takes no {keyword}="):
        pyro_vae.log_likelihood(None, None, None, method="exact", **{keyword: "another"})


def test_no_public_function_takes_keywords_that_it_does_not_name():
    variadic = {
        name
        for name, function in FUNCTIONS.items()
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    }
    assert variadic == TO_PROGRAMS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_function_takes_more_than_seven_arguments_by_position(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            assert len(positional) <= 7, f"{node.name}: {positional}"
