"""Law 11: every preset is the published recurrence it says it is; those are in `tests.oracles`, by hand."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import FAST, MEMBERS, RULES, close, in_fast_lane, in_range
from tests.memory.situations import CHUNK, Case, Member, absolute, row, rowwise, situations
from tests.oracles import delta, learners, recurrences
from tests.oracles import miras as miras_recurrences
from tests.oracles.learners import DeepMemory, l2, monomials, omega
from titans_jax.memory import PRESETS, Gates, Rule, miras, presets

DELTA = {"dgd_linear": delta.dgd_linear, "dgd": delta.dgd}
BY_NAME = {member.name: member for member in MEMBERS}
ALIAS = dict.fromkeys(("retnet", "gla", "mamba2"), recurrences.linear_attention) | {"rwkv7": recurrences.deltanet}
ORACLES = recurrences.ORACLES | miras_recurrences.ORACLES | learners.ORACLES | DELTA | ALIAS


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def fresh(member: Member, scale: float, tokens: int = 14) -> Case:
    """Rows that begin at token 0; `scale` is that of rates and forgetting: at a small one the clip never binds."""
    case = situations(member, tokens=tokens)
    dual, retention = absolute(case.state), member.rule.retention
    state = case.state._replace(
        dual=jax.tree.map(np.zeros_like, dual) if retention.to_origin else dual,
        traces=jax.tree.map(np.zeros_like, case.state.traces),
        anchor=dual,
        step=np.zeros_like(case.state.step),
        origin=dual if retention.to_origin else None,
        weights=in_range(member, dual) if retention.carries_weights else None,
        window=jax.tree.map(np.zeros_like, case.state.window),
    )
    gates = case.gates._replace(rate=scale * case.gates.rate, keep=1 - scale * (1 - case.gates.keep))
    return case._replace(state=state, gates=gates)


def by_hand(oracle, case: Case, r: int, chunk: int, clip: float | None, **choices):
    weights, q, k, v, gates = row((absolute(case.state), *case[1:]), r)
    given = {name: x for name, x in gates._asdict().items() if name in ("threshold", "weight") and x is not None}
    return oracle(weights, q, k, v, *gates[:3], chunk, clip, **given, **choices)


def agrees(member: Member, oracle, implementation: str, case: Case, chunk: int = CHUNK, **choices) -> None:
    y, state, *_ = jax.device_get(rowwise(member, implementation, chunk, member.gradients and chunk == CHUNK)(case))
    for r in range(len(y)):
        want, weights = by_hand(oracle, case, r, chunk, 1.0, **choices)
        close((y[r], row(absolute(state), r)), (want, weights), 1e-9, f"row {r}: ")


def test_every_preset_has_an_oracle() -> None:
    assert set(ORACLES) == set(PRESETS)


ORACLE_FILES = sorted((Path(__file__).resolve().parents[1] / "oracles").rglob("*.py"))


def test_oracles_import_nothing_of_the_library() -> None:
    """They judge it: only numpy, the standard library and each other."""
    assert {path.stem for path in ORACLE_FILES} >= {"recurrences", "delta", "learners", "miras"}
    for path in ORACLE_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                inside = module == "numpy" or module in sys.stdlib_module_names or module.startswith("tests.oracles.")
                assert inside and not getattr(node, "level", 0), f"{path.name} imports {module}"


def param(member: Member, *more):
    """Rows whose programs only the slow lane of the laws compiles are left to it here too."""
    marks = () if in_fast_lane(member) else pytest.mark.slow
    return pytest.param(member, *more, marks=marks, id="-".join((member.name, *more)))


SERVED = [param(m, i) for m in MEMBERS if m.preset for i in m.implementations]
SMALL = {"moneta": 2e-5}  # steps at which the clip does not bind: a cubed error behind small weights has steep slopes


@pytest.mark.parametrize("member, implementation", [p for p in SERVED if "lact" not in p.id])
def test_preset_is_its_recurrence(member: Member, implementation: str) -> None:
    """At small steps, where the clip changes nothing: the oracle here is the paper's, clip None."""
    oracle = ORACLES[member.row]
    case = fresh(member, SMALL.get(member.row, 0.002))
    y, state, *_ = jax.device_get(rowwise(member, implementation, CHUNK, True)(case))
    for r in (0, 2, 4, 5):
        want, weights = by_hand(oracle, case, r, CHUNK, None)
        close(by_hand(oracle, case, r, CHUNK, 1.0), (want, weights), 1e-13, "the clip was meant not to bind: ")
        close((y[r], row(absolute(state), r)), (want, weights), 1e-9, f"row {r}: ")


@pytest.mark.parametrize("member, implementation", SERVED)
def test_preset_with_the_clip_is_its_recurrence_clipped(member: Member, implementation: str) -> None:
    oracle, case = ORACLES[member.row], fresh(member, 1.0)
    agrees(member, oracle, implementation, case)
    free, bound = (by_hand(oracle, case, 4, CHUNK, clip)[0] for clip in (None, 1.0))
    assert np.abs(free - bound).max() > 1e-3, "the clip was meant to bind"


@pytest.mark.parametrize("member", [param(m) for m in MEMBERS if m.preset and not m.channel])
def test_chunk_of_one_takes_every_gradient_at_the_last_token(member: Member) -> None:
    agrees(member, ORACLES[member.row], member.implementations[0], fresh(member, 1.0, tokens=5), chunk=1)


ATLAS_TOKEN = omega(DeepMemory(monomials, l2), 4, muon="token")
VARIANTS = {
    "titans_depth1": (recurrences.titans, {}),
    "titans_depth3": (recurrences.titans, {}),
    "titans_order2": (recurrences.titans, {"order": 2}),
    "titans_linear_fresh": (recurrences.titans_linear_fresh, {}),
    "titans_to_origin": (recurrences.titans, {"to_origin": True}),
    "titans_to_origin-channel": (recurrences.titans, {"to_origin": True}),
    "atlas_token": (ATLAS_TOKEN, {}),
    "dgd_to_origin": (delta.dgd, {"to_origin": True}),
}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_variant_is_its_recurrence(name: str) -> None:
    oracle, choices = VARIANTS[name]
    agrees(BY_NAME[name], oracle, BY_NAME[name].implementations[0], fresh(BY_NAME[name], 1.0), **choices)


OFFSETS = (0.1, -0.2, 0.05, -0.4)  # the last makes max(0, .) bind


def test_ttt_offsets_scale_each_place_of_the_mini_batch() -> None:
    member = Member("offsets", presets.ttt_linear(4, offsets=OFFSETS))
    agrees(member, recurrences.ttt, "chunked", fresh(member, 1.0), offsets=OFFSETS)


def test_linear_attention_is_a_running_sum() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 9, 4))
    memory = miras(RULES["linear_attention"], chunk=4, clip=None)
    ones = np.ones(9)
    state = memory.init({"w": np.zeros((4, 4))})
    y, _, _ = jax.jit(memory.update, compiler_options=QUICK)(state, q, k, v, Gates(ones, ones, ones))
    M = np.cumsum(k[:, :, None] * v[:, None, :], axis=0)
    close(y, np.einsum("ti,tio->to", q, M), 1e-12)


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet"])
def test_delta_rule_at_rate_1_answers_a_unit_key_with_its_value(name: str) -> None:
    """M_t(k_t) = v_t whatever was there before; DeltaNet proper has keep 1."""
    member = BY_NAME[name]
    case = row(situations(member), 0)
    keep = np.ones(14) if name == "deltanet" else case.gates.keep
    update = miras(member.rule, chunk=4, clip=None).update
    gates = Gates(np.ones(14), np.ones(14), keep)
    y, _, _ = jax.jit(update, compiler_options=QUICK)(case.state, case.k, case.k, case.v, gates)
    close(y, case.v, 1e-9)


def _gradient_check(weights, scale: float) -> float:
    """How far the hand-derived gradient is from central differences."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(2, 4))
    got, worst = recurrences.residual_mlp_gradient(weights, x, target, scale), 0.0
    for name, w in weights.items():
        for i in np.ndindex(w.shape):
            ends = []
            for h in (1e-6, -1e-6):
                other = weights | {name: w.copy()}
                other[name][i] += h
                ends.append(scale * ((recurrences.residual_mlp(other, x) - target) ** 2).sum())
            worst = max(worst, abs((ends[0] - ends[1]) / 2e-6 - got[name][i]))
    return worst


@pytest.mark.parametrize("name", ["titans_depth1", "titans", "titans_depth3", "ttt_mlp"])
def test_hand_gradients_are_slopes(name: str) -> None:
    rule: Rule = RULES[name]
    weights = {n: np.asarray(w) for n, w in rule.architecture.init(jax.random.key(0)).items()}
    assert _gradient_check(weights, 0.5) < 1e-7
