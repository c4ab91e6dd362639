from qvlm_lightning.results.render import markdown
from qvlm_lightning.results.scores import score_grids


def test_one_table_per_benchmark_and_rule(answered, known):
    def made(method, mode, **scores):
        return answered(method, benchmark="vqav2", mode=mode, scores=scores)

    official = made("fp", "official", overall=200 / 3, unparsed=2)
    lmms = made("qvlm", "lmms", overall=50.0, **{"answer_type/other": None})
    first, second = score_grids(known(official, lmms, answered("rtn")))
    assert first.title == "vqav2: official"
    assert first.rows == [["overall", "66.67"], ["unparsed", "2"]]
    assert second.rows == [["overall", "50.00"], ["answer_type/other", "–"]]
    assert "| figure | qvlm-w4a4-static_tensor-k1-s0 |" in markdown(second)


def test_without_figures_there_is_no_table(answered, known):
    assert score_grids(known(answered("fp"))) == []
