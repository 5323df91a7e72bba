from __future__ import annotations

from unlabeled.report.table import estimate, markdown, repeated


def test_markdown_as_it_should_look() -> None:
    assert markdown(("probe", "acc."), [("kNN|20", "91.25"), ("linear", "8.5")]) == (
        "| probe   |  acc. |\n"  #
        "| ------- | ----: |\n"
        "| kNN\\|20 | 91.25 |\n"
        "| linear  |   8.5 |\n"
    )
    assert markdown(("", ""), [("mode", "full")], left=2) == "|      |      |\n| ---- | ---- |\n| mode | full |\n"


def test_estimates() -> None:
    assert estimate(91.234) == "91.23"
    assert estimate(91.25, 0.5, (90, 92.44), digits=1) == "91.2 ± 0.5 [90.0, 92.4]"
    assert repeated([7.0]) == "7.00"
    # s = 1, t = 4.303 with two degrees of freedom, 4.303 / sqrt(3) = 2.484
    assert repeated([1, 2, 3]) == "2.00 ± 1.00 [-0.48, 4.48]"
