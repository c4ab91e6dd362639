import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.metrics.annotators import AnnotatorScore
from qvlm_lightning.metrics.answerability import AnswerabilityScore
from qvlm_lightning.metrics.grouped import GroupedScore
from qvlm_lightning.metrics.target import Judgement

GROUPS = ("a", "b", "answerable/yes", "answerable/no")
QUESTION = st.tuples(
    st.builds(
        Judgement,
        st.sampled_from([0, 3, 6, 9, 10]),
        st.sampled_from([None, "unanswerable", "cat"]),
    ),
    st.lists(st.sampled_from(GROUPS), max_size=4).map(tuple),
    st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
)


def test_by_hand() -> None:
    metric = GroupedScore(["a", "b", "empty"])
    metric.update([Judgement(10, "x"), Judgement(3, "x")], [("a",), ("a", "b")])
    metric.update([Judgement(0, None)], [()])
    assert metric.counts() == {"overall": (13, 3), "a": (13, 2), "b": (3, 1), "empty": (0, 0)}
    values = metric.compute()
    assert values["overall"].item() == pytest.approx(130 / 3, abs=1e-12)
    assert (values["a"].item(), values["b"].item()) == (65, 30)
    assert math.isnan(values["empty"].item())
    assert int(metric.unparsed) == 1


def test_a_group_named_twice_counts_once() -> None:
    metric = GroupedScore(["a", "a"])
    metric.update([Judgement(10, "x")], [("a", "a")])
    assert metric.counts() == {"overall": (10, 1), "a": (10, 1)}


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown group 'b'; allowed are"):
        GroupedScore(["a"]).update([Judgement(10, "x")], [("b",)])


def test_every_question_needs_groups() -> None:
    with pytest.raises(ValueError, match="shorter"):
        GroupedScore().update([Judgement(10, "x")], [])


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_nothing_asked_is_no_score() -> None:
    assert math.isnan(GroupedScore().compute()["overall"].item())


def states(metric: GroupedScore) -> dict[str, object]:
    """What is kept, the order of questions left aside where they are kept one by one."""
    kept: dict[str, object] = {}
    for name in metric.metric_state:
        value = getattr(metric, name)
        kept[name] = value.tolist() if isinstance(value, torch.Tensor) else None
    if isinstance(metric, AnswerabilityScore):
        scores, labels = torch.cat(metric.unanswerable), torch.cat(metric.positive)
        kept["pairs"] = sorted(zip(scores.tolist(), labels.tolist(), strict=True))
    return kept


def updated(kind: type[GroupedScore], questions: list, sizes: list[int]) -> GroupedScore:
    """Update with batches of these sizes, over and over; the rest goes in one batch."""
    metric, rest = kind(GROUPS), list(questions)
    for size in [*sizes, len(rest)]:
        batch, rest = rest[:size], rest[size:]
        judged, groups = [q[0] for q in batch], [q[1] for q in batch]
        if isinstance(metric, AnswerabilityScore):
            metric.update(judged, groups, [q[2] for q in batch])
        else:
            metric.update(judged, groups)
    return metric


def joined(parts: list[GroupedScore]) -> GroupedScore:
    """What torchmetrics does over processes: sums states, or puts lists one after the other."""
    whole = type(parts[0])(GROUPS)
    for name, reduce in whole._reductions.items():
        values = [getattr(part, name) for part in parts]
        lists = isinstance(values[0], list)
        added = [*itertools.chain(*values)] if lists else reduce(torch.stack(values))
        setattr(whole, name, added)
    return whole


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # states are set by hand
@pytest.mark.parametrize("kind", [GroupedScore, AnnotatorScore, AnswerabilityScore])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_order_batches_and_processes_do_not_matter(kind, data) -> None:
    questions = data.draw(st.lists(QUESTION, min_size=1, max_size=20))
    shuffled = data.draw(st.permutations(questions))
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=4))
    processes = data.draw(st.integers(1, 3))
    once = updated(kind, questions, [])
    shared = joined([updated(kind, shuffled[i::processes], sizes) for i in range(processes)])
    assert states(once) == states(shared)
    for name, value in once.compute().items():
        torch.testing.assert_close(value, shared.compute()[name], rtol=0, atol=0, equal_nan=True)


# 40 questions, some of them in both groups; the last of several processes gets none.
PROCESS = """
import json, sys
import torch
from qvlm_lightning.metrics.answerability import AnswerabilityScore
from qvlm_lightning.metrics.target import Judgement

process, processes, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if processes > 1:
    shared = torch.distributed.FileStore(store, processes)
    torch.distributed.init_process_group("gloo", store=shared, rank=process, world_size=processes)
metric = AnswerabilityScore(["a", "answerable/yes", "answerable/no"])
working = max(1, processes - 1)
for i in range(process, 40, working) if process < working else []:
    said = Judgement((0, 3, 6, 9, 10)[i % 5], ("unanswerable", "cat", None)[i % 3])
    groups = ("answerable/no" if i % 4 else "answerable/yes", "a")[: 1 + i % 2]
    metric.update([said], [groups], [None if i % 7 else i / 40])
values = {name: value.item() for name, value in metric.compute().items()}
with metric.sync_context(should_sync=processes > 1):
    print(json.dumps([values, metric.counts(), int(metric.unparsed)]))
"""


@pytest.mark.slow
def test_processes_do_not_matter(tmp_path) -> None:
    def run(processes: int) -> list[str]:
        store = str(tmp_path / f"store{processes}")
        command = [sys.executable, "-W", "ignore", "-c", PROCESS]
        running = [
            subprocess.Popen([*command, str(i), str(processes), store], stdout=subprocess.PIPE)
            for i in range(processes)
        ]
        return [process.communicate(timeout=120)[0].decode() for process in running]

    (alone,) = run(1)
    values, counts, _ = json.loads(alone)
    assert counts["overall"] == [40 * 28 // 5, 40]
    assert all(math.isfinite(value) for value in values.values())
    assert run(2) == [alone] * 2
    assert run(3) == [alone] * 3
