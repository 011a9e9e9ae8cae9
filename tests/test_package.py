"""The package's public face: names, lazy imports, and the wheel's contents."""

from __future__ import annotations

import subprocess
import sys

import pytest

import secure_infer
from secure_infer import errors

HEAVY = ("torch", "brevitas", "concrete", "tenseal", "crypten", "sklearn", "matplotlib", "spu", "jax")


def test_every_public_name_exists() -> None:
    for name in secure_infer.__all__:
        assert getattr(secure_infer, name) is not None
    assert set(secure_infer.__all__) <= set(dir(secure_infer))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = secure_infer.nothing


def test_importing_loads_no_heavy_library() -> None:
    program = (
        "import sys, secure_infer, secure_infer.client, secure_infer.compiler, secure_infer.cli;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_public_functions_stay_functions_after_their_modules_load() -> None:
    from secure_infer import compiler

    assert secure_infer.compile is compiler.compile


def test_exit_codes_are_distinct_and_documented() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]
    codes = {cls.__name__: cls.exit_code for cls in classes}
    assert len(set(codes.values())) == len(codes)
    for name, code in codes.items():
        assert any(name in line and f" {code}" in line for line in (errors.__doc__ or "").splitlines())


def test_an_error_lists_all_problems_with_their_fixes() -> None:
    problems = [errors.Problem("a", "Broken.", "mend it."), errors.Problem("b", "Torn.", "sew it.")]
    text = str(errors.UnsupportedNetwork("Two things are wrong.", problems, "excerpt"))
    assert text == "Two things are wrong.\n  - a: Broken. Fix: mend it.\n  - b: Torn. Fix: sew it.\nexcerpt"
