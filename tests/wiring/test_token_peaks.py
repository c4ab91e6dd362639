"""Magnitudes of tokens that a calibration keeps, beside those of plain loops."""

import torch

from qvlm_lightning.calibration import statistics
from qvlm_lightning.calibration.token_peaks import counted_tokens
from qvlm_lightning.nn.distributed import gather_objects
from tests.wiring.plain import LINEARS, counted, rows_of, tower_of


def magnitudes(plain, batches):
    """Return site -> sample -> the largest magnitude of every token that counts."""
    found = {site: {} for site in LINEARS}
    for batch in batches:
        trace = plain.run(batch, {})
        for site, x in trace.inputs.items():
            tower = tower_of(site)
            mask = counted(tower, batch)
            for row, sample in enumerate(rows_of(tower, batch)):
                tokens = [
                    max(abs(float(value)) for value in token)
                    for place, token in enumerate(x[row])
                    if mask is None or mask[row, place]
                ]
                found[site][sample] = torch.tensor(tokens)
    return found


def test_every_token_of_every_sample_has_its_magnitude(calibrated, plain, toy_batches):
    """Padding is on the right or on the left; some samples have no image."""
    peaks = calibrated().statistics.peaks
    wanted = magnitudes(plain(), toy_batches)
    assert set(peaks.sites) == set(LINEARS)
    for site, samples in wanted.items():
        assert set(peaks.of(site)) == set(samples)
        assert peaks.places(site) == {}
        for sample, tokens in samples.items():
            assert torch.equal(peaks.of(site)[sample], tokens)


def test_the_token_that_stands_out_is_named_by_its_id(calibrated, plain, toy_batches):
    """The loop reads the id where the activation stands in the padded batch."""
    peaks, model = calibrated().statistics.peaks, plain()
    ids = counted_tokens(toy_batches)
    worst = {site: (-1.0, -1, -1) for site in LINEARS if tower_of(site) == "language"}
    for batch in toy_batches:
        inputs = model.run(batch, {}).inputs
        for site in worst:
            for row, place in batch["attention_mask"].nonzero().tolist():
                magnitude = float(inputs[site][row, place].abs().max().float())
                if magnitude > worst[site][0]:
                    sample, token = batch["sample_index"][row], batch["input_ids"][row, place]
                    worst[site] = (magnitude, int(sample), int(token))
    for site, (magnitude, sample, token) in worst.items():
        peak = peaks.peak(site)
        assert (peak.worst, peak.sample) == (magnitude, sample)
        assert ids[sample][peak.position] == token
    assert len({token for *_, token in worst.values()}) > 1
    assert {sample // 4 for _, sample, _ in worst.values()} & {1}, "one of them is padded in front"


def test_processes_share_what_they_have_seen(calibrated, toy_batches, monkeypatch):
    """The second process has seen every other batch."""
    alone = calibrated().statistics.peaks
    half = calibrated(batches=toy_batches)
    other = half.statistics.peaks.__class__()
    for site in alone.sites:
        seen = half.statistics.peaks._peaks[site]
        for sample in [s for s in seen if s // 4 % 2]:
            other._peaks.setdefault(site, {})[sample] = seen.pop(sample)

    def gather(value):
        failure, observers, _ = value
        theirs = {site: other.state(site) for site in value[2]}
        return [*gather_objects(value), (failure, observers, theirs)]

    monkeypatch.setattr(statistics, "gather_objects", gather)
    for tower in half.structure.towers.values():
        half.statistics._merge(None, tower)
    for site in alone.sites:
        merged = half.statistics.peaks.of(site)
        assert set(merged) == set(alone.of(site))
        assert all(torch.equal(merged[s], x) for s, x in alone.of(site).items())
