# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of evaluations: the right pairs, patients as units, and corrected p values."""

import numpy as np
import pytest
from scipy.stats import norm

from processing.command_line import main
from processing.comparison import compare, holm, read_cases
from processing.evaluation import COLUMNS, write_table


def side(dices, patients=None):
    return {
        (str(i), 0): {"name": str(i), "patient_id": patients and patients[i], "dice": float(dice)}
        for i, dice in enumerate(dices)
    }


def folder(path, dices, arm="full_text"):
    path.mkdir()
    write_table(
        path / "cases.csv",
        [{**dict.fromkeys(COLUMNS, ""), "name": f"case-{i}", "arm": arm, "dice": d} for i, d in enumerate(dices)],
    )
    return path


def test_difference_and_interval():
    random = np.random.default_rng(0)
    theirs = random.uniform(0.5, 0.9, 400)
    differences = random.normal(0.02, 0.05, 400)
    result = compare([side(theirs + differences)], [side(theirs)])
    assert result["difference"] == pytest.approx(differences.mean(), abs=1e-12)
    half = norm.ppf(0.975) * differences.std() / 20
    assert result["interval"] == pytest.approx([differences.mean() - half, differences.mean() + half], abs=1e-3)
    assert result["effect_size"] == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert result["p_wilcoxon"] < 1e-6 and result["p_t"] < 1e-6 and result["units"] == 400


def test_seeds_are_averaged_case_by_case():
    result = compare([side([0.6, 0.8]), side([0.8, 0.6])], [side([0.7, 0.7])])
    assert result["difference"] == pytest.approx(0) and result["ours"] == pytest.approx(0.7)
    assert result["p_wilcoxon"] == 1.0


def test_patients_are_the_units():
    # Ninety pictures of one patient say as much as one: the interval must not shrink with them.
    dices = [0.9] * 90 + [0.2, 0.3, 0.1, 0.2]
    patients = ["a"] * 90 + ["b", "c", "d", "e"]
    result = compare([side(dices, patients)], [side([0.5] * 94, patients)])
    assert result["units"] == 5
    assert result["interval"][0] < 0 < result["interval"][1]
    assert result["p_t"] > 0.05


def test_one_model_with_itself():
    same = side([0.5, 0.6, 0.7])
    result = compare([same], [same])
    assert (result["difference"], result["p_wilcoxon"], result["p_t"], result["effect_size"]) == (0, 1, 1, 0)


@pytest.mark.parametrize("dices", [[0.6, 0.7, 0.9], [0.6]], ids=["all the same", "one alone"])
def test_a_difference_that_does_not_spread_has_no_effect_size(dices):
    ours = [dice + 0.1 for dice in dices]  # but for rounding
    result = compare([side(ours)], [side(dices)])
    assert result["difference"] == pytest.approx(0.1)
    assert result["p_t"] is None and result["effect_size"] is None


def test_other_cases_are_refused():
    with pytest.raises(ValueError, match="not of the same cases"):
        compare([side([0.5, 0.6])], [side([0.5])])


def test_holm():
    # By hand: sorted 0.01 * 3, 0.02 * 2, 0.04 * 1, never falling.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_picture_asked_twice_stays_two_cases(tmp_path):
    path = folder(tmp_path / "a", [0.5])
    lines = (path / "cases.csv").read_text().splitlines()
    (path / "cases.csv").write_text("\n".join([*lines, lines[-1]]) + "\n")
    assert list(read_cases(path, "full_text")) == [("case-0", 0), ("case-0", 1)]


def test_command(tmp_path, capsys):
    ours, theirs = folder(tmp_path / "ours", [0.8, 0.9, 0.7]), folder(tmp_path / "theirs", [0.7, 0.7, 0.7])
    assert main(["compare", str(ours), str(theirs)]) == 0
    said = capsys.readouterr().out
    assert "80.00 against 70.00" in said and "+10.00 points" in said and "3 patients" in said
    assert main(["compare", str(ours), "--to", str(theirs), str(theirs)]) == 0
    assert "+10.00 points" in capsys.readouterr().out
    constant = folder(tmp_path / "constant", [0.9, 1.0, 0.8])
    assert main(["compare", str(constant), str(ours)]) == 0
    assert "paired t p -, effect size d -" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["{a}"], "give two folders"),
        (["{a}", "{b}", "--arm", "typo"], "has no case of the arm typo"),
        (["{a}", "{empty}"], "has no cases.csv"),
        (["{a}", "runs/typo"], "there is no folder 'runs/typo' here"),
    ],
)
def test_bad_words(tmp_path, capsys, words, sentence):
    (tmp_path / "empty").mkdir()
    places = {"a": folder(tmp_path / "a", [0.5]), "b": folder(tmp_path / "b", [0.6]), "empty": tmp_path / "empty"}
    assert main(["compare", *(word.format(**places) for word in words)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("name,patient_id,dice\na,,0.5\n", "(no column arm)"),
        ("name,patient_id,arm,dice\na,,full_text,much\n", "much"),
        ("name,patient_id,arm,dice\na,,full_text,nan\n", "(a Dice of nan)"),
        ("name,patient_id,arm,dice\na,,full_text\n", "NoneType"),
        ("", "(no column arm)"),
    ],
)
def test_a_table_of_something_else_is_named(tmp_path, capsys, content, sentence):
    ours, theirs = folder(tmp_path / "a", [0.5]), folder(tmp_path / "b", [0.6])
    (theirs / "cases.csv").write_text(content)
    assert main(["compare", str(ours), str(theirs)]) == 2
    said = capsys.readouterr().err
    assert f"'{theirs / 'cases.csv'}' is not as `tamiseg evaluate` writes it" in said and sentence in said
