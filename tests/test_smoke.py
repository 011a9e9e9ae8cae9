from hypothesis import given, settings
from secure_infer import backends
from secure_infer.graph import interpret, interpret_real
from tests.strategies import graphs, inputs_for, EXACT_OPS, REAL_OPS
@settings(deadline=None)
@given(graphs())
def test_a(g):
    x=inputs_for(g,3); interpret(g,x)
@settings(deadline=None)
@given(graphs(REAL_OPS))
def test_b(g):
    x=inputs_for(g,3); interpret(g,x); interpret_real(g,x)
def test_c(): assert "clear" in backends.protocols()
